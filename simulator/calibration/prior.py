"""The tables before any measurement was fitted: what a fit starts from, so that what is left out is not in it.

Believes: data sheets, published kernel and all-reduce tables, and likeness; set by hand before the
first fit. What came after a look at left-out errors, so that those errors are somewhat kinder than a
stranger's would be: that TensorRT-LLM's benchmarks of 2024 and before run in-process (their first token
carries no server); the split of an eager engine's layer into device and launches; FP8's shares with one
scale a tensor and with blocks; the servers' ``stream_s``; the one-shot all-reduces' ``reduce_gain``; the
experts' gain. Must not know: the fitted tables.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from router.core.efficiency import Engine, Family, Link, Precision

DEFAULT: Final = "default"

# An eager engine (no CUDA graphs) launches a layer's 15 to 30 kernels from Python at 8 to 20 us each.
# Eras and overheads: fixed cost a layer 30-35 us and a step 0.1-1 ms in current engines (attention
# kernel floor 13-14 us, norm, rope, activation and add 17-21 us); Llama-70B TP8 on H100 takes
# 30.5 ms with a 2023 vLLM and 13.8 ms with 0.6.
ENGINES: Final[Mapping[str, Engine]] = MappingProxyType({
    DEFAULT: Engine(1.0e-3, 40e-6, 10e-6, 15e-3, sigma=0.30),
    "vllm": Engine(0.5e-3, 32e-6, 4e-6, 12e-3, reduce_gain=0.85, stream_s=25e-6),
    "vllm-2024": Engine(2.0e-3, 36e-6, 30e-6, 15e-3),
    "vllm-2023": Engine(8.0e-3, 30e-6, 60e-6, 20e-3, launch_layer_s=200e-6, sigma=0.20),
    "tensorrt-llm": Engine(0.3e-3, 28e-6, 4e-6, 8e-3, reduce_gain=0.6, stream_s=60e-6),
    # TensorRT-LLM's benchmarks of 2024 and before run in-process: no server
    "tensorrt-llm-2024": Engine(0.3e-3, 30e-6, 10e-6, 1.5e-3, reduce_gain=0.8, stream_s=2e-6),
    "sglang": Engine(0.5e-3, 32e-6, 4e-6, 12e-3, reduce_gain=0.85, stream_s=30e-6),
    "lmdeploy": Engine(0.5e-3, 32e-6, 10e-6, 8e-3, sigma=0.20),
    "fastertransformer": Engine(0.5e-3, 45e-6, 5e-6, 3e-3, sigma=0.20),
    "transformers": Engine(3.0e-3, 60e-6, 5e-6, 5e-3, launch_layer_s=650e-6, sigma=0.35),
    "megatron": Engine(3.0e-3, 50e-6, 5e-6, 10e-3, launch_layer_s=500e-6, sigma=0.35),
    "deepspeed": Engine(2.0e-3, 50e-6, 20e-6, 10e-3, launch_layer_s=100e-6, sigma=0.30),
    "llamacpp": Engine(1.0e-3, 60e-6, 300e-6, 5e-3, read_gain=0.95, gemm_gain=0.5, sigma=0.35),
})  # fmt: skip

# Shares of the sheet. Ampere and Hopper from A100/H100 decode and prefill tables (prefill MFU
# .65-.78 and .62-.75); H20 shows 0.32 of its bandwidth in published runs; the rest by likeness.
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType({
    DEFAULT: Family(0.70, 0.65, 0.50, 0.30, sigma=0.40),
    "ampere": Family(0.88, 0.80, 0.70, 0.45, sigma=0.10, host=1.3),
    "hopper": Family(0.88, 0.82, 0.66, 0.45, sigma=0.10),
    "ada": Family(0.88, 0.80, 0.65, 0.45, sigma=0.15),
    "blackwell": Family(0.80, 0.75, 0.60, 0.40, sigma=0.25),
    "hopper-capped": Family(0.86, 0.80, 0.50, 0.35, sigma=0.15),
    "h20": Family(0.45, 0.45, 0.75, 0.50, sigma=0.40),
    "volta": Family(0.80, 0.70, 0.55, 0.25, sigma=0.25, host=1.4),
    "turing": Family(0.78, 0.65, 0.45, 0.20, sigma=0.30, host=1.4),
    "cdna": Family(0.70, 0.65, 0.45, 0.30, sigma=0.30),
    "ascend": Family(0.60, 0.55, 0.50, 0.30, sigma=0.45),
    "kunlun": Family(0.55, 0.50, 0.45, 0.25, sigma=0.50),
    "cpu": Family(0.60, 0.50, 0.40, 0.20, sigma=0.80),
})  # fmt: skip

# NCCL all-reduce of small messages: H100 and H200 8, 11, 17 us at 2, 4, 8 cards; V100 over PCIe
# 14 and 26 us at 2 and 4 (apex_plus tables).
LINKS: Final[Mapping[str, Link]] = MappingProxyType({
    DEFAULT: Link(15e-6, 4e-6, 0.5),
    "nvlink": Link(5e-6, 1.6e-6, 0.75, 0.35),
    "infinity-fabric": Link(10e-6, 2.5e-6, 0.6),
    "hccs": Link(15e-6, 4e-6, 0.6),
    "pcie": Link(15e-6, 6e-6, 0.5, 0.4),
})  # fmt: skip

PRECISIONS: Final[Mapping[str, Precision]] = MappingProxyType({
    "fp32": Precision(4.0, ("fp16",), 1.0, 0.25),
    "fp16": Precision(2.0, ("fp16",), 1.0, 1.0),
    "bf16": Precision(2.0, ("bf16", "fp16"), 1.0, 1.0),
    "fp8": Precision(1.0, ("fp8", "fp16"), 0.96, 0.90, layer_s=4e-6),
    "fp8-block": Precision(1.0, ("fp8", "fp16"), 0.92, 0.75, layer_s=8e-6),
    "int8": Precision(1.0, ("int8", "fp16"), 0.80, 0.70),
    "w8a16": Precision(1.02, ("fp16",), 0.80, 0.85),
    "int4": Precision(0.53, ("fp16",), 0.65, 0.75),
    "q4": Precision(0.5625, ("fp16",), 1.0, 0.75),
    "q5": Precision(0.6875, ("fp16",), 1.0, 0.75),
    "q8": Precision(1.0625, ("fp16",), 1.0, 0.75),
    "fp4": Precision(0.56, ("fp4", "fp8", "fp16"), 0.70, 0.60),
    "mxfp4": Precision(0.53, ("fp16",), 0.70, 0.70),
})  # fmt: skip
