"""Models as their configs describe them: parameters, layers, heads, bytes of KV a token.

Assumes: published shapes, each with its source and a grade (A config read, B report or two
agreeing sources, C from memory, D estimated from the card's headline numbers). Must not know:
what runs the model or where. An operator's own model is made with ``make_model``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from router.core.errors import UnknownModel
from router.spelling import suggestion


@dataclass(frozen=True, slots=True)
class Model:
    """The shape of one decoder-only model.

    ``params`` counts everything stored, ``active_params`` what one token multiplies with (equal
    for a dense model). ``kv_bytes_per_token`` is over all layers at 2 bytes an element.
    ``expert_params`` is the part of ``params`` that lies in routed experts, of which a token
    reads ``experts_per_token`` of ``experts``. ``embedding_params`` is the input table (a decode
    step looks up a row and reads nothing else of it unless it is tied to the output head).
    ``latent_kv`` marks MLA: one compressed latent a token, copied to every tensor-parallel rank.
    ``windowed_share`` is the share of layers whose attention sees only a short window (or none),
    ``linear_share`` that of layers with linear attention, which are among them.
    ``block_fp8``: its FP8 checkpoint has a scale for every 128 x 128 block (DeepSeek-V3, arXiv 2412.19437
    section 3.3), whose activations are quantised as it runs; else one scale a tensor or channel.
    """

    name: str
    params: float
    active_params: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_bytes_per_token: float
    experts: int = 0
    experts_per_token: int = 0
    expert_params: float = 0.0
    vocab: int = 0
    embedding_params: float = 0.0
    ffn: int = 0
    latent_kv: bool = False
    windowed_share: float = 0.0
    source: str = "operator"
    confidence: str = "D"
    block_fp8: bool = False
    linear_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a shape that cannot be: ValueError names the field and what was expected."""
        for field in ("params", "active_params", "layers", "hidden", "heads", "head_dim"):
            if not getattr(self, field) > 0:
                raise ValueError(f"model {self.name!r}: {field} must be above 0")
        if self.active_params > self.params:
            raise ValueError(f"model {self.name!r}: active_params exceeds params")
        if not 0 < self.kv_heads <= self.heads:
            raise ValueError(f"model {self.name!r}: kv_heads must be 1 to heads ({self.heads})")
        if self.experts and not 0 < self.experts_per_token <= self.experts:
            raise ValueError(f"model {self.name!r}: experts_per_token must be 1 to experts")


_KV_ELEMENT_BYTES: Final = 2
_MLA_LATENT: Final = 512 + 64  # DeepSeek-V2/V3 configs: kv_lora_rank 512 + rope 64, a token a layer


def make_model(
    name: str,
    params: float,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    *,
    active_params: float | None = None,
    ffn: int = 0,
    vocab: int = 0,
    tied: bool = False,
    experts: int = 0,
    experts_per_token: int = 0,
    latent_kv: bool = False,
    windowed_share: float = 0.0,
    source: str = "operator",
    confidence: str = "D",
    block_fp8: bool = False,
    linear_share: float = 0.0,
) -> Model:
    """A model from the numbers a config.json holds; what is left out follows from the rest.

    ``ffn`` is one expert's width for a mixture of experts. Raises ValueError for a shape that
    cannot be. KV per token = 2 (K and V) x layers x KV heads x head size x 2 bytes; with
    ``latent_kv`` it is layers x 576 x 2 bytes (DeepSeek-V2, arXiv 2405.04434).
    """
    kv_heads, head_dim = kv_heads or heads, head_dim or hidden // heads
    elements = _MLA_LATENT if latent_kv else 2 * kv_heads * head_dim
    active = params if active_params is None else active_params
    return Model(
        name,
        params,
        active,
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        float(_KV_ELEMENT_BYTES * layers * elements),
        experts,
        experts_per_token,
        _expert_params(params, active, experts, experts_per_token),
        vocab,
        0.0 if tied else float(vocab * hidden),
        ffn,
        latent_kv,
        windowed_share,
        source,
        confidence,
        block_fp8,
        linear_share,
    )


def _expert_params(params: float, active: float, experts: int, chosen: int) -> float:
    """Parameters in routed experts: total - active is the (experts - chosen) idle ones."""
    if experts <= chosen:
        return 0.0
    return (params - active) * experts / (experts - chosen)


