"""How much of a data sheet an engine gets, and what it adds of its own: the numbers.

Made by `python -m simulator calibrate --write`: each entry is the most probable value given the
measurements below and the prior in `simulator/calibration/prior.py`. An entry no measurement reads
is the prior: published kernel tables, vendor figures, likeness to a measured row; its sigma is wide.

Fitted to, source (rows): argonne_llm_inference_bench (2144), nvidia_aic_gap (825),
inferencemax_via_aic (727), qwen2.x_speed_benchmark (422), trtllm_docs (360), fastertransformer_gpt
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
            step_s=0.001,
            layer_s=4e-05,
            seq_s=1e-05,
            first_token_s=0.015,
            read_gain=1.0,
            gemm_gain=1.0,
            reduce_gain=1.0,
            expert_layer_s=2.5e-05,
            expert_gain=0.9,
            launch_layer_s=5e-06,
            stream_s=2e-05,
            sigma=0.3,
        ),
        "vllm": Engine(
            step_s=0.000497,
            layer_s=3.24e-05,
            seq_s=4e-06,
            first_token_s=0.012,
            read_gain=0.979,
            gemm_gain=0.995,
            reduce_gain=0.855,
            expert_layer_s=2.46e-05,
            expert_gain=0.892,
            launch_layer_s=5e-06,
            stream_s=2.49e-05,
            sigma=0.215,
        ),
        "vllm-2024": Engine(
            step_s=0.00201,
            layer_s=3.62e-05,
            seq_s=3.05e-05,
            first_token_s=0.015,
            read_gain=0.999,
            gemm_gain=0.998,
            reduce_gain=1.01,
            expert_layer_s=2.5e-05,
            expert_gain=0.9,
            launch_layer_s=5e-06,
            stream_s=2e-05,
            sigma=0.152,
        ),
        "vllm-2023": Engine(
            step_s=0.00828,
            layer_s=3e-05,
            seq_s=6.1e-05,
            first_token_s=0.0187,
            read_gain=0.999,
            gemm_gain=0.967,
            reduce_gain=1.02,
            expert_layer_s=2.5e-05,
            expert_gain=0.9,
            launch_layer_s=0.000212,
            stream_s=2e-05,
            sigma=0.104,
        ),
        "tensorrt-llm": Engine(
            step_s=0.000307,
            layer_s=2.98e-05,
            seq_s=4.03e-06,
            first_token_s=0.008,
            read_gain=1.0,
            gemm_gain=0.993,
            reduce_gain=0.617,
            expert_layer_s=2.59e-05,
            expert_gain=0.895,
            launch_layer_s=5e-06,
            stream_s=7.58e-05,
            sigma=0.151,
        ),
        "tensorrt-llm-2024": Engine(
            step_s=0.000306,
            layer_s=3.23e-05,
            seq_s=1.01e-05,
            first_token_s=0.00159,
            read_gain=0.991,
            gemm_gain=0.995,
            reduce_gain=0.814,
            expert_layer_s=2.5e-05,
            expert_gain=0.904,
            launch_layer_s=5e-06,
            stream_s=2e-06,
            sigma=0.25,
        ),
        "sglang": Engine(
            step_s=0.000501,
            layer_s=3.23e-05,
            seq_s=4.02e-06,
            first_token_s=0.012,
            read_gain=1.0,
            gemm_gain=1.0,
            reduce_gain=0.856,
            expert_layer_s=2.56e-05,
            expert_gain=0.892,
            launch_layer_s=5e-06,
            stream_s=3.39e-05,
            sigma=0.181,
        ),
        "lmdeploy": Engine(
            step_s=0.000503,
            layer_s=3.23e-05,
            seq_s=9.89e-06,
            first_token_s=0.00829,
            read_gain=1.02,
            gemm_gain=1.05,
            reduce_gain=1.0,
            expert_layer_s=2.5e-05,
            expert_gain=0.9,
            launch_layer_s=5e-06,
            stream_s=2e-05,
            sigma=0.169,
        ),
        "fastertransformer": Engine(
            step_s=0.000524,
            layer_s=5.28e-05,
            seq_s=5.03e-06,
            first_token_s=0.00305,
            read_gain=0.975,
            gemm_gain=0.958,
            reduce_gain=1.06,
            expert_layer_s=2.5e-05,
            expert_gain=0.9,
            launch_layer_s=5e-06,
            stream_s=2.02e-05,
            sigma=0.199,
        ),
        "transformers": Engine(
            step_s=0.00264,
            layer_s=5.8e-05,
            seq_s=5e-06,
            first_token_s=0.005,
            read_gain=0.994,
            gemm_gain=0.999,
            reduce_gain=1.0,
            expert_layer_s=2.5e-05,
            expert_gain=0.9,
            launch_layer_s=0.00045,
            stream_s=2e-05,
            sigma=0.6,
        ),
        "megatron": Engine(
            step_s=0.0031,
            layer_s=5.14e-05,
            seq_s=5e-06,
            first_token_s=0.0103,
            read_gain=0.999,
            gemm_gain=0.951,
            reduce_gain=1.01,
            expert_layer_s=2.5e-05,
            expert_gain=0.9,
            launch_layer_s=0.000717,
            stream_s=2e-05,
            sigma=0.292,
        ),
        "deepspeed": Engine(
            step_s=0.00205,
            layer_s=5.15e-05,
            seq_s=2.02e-05,
            first_token_s=0.01,
            read_gain=0.993,
            gemm_gain=0.997,
            reduce_gain=1.01,
            expert_layer_s=2.5e-05,
            expert_gain=0.901,
            launch_layer_s=0.000102,
            stream_s=2e-05,
            sigma=0.359,
        ),
        "llamacpp": Engine(
            step_s=0.000902,
            layer_s=5.3e-05,
            seq_s=0.000281,
            first_token_s=0.005,
            read_gain=0.978,
            gemm_gain=0.501,
            reduce_gain=1.0,
            expert_layer_s=2.5e-05,
            expert_gain=0.9,
            launch_layer_s=5e-06,
            stream_s=2e-05,
            sigma=0.6,
        ),
    }
)

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        DEFAULT: Family(read=0.7, kv=0.65, gemm=0.5, attention=0.3, sigma=0.4, host=1.0),
        "ampere": Family(read=0.857, kv=0.812, gemm=0.689, attention=0.452, sigma=0.1, host=1.34),
        "hopper": Family(read=0.878, kv=0.819, gemm=0.655, attention=0.447, sigma=0.1, host=0.998),
        "ada": Family(read=0.879, kv=0.8, gemm=0.649, attention=0.45, sigma=0.15, host=1.0),
        "blackwell": Family(read=0.8, kv=0.75, gemm=0.6, attention=0.4, sigma=0.25, host=1.0),
        "hopper-capped": Family(read=0.86, kv=0.8, gemm=0.495, attention=0.349, sigma=0.15, host=0.997),
        "h20": Family(read=0.45, kv=0.45, gemm=0.75, attention=0.5, sigma=0.4, host=1.0),
        "volta": Family(read=0.81, kv=0.7, gemm=0.55, attention=0.25, sigma=0.25, host=1.38),
        "turing": Family(read=0.78, kv=0.65, gemm=0.45, attention=0.2, sigma=0.3, host=1.4),
        "cdna": Family(read=0.7, kv=0.65, gemm=0.45, attention=0.3, sigma=0.3, host=1.0),
        "ascend": Family(read=0.6, kv=0.55, gemm=0.5, attention=0.3, sigma=0.45, host=1.0),
        "kunlun": Family(read=0.55, kv=0.5, gemm=0.45, attention=0.25, sigma=0.5, host=1.0),
        "cpu": Family(read=0.6, kv=0.5, gemm=0.4, attention=0.2, sigma=0.8, host=1.0),
    }
)

LINKS: Final[Mapping[str, Link]] = MappingProxyType(
    {
        DEFAULT: Link(latency_s=1.5e-05, hop_s=4e-06, share=0.5, small_share=0.35),
        "nvlink": Link(latency_s=5.15e-06, hop_s=1.71e-06, share=0.693, small_share=0.34),
        "infinity-fabric": Link(latency_s=1e-05, hop_s=2.5e-06, share=0.6, small_share=0.35),
        "hccs": Link(latency_s=1.5e-05, hop_s=4e-06, share=0.6, small_share=0.35),
        "pcie": Link(latency_s=1.51e-05, hop_s=6.03e-06, share=0.501, small_share=0.401),
    }
)

PRECISIONS: Final[Mapping[str, Precision]] = MappingProxyType(
    {
        "fp32": Precision(
            bytes_per_param=4.0, peaks=("fp16",), read_gain=1.0, gemm_gain=0.25, expert_gain=1.0, layer_s=1e-06
        ),
        "fp16": Precision(
            bytes_per_param=2.0, peaks=("fp16",), read_gain=0.994, gemm_gain=0.927, expert_gain=1.0, layer_s=1e-06
        ),
        "bf16": Precision(
            bytes_per_param=2.0, peaks=("bf16", "fp16"), read_gain=0.966, gemm_gain=1.0, expert_gain=1.0, layer_s=1e-06
        ),
        "fp8": Precision(
            bytes_per_param=1.0,
            peaks=("fp8", "fp16"),
            read_gain=0.959,
            gemm_gain=0.891,
            expert_gain=0.999,
            layer_s=4e-06,
        ),
        "fp8-block": Precision(
            bytes_per_param=1.0,
            peaks=("fp8", "fp16"),
            read_gain=0.917,
            gemm_gain=0.744,
            expert_gain=0.98,
            layer_s=8.12e-06,
        ),
        "int8": Precision(
            bytes_per_param=1.0,
            peaks=("int8", "fp16"),
            read_gain=0.792,
            gemm_gain=0.699,
            expert_gain=1.0,
            layer_s=1e-06,
        ),
        "w8a16": Precision(
            bytes_per_param=1.02, peaks=("fp16",), read_gain=0.8, gemm_gain=0.85, expert_gain=1.0, layer_s=1e-06
        ),
        "int4": Precision(
            bytes_per_param=0.53, peaks=("fp16",), read_gain=0.65, gemm_gain=0.75, expert_gain=1.0, layer_s=1e-06
        ),
        "awq": Precision(
            bytes_per_param=0.53,
            peaks=("fp16",),
            read_gain=0.65,
            gemm_gain=0.75,
            expert_gain=1.0,
            layer_s=1e-06,
            launch_gain=1.35,
        ),
        "q4": Precision(
            bytes_per_param=0.562, peaks=("fp16",), read_gain=1.03, gemm_gain=0.75, expert_gain=1.0, layer_s=9.97e-07
        ),
        "q5": Precision(
            bytes_per_param=0.688, peaks=("fp16",), read_gain=1.01, gemm_gain=0.75, expert_gain=1.0, layer_s=9.99e-07
        ),
        "q8": Precision(
            bytes_per_param=1.06, peaks=("fp16",), read_gain=0.986, gemm_gain=0.75, expert_gain=1.0, layer_s=1e-06
        ),
        "fp4": Precision(
            bytes_per_param=0.56,
            peaks=("fp4", "fp8", "fp16"),
            read_gain=0.7,
            gemm_gain=0.6,
            expert_gain=1.0,
            layer_s=1e-06,
        ),
        "mxfp4": Precision(
            bytes_per_param=0.53, peaks=("fp16",), read_gain=0.7, gemm_gain=0.699, expert_gain=0.997, layer_s=1e-06
        ),
    }
)
