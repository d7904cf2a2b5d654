"""A copy of a tiny model that thinks before it answers: two more tokens, <think> and </think>. Run as: MODEL FOLDER.

A reasoning parser needs both in the vocabulary. What the model writes before it closes its thoughts is reasoning.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

OPEN, CLOSE = "<think>", "</think>"
MEAN_THOUGHT_TOKENS = 12
NEVER = -30.0  # a logit that is not drawn


def make(model: Path, folder: Path) -> None:
    """Write the copy; its config comes last, so its presence says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("generation_config.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder / name)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    _tokenizer(model, folder, config["vocab_size"])
    tensors = load_file(model / "model.safetensors")
    constant = tensors["model.embed_tokens.weight"][0, 0]  # the channel of the bias: see deploy/local/tiny_model.py
    after_norm = float(constant) / math.sqrt(2.0)
    tensors["model.embed_tokens.weight"] = _with_rows(tensors["model.embed_tokens.weight"], (constant, constant))
    biases = NEVER / after_norm, -math.log(MEAN_THOUGHT_TOKENS) / after_norm
    tensors["lm_head.weight"] = _with_rows(tensors["lm_head.weight"], biases)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 2}))


def _tokenizer(model: Path, folder: Path, size: int) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    like = tokenizer["added_tokens"][-1]
    tokenizer["added_tokens"] += [{**like, "id": size + n, "content": word} for n, word in enumerate((OPEN, CLOSE))]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _with_rows(weights: NDArray[np.float16], firsts: tuple[float, float]) -> NDArray[np.float16]:
    """Two more rows, of zeros but for their channel 0."""
    more = np.zeros((len(firsts), weights.shape[1]), weights.dtype)
    more[:, 0] = firsts
    return np.concatenate([weights, more])


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