def _row(
    name: str,
    billions: float,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    confidence: str,
    source: str,
    *,
    tied: bool = False,
    moe: tuple[float, int, int] = (0.0, 0, 0),
    mla: bool = False,
    windowed: float = 0.0,
    linear: float = 0.0,
) -> Model:
    """One row of the table; *moe* is (active billions, experts, experts a token)."""
    active, experts, chosen = moe
    return make_model(
        name,
        billions * 1e9,
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        active_params=(active or billions) * 1e9,
        ffn=ffn,
        vocab=vocab,
        tied=tied,
        experts=experts,
        experts_per_token=chosen,
        latent_kv=mla,
        windowed_share=windowed,
        linear_share=linear,
        source=source,
        confidence=confidence,
        block_fp8=name.startswith(_BLOCK_FP8),
    )


_BLOCK_FP8: Final = ("qwen3", "deepseek-v3", "kimi-k2", "glm-5", "minimax-m2")
"""Models published in FP8 with 128 x 128 blocks (``weight_block_size`` of ``quantization_config``)."""

_CFG: Final = "published config.json"
_MEM: Final = "published config, retyped from memory"

_ROWS: Final = (
    # name, B, layers, hidden, heads, kv heads, head size, ffn, vocab, confidence, source
    _row("chatglm-6b", 6.2, 28, 4096, 32, 32, 128, 16384, 130528, "C", _MEM, tied=True),
    _row("chatglm2-6b", 6.24, 28, 4096, 32, 2, 128, 13696, 65024, "C", _MEM),
    _row("glm-4-9b", 9.4, 40, 4096, 32, 2, 128, 13696, 151552, "C", _MEM),
    _row("glm-130b", 130, 70, 12288, 96, 96, 128, 32768, 150528, "B", "THUDM/GLM-130B README", tied=True),
    _row("bloom-176b", 176.2, 70, 14336, 112, 112, 128, 57344, 250880, "B", _MEM, tied=True),
    _row("bloom-7b", 7.07, 30, 4096, 32, 32, 128, 16384, 250880, "B", _MEM, tied=True),
    _row("llama-7b", 6.74, 32, 4096, 32, 32, 128, 11008, 32000, "A", _CFG),
    _row("llama-2-7b", 6.74, 32, 4096, 32, 32, 128, 11008, 32000, "A", _CFG),
    _row("llama-2-13b", 13.02, 40, 5120, 40, 40, 128, 13824, 32000, "B", _MEM),
    _row("llama-2-70b", 68.98, 80, 8192, 64, 8, 128, 28672, 32000, "A", _CFG),
    _row("codellama-34b", 33.74, 48, 8192, 64, 8, 128, 22016, 32000, "A", _CFG),
    _row("llama-3.2-1b", 1.24, 16, 2048, 32, 8, 64, 8192, 128256, "B", _MEM, tied=True),
    _row("llama-3.2-3b", 3.21, 28, 3072, 24, 8, 128, 8192, 128256, "B", _MEM, tied=True),
    _row("llama-3-8b", 8.03, 32, 4096, 32, 8, 128, 14336, 128256, "A", _CFG),
    _row("llama-3-70b", 70.55, 80, 8192, 64, 8, 128, 28672, 128256, "A", _CFG),
    _row("llama-3.1-405b", 405.85, 126, 16384, 128, 8, 128, 53248, 128256, "A", _CFG),
    _row("qwen-1.8b", 1.84, 24, 2048, 16, 16, 128, 5504, 151936, "C", _MEM),
    _row("qwen-7b", 7.72, 32, 4096, 32, 32, 128, 11008, 151936, "B", _MEM),
    _row("qwen-14b", 14.17, 40, 5120, 40, 40, 128, 13696, 152064, "B", _MEM),
    _row("qwen-72b", 72.29, 80, 8192, 64, 64, 128, 24576, 152064, "B", "microsoft/vidur model configs"),
    _row("qwen1.5-7b", 7.72, 32, 4096, 32, 32, 128, 11008, 151936, "C", _MEM),
    _row("qwen2.5-0.5b", 0.494, 24, 896, 14, 2, 64, 4864, 151936, "B", "Qwen2 report", tied=True),
    _row("qwen2.5-1.5b", 1.54, 28, 1536, 12, 2, 128, 8960, 151936, "B", "Qwen2 report", tied=True),
    _row("qwen2.5-3b", 3.09, 36, 2048, 16, 2, 128, 11008, 151936, "B", "Qwen2.5 report", tied=True),
    _row("qwen2.5-7b", 7.62, 28, 3584, 28, 4, 128, 18944, 152064, "A", _CFG),
    _row("qwen2-57b-a14b", 57.4, 28, 3584, 28, 4, 128, 2560, 151936, "C", "Qwen2 report",
         moe=(14.2, 64, 8)),
    _row("qwen2.5-14b", 14.77, 48, 5120, 40, 8, 128, 13824, 152064, "B", "Qwen2.5 report"),
    _row("qwen2.5-32b", 32.76, 64, 5120, 40, 8, 128, 27648, 152064, "B", "Qwen2.5 report"),
    _row("qwen2.5-72b", 72.71, 80, 8192, 64, 8, 128, 29568, 152064, "B", "Qwen2.5 report"),
    _row("qwen3-0.6b", 0.596, 28, 1024, 16, 8, 128, 3072, 151936, "A", _CFG, tied=True),
    _row("qwen3-1.7b", 1.72, 28, 2048, 16, 8, 128, 6144, 151936, "A", _CFG, tied=True),
    _row("qwen3-4b", 4.02, 36, 2560, 32, 8, 128, 9728, 151936, "B", "Qwen3 report", tied=True),
    _row("qwen3-8b", 8.19, 36, 4096, 32, 8, 128, 12288, 151936, "A", _CFG),
    _row("qwen3-14b", 14.77, 40, 5120, 40, 8, 128, 17408, 151936, "A", _CFG),
    _row("qwen3-32b", 32.76, 64, 5120, 64, 8, 128, 25600, 151936, "A", _CFG),
    _row("qwen3-30b-a3b", 30.53, 48, 2048, 32, 4, 128, 768, 151936, "A", _CFG, moe=(3.35, 128, 8)),
    _row("qwen3-235b-a22b", 235.1, 94, 4096, 64, 4, 128, 1536, 151936, "A", _CFG, moe=(22.2, 128, 8)),
    _row("qwen3.5-397b-a17b", 397, 60, 4096, 32, 2, 256, 1024, 248320, "C", _MEM,
         moe=(17, 512, 10), windowed=0.75, linear=0.75),
    _row("yi-6b", 6.06, 32, 4096, 32, 4, 128, 11008, 64000, "B", _MEM),
    _row("yi-34b", 34.39, 60, 7168, 56, 8, 128, 20480, 64000, "A", _CFG),
    _row("mistral-7b", 7.24, 32, 4096, 32, 8, 128, 14336, 32000, "B", _MEM),
    _row("mistral-large-123b", 122.6, 88, 12288, 96, 8, 128, 28672, 32768, "B", _MEM),
    _row("mixtral-8x7b", 46.7, 32, 4096, 32, 8, 128, 14336, 32000, "A", _CFG, moe=(12.88, 8, 2)),
    _row("mixtral-8x22b", 140.6, 56, 6144, 48, 8, 128, 16384, 32000, "A", _CFG, moe=(39.1, 8, 2)),
    _row("decilm-7b", 7.04, 32, 4096, 32, 2, 128, 14336, 32000, "C", "mean of its 1 to 4 KV heads"),
    _row("aquila-7b", 7.3, 32, 4096, 32, 32, 128, 11008, 100008, "C", _MEM),
    _row("internlm-20b", 20.1, 60, 5120, 40, 40, 128, 13824, 103168, "C", _MEM),
    _row("gemma-2-9b", 9.24, 42, 3584, 16, 8, 256, 14336, 256000, "B", _MEM, tied=True, windowed=0.5),
    _row("phi-3-mini", 3.82, 32, 3072, 32, 32, 96, 8192, 32064, "B", _MEM),
    _row("opt-125m", 0.125, 12, 768, 12, 12, 64, 3072, 50272, "B", _MEM, tied=True),
    _row("opt-1.3b", 1.32, 24, 2048, 32, 32, 64, 8192, 50272, "B", _MEM, tied=True),
    _row("opt-6.7b", 6.66, 32, 4096, 32, 32, 128, 16384, 50272, "B", _MEM, tied=True),
    _row("opt-13b", 12.85, 40, 5120, 40, 40, 128, 20480, 50272, "B", _MEM, tied=True),
    _row("opt-30b", 29.97, 48, 7168, 56, 56, 128, 28672, 50272, "B", _MEM, tied=True),
    _row("opt-66b", 65.7, 64, 9216, 72, 72, 128, 36864, 50272, "B", _MEM, tied=True),
    _row("deepseek-v3", 671, 61, 7168, 128, 128, 128, 2048, 129280, "A", _CFG, moe=(37, 256, 8), mla=True),
    _row("kimi-k2", 1040, 61, 7168, 64, 64, 128, 2048, 163840, "B", _MEM, moe=(32.6, 384, 8), mla=True),
    _row("glm-5", 744, 78, 6144, 64, 64, 128, 2048, 154880, "C", _MEM, moe=(40, 256, 8), mla=True),
    _row("minimax-m2", 230, 62, 3072, 48, 8, 128, 1536, 200064, "B", _MEM, moe=(10, 256, 8)),
    _row("gpt-oss-120b", 116.8, 36, 2880, 64, 8, 64, 2880, 201088, "A", _CFG,
         moe=(5.1, 128, 4), windowed=0.5),
    _row("gpt-oss-20b", 20.9, 24, 2880, 64, 8, 64, 2880, 201088, "A", _CFG, moe=(3.6, 32, 4), windowed=0.5),
    _row("gpt-j-6b", 6.05, 28, 4096, 16, 16, 256, 16384, 50400, "A", _CFG),
    _row("falcon-180b", 179.5, 80, 14848, 232, 8, 64, 59392, 65024, "C", _MEM),
    _row("gpt-175b", 175, 96, 12288, 96, 96, 128, 49152, 51200, "A", "FasterTransformer gpt_guide", tied=True),
    _row("gpt-89b", 89, 48, 12288, 96, 96, 128, 49152, 51200, "A", "FasterTransformer gpt_guide", tied=True),
    _row("gpt-20b", 20, 44, 6144, 48, 48, 128, 24576, 51200, "A", "FasterTransformer gpt_guide", tied=True),
    _row("gpt-6.7b", 6.7, 32, 4096, 32, 32, 128, 16384, 51200, "A", "FasterTransformer gpt_guide", tied=True),
    _row("gpt-1.3b", 1.3, 24, 2048, 32, 32, 64, 8192, 51200, "B", "FasterTransformer gpt_guide", tied=True),
    _row("gpt-350m", 0.35, 24, 1024, 16, 16, 64, 4096, 51200, "B", "FasterTransformer gpt_guide", tied=True),
    _row("ernie-3.0-titan-260b", 260, 48, 12288, 192, 192, 64, 196608, 0, "C",
         "arXiv 2112.12731, retyped from memory: 48 x (4 h^2 + 2 x 16 h^2) = 261 B"),
    _row("megatron-530b", 530, 105, 20480, 128, 128, 160, 81920, 51200, "A",
         "FasterTransformer gpt_guide", tied=True),
)  # fmt: skip

