"""A model of tiny_model.py as one GGUF file for llama.cpp. Run as: FOLDER FILE.gguf."""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

# Llama's tensor names in safetensors and in GGUF; %s stands for the layer's number.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.%s.input_layernorm": "blk.%s.attn_norm",
    "model.layers.%s.post_attention_layernorm": "blk.%s.ffn_norm",
    "model.layers.%s.self_attn.q_proj": "blk.%s.attn_q",
    "model.layers.%s.self_attn.k_proj": "blk.%s.attn_k",
    "model.layers.%s.self_attn.v_proj": "blk.%s.attn_v",
    "model.layers.%s.self_attn.o_proj": "blk.%s.attn_output",
    "model.layers.%s.mlp.gate_proj": "blk.%s.ffn_gate",
    "model.layers.%s.mlp.up_proj": "blk.%s.ffn_up",
    "model.layers.%s.mlp.down_proj": "blk.%s.ffn_down",
}


def gguf_name(name: str) -> str:
    """The name in GGUF of the safetensors tensor *name*."""
    parts = name.removesuffix(".weight").split(".")
    number = next((part for part in parts if part.isdigit()), "")
    known = NAMES[".".join("%s" if part.isdigit() else part for part in parts)]
    return known.replace("%s", number) + ".weight"


def add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The sizes of the model, from its `config.json`."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """The vocabulary and merges, from `tokenizer.json`; special tokens are marked as such."""
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    kinds = [gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["eos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)


def convert(folder: Path, target: Path) -> None:
    """Write the model in *folder* to *target*: vectors as float32, matrices as float16."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_name(folder.name)
    add_shape(writer, config)
    add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()), config)
    writer.add_chat_template(json.loads((folder / "tokenizer_config.json").read_text())["chat_template"])
    for name, values in load_file(folder / "model.safetensors").items():
        writer.add_tensor(gguf_name(name), values.astype(np.float32) if values.ndim == 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
