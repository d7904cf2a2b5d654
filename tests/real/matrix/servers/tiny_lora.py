"""A LoRA adapter with random weights for a tiny model, in PEFT's files. Run as: MODEL_FOLDER FOLDER SEED."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RANK = 8
GAIN = 0.02  # small: the adapter changes words, not the lengths of replies


def make(model: Path, folder: Path, seed: int) -> None:
    """Write the adapter; its config comes last, so its presence says that all is there."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    hidden, heads, head_dim = (config[name] for name in ("hidden_size", "num_attention_heads", "head_dim"))
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        place = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for part, shape in (("lora_A", (RANK, hidden)), ("lora_B", (heads * head_dim, RANK))):
            tensors[f"{place}.{part}.weight"] = (rng.standard_normal(shape) * GAIN).astype(np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": str(model)}))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