MODELS: Final[Mapping[str, Model]] = MappingProxyType({row.name: row for row in _ROWS})

_ALIASES: Final[Mapping[str, str]] = MappingProxyType({
    "chatglm3-6b": "chatglm2-6b", "chatglm4-9b": "glm-4-9b", "bloom": "bloom-176b", "bloom-7b1": "bloom-7b",
    "llama2-7b": "llama-2-7b", "llama2-13b": "llama-2-13b", "llama2-70b": "llama-2-70b",
    "llama-13b": "llama-2-13b", "llama-70b": "llama-2-70b",
    "llama-3.1-8b": "llama-3-8b", "llama-3.1-70b": "llama-3-70b", "llama-3.3-70b": "llama-3-70b",
    "llama-405b": "llama-3.1-405b", "llama-3-405b": "llama-3.1-405b",
    "llama-3-1b": "llama-3.2-1b", "llama-3-3b": "llama-3.2-3b",
    "qwen1.5-72b": "qwen-72b", "qwen1.5-14b": "qwen-14b",
    "qwen2-0.5b": "qwen2.5-0.5b", "qwen2-1.5b": "qwen2.5-1.5b", "qwen2-7b": "qwen2.5-7b",
    "qwen2-72b": "qwen2.5-72b", "mistral-large": "mistral-large-123b",
    "mistral-large-2407": "mistral-large-123b", "mistral-large-2407-123b": "mistral-large-123b",
    "deepseek-r1": "deepseek-v3", "kimi-k2.5": "kimi-k2", "kimi-k2-thinking": "kimi-k2",
    "minimax-m2.5": "minimax-m2", "mt-nlg-530b": "megatron-530b", "gpt-3-175b": "gpt-175b",
    "ernie-3.0-titan": "ernie-3.0-titan-260b",
})  # fmt: skip

_TAIL: Final = re.compile(r"-(instruct|chat|hf|it|base|fp8|fp4|nvfp4|bf16|awq|gptq|int4|int8|v\d+(\.\d+)*|\d{4})$")


def _spelled(name: str) -> str:
    """Lower case with dashes, the owner and the tails of a release (-Instruct, -FP8) dropped."""
    key = name.rsplit("/", 1)[-1].lower().replace("_", "-").replace(" ", "-")
    key = re.sub(r"^meta-", "", key)
    while (shorter := _TAIL.sub("", key)) != key and key not in MODELS and key not in _ALIASES:
        key = shorter
    return key


def model(name: str) -> Model:
    """The model of that name or alias, in any case; UnknownModel names the nearest otherwise."""
    key = _spelled(name)
    found = MODELS.get(_ALIASES.get(key, key))
    if found is None:
        raise UnknownModel(f"no model named {name!r}; {suggestion(key, [*MODELS, *_ALIASES], count=4, cutoff=0.3)}")
    return found
