"""The tables before any measurement was fitted: what a fit starts from, so that what is left out is not in it.

Sources: data sheets, published kernel and all-reduce tables, and likeness. Must not depend on the fitted tables.

Most was set before the first fit. What follows was set, or set anew, after a look at errors on left-out sources, so
those errors are somewhat kinder than a stranger's would be:

    here          ``host`` of Ampere, Volta, Turing      chosen on these data (processors of older nodes are slower)
                  first token of TensorRT-LLM 2024       its benchmarks run in-process, without a server
                  ``launch_layer_s`` of eager engines    15 to 30 launches of 8 to 20 us; the split chosen on these data
                  ``eager_layer_s`` of today's engines   what a prompt of 1,024 tokens adds on eight cards, read off
                                                         these data: 0.45 ms a layer in TensorRT-LLM 1.0, others less
                  ``latent_layer_s`` 25 us               five or six more kernels of 4 to 6 us; seen to help p90
                  AWQ and GPTQ of 8 bits launch 1.35     Qwen2.5's table of transformers: no longer left out in truth
                  FP8 and FP8 with blocks                shares and ``layer_s`` chosen on these data
                  ``stream_s`` of servers                chosen on these data
                  ``seq_s`` of today's engines 10 us     4 us before, with a narrower spread; made no difference
                  ``reduce_gain`` of vLLM, SGLang, TRT   one-shot all-reduce kernels; the factors chosen on these data
                  ``expert_gain``, ``expert_layer_s``    chosen on these data (40 instead of 25 us did little better)
                  ``expert_gemm_gain`` of vLLM           what 7,000 further prompt tokens cost MiniMax-M2 and gpt-oss
                  ``first_expert_layer_s``               first tokens at low load of half A
                  ``linear_layer_s``, ``expert_launch``  Qwen3.5 and Qwen2-57B in transformers, of half A
                  cdna, ponte-vecchio, gaudi, Triton,    no measurement here: from their software as described below, of
                  FP4 experts, FP8 of 2024               a size that reported biases ask for
                  llama.cpp: ``read_gain``, q4, q5, q8   bytes from ggml's blocks; shares after chatglm.cpp's errors and
                                                         an RTX 3090's 155 tokens/s of an 8B Q4_0, 77 % of its sheet
                                                         (llama.cpp pull request 15802): no longer left out in truth
    router.core   ``EXPERT_EVENNESS`` 0.5, tile 64       best of 0.3, 0.5, 1, 2, 8; the median of the TPOT by 0.3 points
                  ``roof_power`` 2.5                     best of 2, 2.5, 3, 4 by left-out source; 2, 2.5, 3 by card
                  a launch joins a prompt's work by      best of the maximum, power 2 and power 2.5; 2 is the cheapest
                  power 2
    fit           spreads, trust 0.3                     judgement; noise 0.15 did no better
                  source weight 10                       3 before: by the half of all configurations that was left out
                                                         20 is better than 3 for TPOT (5.8 % against 6.1), first tokens
                                                         (11.5 against 13.1) and requests (8.6 against 11.2), worse for
                                                         latent attention (13.3 against 10.3)
    expect        warm-up share 0.1                      load generators send about ten requests a user
                  ``GROUP_TOKENS`` 1024                  best of 512, 1024, 2048, by 0.1 points of the median
                  who puts prompts first                 documented schedulers; that it is no rule for vLLM V1 and
                                                         TensorRT-LLM was tried too, and did worse
    measurements  TP over EP, KV in FP8                  the rows contradicted themselves; the reasons stand there
    bands         a prior worth one source; 30 votes a   the shares of left-out errors that bands hold: 89.8 % against
                  source; sigma 0.6 of llama.cpp         88.2 % with 100 votes, and 83 % by rows alone
    among         contradiction at 1.5                   far above the noise of real engines (15 % near saturation);
                                                         1.3 was looked at and leaves out 14 more
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from router.core.efficiency import EngineEfficiency, Family, Link, Precision

DEFAULT: Final = "default"

# An eager engine (no CUDA graphs) launches a layer's 15 to 30 kernels from Python at 8 to 20 us each.
# Eras and overheads: fixed cost a layer 30-35 us and a step 0.1-1 ms in current engines (attention
# kernel floor 13-14 us, norm, rope, activation and add 17-21 us); Llama-70B TP8 on H100 takes
# 30.5 ms with a 2023 vLLM and 13.8 ms with 0.6.
ENGINES: Final[Mapping[str, EngineEfficiency]] = MappingProxyType({
    DEFAULT: EngineEfficiency(1.0e-3, 40e-6, 10e-6, 15e-3, sigma=0.30),
    "vllm": EngineEfficiency(0.5e-3, 32e-6, 10e-6, 12e-3, reduce_gain=0.85, stream_s=25e-6, eager_layer_s=80e-6,
        expert_gemm_gain=0.5),
    # vLLM of 2024 quantises the activations of FP8 before each of four products: about 26 us a layer
    "vllm-2024": EngineEfficiency(2.0e-3, 36e-6, 30e-6, 15e-3, eager_layer_s=100e-6, quantise_gain=6.5),
    "vllm-2023": EngineEfficiency(
        8.0e-3, 30e-6, 60e-6, 20e-3, launch_layer_s=200e-6, eager_layer_s=5e-6, quantise_gain=6.5, sigma=0.20
    ),
    "tensorrt-llm": EngineEfficiency(0.3e-3, 28e-6, 10e-6, 8e-3, reduce_gain=0.6, stream_s=60e-6, eager_layer_s=300e-6,
        first_expert_layer_s=1.5e-3),
    # TensorRT-LLM's benchmarks of 2024 and before run in-process: no server
    "tensorrt-llm-2024": EngineEfficiency(
        0.3e-3, 30e-6, 10e-6, 1.5e-3, reduce_gain=0.8, stream_s=2e-6, eager_layer_s=20e-6
    ),
    # Triton streams each token through an ensemble of models (tokenizer, engine, detokenizer in Python) and a server of
    # its own: some 1.3 ms to a step of one sequence, and so much more for every further one
    "triton": EngineEfficiency(
        1.6e-3, 28e-6, 80e-6, 20e-3, reduce_gain=0.6, stream_s=60e-6, eager_layer_s=300e-6, sigma=0.25
    ),
    "sglang": EngineEfficiency(0.5e-3, 32e-6, 10e-6, 12e-3, reduce_gain=0.85, stream_s=30e-6, eager_layer_s=150e-6,
        first_expert_layer_s=3e-3),
    "lmdeploy": EngineEfficiency(0.5e-3, 32e-6, 10e-6, 8e-3, eager_layer_s=20e-6, sigma=0.20),
    "fastertransformer": EngineEfficiency(0.5e-3, 45e-6, 5e-6, 3e-3, eager_layer_s=20e-6, sigma=0.20),
    "transformers": EngineEfficiency(3.0e-3, 60e-6, 5e-6, 5e-3, launch_layer_s=650e-6, eager_layer_s=5e-6, sigma=0.35,
        expert_launch_s=120e-6),
    "megatron": EngineEfficiency(3.0e-3, 50e-6, 5e-6, 10e-3, launch_layer_s=500e-6, eager_layer_s=5e-6, sigma=0.35),
    "deepspeed": EngineEfficiency(2.0e-3, 50e-6, 20e-6, 10e-3, launch_layer_s=100e-6, eager_layer_s=5e-6, sigma=0.30),
    # llama.cpp: one sampler on the CPU, which sorts a vocabulary for each sequence in turn. Of 2024: a decode step is
    # launched kernel by kernel, about 30 a layer; since then a CUDA graph
    "llamacpp": EngineEfficiency(1.0e-3, 40e-6, 100e-6, 5e-3, read_gain=0.95, gemm_gain=0.62, sigma=0.60),
    "llamacpp-2024": EngineEfficiency(1.0e-3, 110e-6, 100e-6, 5e-3, read_gain=0.95, gemm_gain=0.50, sigma=0.60),
})  # fmt: skip

# Shares of the sheet. Ampere and Hopper from A100/H100 decode and prefill tables (prefill MFU
# .65-.78 and .62-.75). H20: published runs show 0.32 of its bandwidth, engines' overheads included; what the card
# itself gives is unchecked, hence the wide sigma. The rest by likeness, unchecked.
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
    # AMD: rocm-bandwidth tests give 0.81 of MI300X's sheet, hipBLASLt about half of its compute. Kernels of vLLM of
    # 2024 were ported from CUDA: attention reads KV once a query head (paged_attention v1 and v2), gaps between
    # launches are about twice as long, and the time of small kernels grows with the sequences
    "cdna": Family(0.70, 0.50, 0.40, 0.25, sigma=0.35, kernel=1.6, seq=3.0),
    "cdna-2024": Family(0.66, 0.25, 0.30, 0.15, sigma=0.50, host=1.1, kernel=2.0, seq=8.0),
    "rdna": Family(0.70, 0.40, 0.45, 0.20, sigma=0.50, kernel=1.6, seq=3.0),
    # Gaudi's compiler fuses a layer into few launches and replays them; memory and matrix units come near their sheets
    "gaudi": Family(0.85, 0.75, 0.70, 0.40, sigma=0.40, kernel=0.5),
    # Intel: nothing is replayed as a graph, a launch through SYCL takes 40 to 80 us, and a layer has 30; attention runs
    # as general products over gathered KV
    "ponte-vecchio": Family(0.45, 0.08, 0.12, 0.05, sigma=0.60, kernel=3.0, seq=5.0, launch_layer_s=2.0e-3),
    "xe": Family(0.60, 0.15, 0.25, 0.08, sigma=0.60, kernel=3.0, seq=4.0, launch_layer_s=0.8e-3),
    # GeForce: boost clocks above the listed one, so nearly all of the listed compute with FP32 accumulation
    "geforce-ampere": Family(0.88, 0.80, 0.95, 0.50, sigma=0.25),
    "geforce-ada": Family(0.88, 0.80, 0.95, 0.50, sigma=0.25),
    "geforce-blackwell": Family(0.85, 0.78, 0.95, 0.50, sigma=0.30),
    "ascend": Family(0.60, 0.55, 0.50, 0.30, sigma=0.45),
    "kunlun": Family(0.55, 0.50, 0.45, 0.25, sigma=0.50),
    "cpu": Family(0.60, 0.50, 0.40, 0.20, sigma=0.80),
})  # fmt: skip

# NCCL all-reduce of 2 KiB: H100 8, 11, 16 us and H200 6, 9, 16 us at 2, 4, 8 cards; V100 over PCIe
# 13 and 24 us at 2 and 4 (apex_plus tables). Infinity Fabric and HCCS by likeness, unchecked.
LINKS: Final[Mapping[str, Link]] = MappingProxyType({
    DEFAULT: Link(15e-6, 4e-6, 0.5),
    "nvlink": Link(5e-6, 1.6e-6, 0.75, 0.35),
    "infinity-fabric": Link(10e-6, 2.5e-6, 0.6),
    "hccs": Link(15e-6, 4e-6, 0.6),
    "roce": Link(8e-6, 1e-6, 0.6),  # Gaudi: each chip linked to every other, no switch and no ring
    "pcie": Link(15e-6, 6e-6, 0.5, 0.4),
})  # fmt: skip

PRECISIONS: Final[Mapping[str, Precision]] = MappingProxyType({
    "fp32": Precision(4.0, ("fp16",), 1.0, 0.25),
    "fp16": Precision(2.0, ("fp16",), 1.0, 1.0),
    "bf16": Precision(2.0, ("bf16", "fp16"), 1.0, 1.0),
    "fp8": Precision(1.0, ("fp8", "fp16"), 0.93, 0.90, layer_s=4e-6),
    "fp8-block": Precision(1.0, ("fp8", "fp16"), 0.92, 0.75, layer_s=8e-6),
    "int8": Precision(1.0, ("int8", "fp16"), 0.80, 0.70),
    "w8a16": Precision(1.02, ("fp16",), 0.80, 0.85, launch_gain=1.35),
    "int4": Precision(0.53, ("fp16",), 0.65, 0.75),
    # AWQ, and GPTQ of 8 bits, have no fused kernel in an eager engine: they unpack in launches of their own
    "awq": Precision(0.53, ("fp16",), 0.65, 0.75, launch_gain=1.35),
    # ggml multiplies in 8-bit integers or in FP16 accumulated in FP16: GeForce cards do either at twice their listed
    # FP16, so prompts run at 0.9 to 1.35 of that
    "f16": Precision(2.0, ("fp16-accumulate", "fp16"), 1.0, 1.0),
    "q4": Precision(0.5625, ("fp16-accumulate", "fp16"), 1.0, 1.0),
    "q5": Precision(0.6875, ("fp16-accumulate", "fp16"), 1.0, 0.9),
    "q8": Precision(1.0625, ("fp16-accumulate", "fp16"), 1.0, 1.0),
    # block scales are applied by the matrix units themselves: what is read is unpacked at no cost, and a dense product
    # waits for activations to be quantised, 5 us a layer; experts' activations are quantised once for all
    "fp4": Precision(0.56, ("fp4", "fp8", "fp16"), 0.80, 0.60, expert_gain=1.35, layer_s=5e-6),
    "mxfp4": Precision(0.53, ("fp16",), 0.70, 0.70),
})  # fmt: skip
