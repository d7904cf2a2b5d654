"""A tiny language model with random weights, in the files that real engines load. Run as: FOLDER HIDDEN LAYERS.

It writes a Llama-shaped model (config, safetensors) and a byte-level BPE tokenizer trained on Python's own standard
library, in seconds and without a network. Text comes out as word salad in true word frequencies, and replies end by
themselves after MEAN_REPLY_TOKENS on average, so that latencies and lengths look like a model's.

How: one channel of the residual stream is kept constant (every layer writes zero to it and the embedding sets it), so
the output matrix's weights for that channel are a bias on the logits. The bias is each token's log frequency, and for
the end token minus the log of the mean length.
"""

import json
import math
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 8192
CONTEXT_TOKENS = 4096
HEAD_DIM = 64
MEAN_REPLY_TOKENS = 200
NEVER = -30.0  # a logit that is not drawn
PAD, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '" + TURN + "' + message.role + '\n' + message.content + '" + END + "\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '" + TURN + "assistant\n' }}{% endif %}"
)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama model; heads are 64 wide, the inner layer is 2.75 times the hidden one."""

    hidden: int
    layers: int

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.hidden // HEAD_DIM

    @property
    def kv_heads(self) -> int:
        """Key and value heads: a quarter of the query heads, but two at least."""
        return max(2, self.heads // 4)

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer, a multiple of 64."""
        return self.hidden * 11 // 4 // 64 * 64


def standard_library() -> list[str]:
    """The text of Python's own modules, in order of name."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of VOCABULARY tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def logit_bias(tokenizer: Tokenizer, texts: list[str]) -> Array:
    """Shape (VOCABULARY,): log frequency of each token in *texts*; the end token once in MEAN_REPLY_TOKENS."""
    counts = np.zeros(VOCABULARY)
    for encoding in tokenizer.encode_batch(texts[:60]):
        counts += np.bincount(encoding.ids, minlength=VOCABULARY)
    bias = np.full(VOCABULARY, NEVER)
    seen = counts > 0
    bias[seen] = np.log(counts[seen] / counts.sum())
    bias[tokenizer.token_to_id(END)] = -math.log(MEAN_REPLY_TOKENS)
    bias[[tokenizer.token_to_id(PAD), tokenizer.token_to_id(TURN)]] = NEVER
    return bias


def layer_tensors(shape: Shape, rng: np.random.Generator) -> dict[str, Array]:
    """One layer's weights, by their names below `model.layers.N.`; none of them writes to channel 0."""

    def linear(outputs: int, inputs: int, gain: float = 1.0) -> Array:
        return rng.standard_normal((outputs, inputs)) * (gain / math.sqrt(inputs))

    query, key = shape.heads * HEAD_DIM, shape.kv_heads * HEAD_DIM
    norm = np.ones(shape.hidden)
    norm[0] = 0.05  # the constant is large: let it not drown the layer's input
    tensors = {
        "input_layernorm": norm,
        "post_attention_layernorm": norm.copy(),
        "self_attn.q_proj": linear(query, shape.hidden),
        "self_attn.k_proj": linear(key, shape.hidden),
        "self_attn.v_proj": linear(key, shape.hidden),
        "self_attn.o_proj": linear(shape.hidden, query, 0.5 / math.sqrt(shape.layers)),
        "mlp.gate_proj": linear(shape.inner, shape.hidden),
        "mlp.up_proj": linear(shape.inner, shape.hidden),
        "mlp.down_proj": linear(shape.hidden, shape.inner, 0.5 / math.sqrt(shape.layers)),
    }
    for writes in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[writes][0] = 0.0
    return tensors


def all_tensors(shape: Shape, bias: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Every weight of the model, by its full name."""
    constant = math.sqrt(shape.hidden)
    after_norm = constant / math.sqrt(2.0)  # mean square of the stream: 1 from the constant, about 1 from the rest
    embedding = rng.standard_normal((VOCABULARY, shape.hidden))
    embedding[:, 0] = constant
    head = rng.standard_normal((VOCABULARY, shape.hidden)) / math.sqrt(shape.hidden / 2.0)
    head[:, 0] = bias / after_norm
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": np.ones(shape.hidden),
        "lm_head.weight": head,
    }
    for number in range(shape.layers):
        for name, values in layer_tensors(shape, rng).items():
            tensors[f"model.layers.{number}.{name}.weight"] = values
    return tensors


def config(shape: Shape, end_id: int) -> dict[str, object]:
    """What `config.json` says."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "pad_token_id": 0,
        "torch_dtype": "float16",
    }


def tokenizer_config() -> dict[str, object]:
    """What `tokenizer_config.json` says."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_TOKENS,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def make(folder: Path, shape: Shape) -> None:
    """Write the whole model to *folder*; `config.json` comes last, so its presence says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = standard_library()
    tokenizer = train_tokenizer(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()))
    tensors = all_tensors(shape, logit_bias(tokenizer, texts), np.random.default_rng(0))
    halves = {name: values.astype(np.float16) for name, values in tensors.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    end_id = tokenizer.token_to_id(END)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end_id, "do_sample": True}))
    (folder / "config.json").write_text(json.dumps(config(shape, end_id), indent=1))
    print(f"{folder}: {sum(values.size for values in tensors.values()) / 1e6:.0f} million parameters")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Shape(hidden=int(sys.argv[2]), layers=int(sys.argv[3])))
