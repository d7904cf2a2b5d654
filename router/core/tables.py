"""How much of a data sheet an engine gets, and what it adds of its own: the numbers.

Made by `python -m simulator calibrate --write`: each entry is the most probable value given the
measurements below and the prior in `simulator/calibration/prior.py`. An entry no measurement reads
is the prior: published kernel tables, vendor figures, likeness to a measured row; its sigma is wide.

Fitted to, source (rows): argonne_llm_inference_bench (2144), nvidia_aic_gap (825),
inferencemax_via_aic (663), qwen2.x_speed_benchmark (422), trtllm_docs (360), fastertransformer_gpt
(269), splitwise (228), hf_bloom (29), lmdeploy_a100 (20), chatglm.cpp (18), qwen1_readme (13),
glm130b (6), github_issues (3)
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from router.core.efficiency import Engine, Family, Link, Precision

DEFAULT: Final = "default"

ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {
        DEFAULT: Engine(
            step_s=0.00102,
            layer_s=4.26e-05,
            seq_s=1e-05,
            first_token_s=0.0162,
            read_gain=0.982,
            gemm_gain=0.943,
            reduce_gain=1.02,
            expert_layer_s=1.5e-05,
            expert_gain=0.8,
            sigma=0.3,
        ),
        "vllm": Engine(
            step_s=0.000496,
            layer_s=3.25e-05,
            seq_s=3.99e-06,
            first_token_s=0.012,
            read_gain=0.971,
            gemm_gain=0.998,
            reduce_gain=1.01,
            expert_layer_s=1.5e-05,
            expert_gain=0.808,
            sigma=0.15,
        ),
        "vllm-2024": Engine(
            step_s=0.00231,
            layer_s=3.85e-05,
            seq_s=3.15e-05,
            first_token_s=0.015,
            read_gain=0.996,
            gemm_gain=0.994,
            reduce_gain=1.0,
            expert_layer_s=1.5e-05,
            expert_gain=0.804,
            sigma=0.15,
        ),
        "vllm-2023": Engine(
            step_s=0.00759,
            layer_s=0.000139,
            seq_s=6.07e-05,
            first_token_s=0.0178,
            read_gain=1.01,
            gemm_gain=0.989,
            reduce_gain=1.0,
            expert_layer_s=1.5e-05,
            expert_gain=0.8,
            sigma=0.2,
        ),
        "tensorrt-llm": Engine(
            step_s=0.000305,
            layer_s=2.89e-05,
            seq_s=4.04e-06,
            first_token_s=0.008,
            read_gain=1.0,
            gemm_gain=0.979,
            reduce_gain=1.01,
            expert_layer_s=1.51e-05,
            expert_gain=0.817,
            sigma=0.15,
        ),
        "tensorrt-llm-2024": Engine(
            step_s=0.000309,
            layer_s=3.38e-05,
            seq_s=1.01e-05,
            first_token_s=0.00157,
            read_gain=0.99,
            gemm_gain=1.02,
            reduce_gain=1.02,
            expert_layer_s=1.5e-05,
            expert_gain=0.81,
            sigma=0.15,
        ),
        "sglang": Engine(
            step_s=0.000501,
            layer_s=3.22e-05,
            seq_s=4.02e-06,
            first_token_s=0.012,
            read_gain=1.0,
            gemm_gain=1.0,
            reduce_gain=1.0,
            expert_layer_s=1.52e-05,
            expert_gain=0.796,
            sigma=0.15,
        ),
        "lmdeploy": Engine(
            step_s=0.000518,
            layer_s=3.45e-05,
            seq_s=1.03e-05,
            first_token_s=0.00818,
            read_gain=0.99,
            gemm_gain=0.989,
            reduce_gain=1.0,
            expert_layer_s=1.5e-05,
            expert_gain=0.8,
            sigma=0.2,
        ),
        "fastertransformer": Engine(
            step_s=0.000541,
            layer_s=7.25e-05,
            seq_s=5.06e-06,
            first_token_s=0.00308,
            read_gain=0.951,
            gemm_gain=0.966,
            reduce_gain=1.06,
            expert_layer_s=1.5e-05,
            expert_gain=0.8,
            sigma=0.2,
        ),
        "transformers": Engine(
            step_s=0.00286,
            layer_s=0.000547,
            seq_s=5e-06,
            first_token_s=0.005,
            read_gain=1.01,
            gemm_gain=0.998,
            reduce_gain=1.0,
            expert_layer_s=1.5e-05,
            expert_gain=0.8,
            sigma=0.35,
        ),
        "deepspeed": Engine(
            step_s=0.00214,
            layer_s=9.58e-05,
            seq_s=2.04e-05,
            first_token_s=0.01,
            read_gain=0.975,
            gemm_gain=0.991,
            reduce_gain=1.02,
            expert_layer_s=1.5e-05,
            expert_gain=0.802,
            sigma=0.3,
        ),
        "llamacpp": Engine(
            step_s=0.000867,
            layer_s=4.71e-05,
            seq_s=0.000268,
            first_token_s=0.005,
            read_gain=0.821,
            gemm_gain=0.502,
            reduce_gain=1.0,
            expert_layer_s=1.5e-05,
            expert_gain=0.801,
            sigma=0.35,
        ),
    }
)

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        DEFAULT: Family(read=0.703, kv=0.65, gemm=0.497, attention=0.299, sigma=0.4),
        "ampere": Family(read=0.833, kv=0.785, gemm=0.678, attention=0.446, sigma=0.1),
        "hopper": Family(read=0.883, kv=0.82, gemm=0.656, attention=0.447, sigma=0.1),
        "ada": Family(read=0.88, kv=0.802, gemm=0.651, attention=0.451, sigma=0.15),
        "blackwell": Family(read=0.8, kv=0.75, gemm=0.6, attention=0.4, sigma=0.25),
        "h20": Family(read=0.45, kv=0.45, gemm=0.75, attention=0.5, sigma=0.4),
        "volta": Family(read=0.831, kv=0.7, gemm=0.55, attention=0.25, sigma=0.25),
        "turing": Family(read=0.78, kv=0.65, gemm=0.45, attention=0.2, sigma=0.3),
        "cdna": Family(read=0.7, kv=0.65, gemm=0.45, attention=0.3, sigma=0.3),
        "ascend": Family(read=0.6, kv=0.55, gemm=0.5, attention=0.3, sigma=0.45),
        "kunlun": Family(read=0.55, kv=0.5, gemm=0.45, attention=0.25, sigma=0.5),
        "cpu": Family(read=0.6, kv=0.5, gemm=0.4, attention=0.2, sigma=0.8),
    }
)

LINKS: Final[Mapping[str, Link]] = MappingProxyType(
    {
        DEFAULT: Link(latency_s=1.5e-05, hop_s=4e-06, share=0.5),
        "nvlink": Link(latency_s=5.32e-06, hop_s=1.85e-06, share=0.731),
        "infinity-fabric": Link(latency_s=1e-05, hop_s=2.5e-06, share=0.6),
        "hccs": Link(latency_s=1.5e-05, hop_s=4e-06, share=0.6),
        "pcie": Link(latency_s=1.52e-05, hop_s=6.08e-06, share=0.504),
    }
)

PRECISIONS: Final[Mapping[str, Precision]] = MappingProxyType(
    {
        "fp32": Precision(bytes_per_param=4.0, peaks=("fp16",), read_gain=1.0, gemm_gain=0.25),
        "fp16": Precision(bytes_per_param=2.0, peaks=("fp16",), read_gain=0.972, gemm_gain=0.905),
        "bf16": Precision(bytes_per_param=2.0, peaks=("bf16", "fp16"), read_gain=0.958, gemm_gain=0.994),
        "fp8": Precision(bytes_per_param=1.0, peaks=("fp8", "fp16"), read_gain=0.853, gemm_gain=0.791),
        "int8": Precision(bytes_per_param=1.0, peaks=("int8", "fp16"), read_gain=0.782, gemm_gain=0.697),
        "w8a16": Precision(bytes_per_param=1.02, peaks=("fp16",), read_gain=0.812, gemm_gain=0.849),
        "int4": Precision(bytes_per_param=0.53, peaks=("fp16",), read_gain=0.668, gemm_gain=0.749),
        "q5": Precision(bytes_per_param=0.69, peaks=("fp16",), read_gain=0.667, gemm_gain=0.75),
        "fp4": Precision(bytes_per_param=0.56, peaks=("fp4", "fp8", "fp16"), read_gain=0.7, gemm_gain=0.6),
        "mxfp4": Precision(bytes_per_param=0.53, peaks=("fp16",), read_gain=0.704, gemm_gain=0.7),
    }
)
