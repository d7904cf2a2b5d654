"""How much of a data sheet an engine gets, and what it adds of its own: the efficiency tables.

Believes: numbers from published measurements of real engines, keyed by card family, precision,
link and engine era, each with a relative error. Must not know: any particular backend (that is
learnt in `belief.py`) or how the terms are put together (`physics.py`).

Names of an engine are ``family`` or ``family-era`` ("vllm", "vllm-2023"); one never seen gets
the default row, whose errors are wide. A card family or precision never seen likewise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from router.core.step import Number


@dataclass(frozen=True, slots=True)
class Engine:
    """What one engine era costs beside the roofline.

    ``step_s``: scheduler and launch, a step; ``layer_s``: kernels that neither bandwidth nor
    compute explains, a layer; ``seq_s``: sampling and bookkeeping, a decoding sequence;
    ``first_token_s``: API server, tokenizer and first scheduling, outside any step;
    ``read_gain``, ``gemm_gain``: factors on the family's efficiencies; ``reduce_gain``: factor on
    the link's all-reduce latency; ``expert_layer_s``: routing and grouping, a layer with experts;
    ``expert_gain``: factor on shares for experts' weights and GEMM; ``sigma``: relative
    error of a step predicted with this row.
    """

    step_s: float
    layer_s: float
    seq_s: float
    first_token_s: float
    read_gain: float = 1.0
    gemm_gain: float = 1.0
    reduce_gain: float = 1.0
    expert_layer_s: float = 15e-6
    expert_gain: float = 0.8
    sigma: float = 0.15


@dataclass(frozen=True, slots=True)
class Family:
    """Share of the sheet's bandwidth and compute that one card architecture gives.

    ``read``: weights; ``kv``: KV cache; ``gemm`` and ``attention``: of dense 16-bit peak;
    ``sigma``: relative error of those shares.
    """

    read: float
    kv: float
    gemm: float
    attention: float
    sigma: float


@dataclass(frozen=True, slots=True)
class Link:
    """One all-reduce among ``n`` cards: ``latency_s + hop_s * n + 2 (n-1)/n * bytes / (bandwidth * share)``."""

    latency_s: float
    hop_s: float
    share: float


@dataclass(frozen=True, slots=True)
class Precision:
    """How weights of one precision are stored and computed with.

    ``bytes_per_param`` includes group scales; ``peaks``: the sheet's entries to compute with, best
    first; ``read_gain``, ``gemm_gain``: factors on the family's shares (dequantisation, kernels).
    """

    bytes_per_param: float
    peaks: tuple[str, ...]
    read_gain: float
    gemm_gain: float


DEFAULT: Final = "default"

# Eras and overheads: fixed cost a layer 30-35 us and a step 0.1-1 ms in current engines (attention
# kernel floor 13-14 us, norm, rope, activation and add 17-21 us); Llama-70B TP8 on H100 takes
# 30.5 ms with a 2023 vLLM and 13.8 ms with 0.6.
ENGINES: Final[Mapping[str, Engine]] = MappingProxyType({
    DEFAULT: Engine(1.0e-3, 40e-6, 10e-6, 15e-3, sigma=0.30),
    "vllm": Engine(0.5e-3, 32e-6, 4e-6, 12e-3),
    "vllm-2024": Engine(2.0e-3, 36e-6, 30e-6, 15e-3),
    "vllm-2023": Engine(8.0e-3, 150e-6, 60e-6, 20e-3, sigma=0.20),
    "tensorrt-llm": Engine(0.3e-3, 28e-6, 4e-6, 8e-3),
    "sglang": Engine(0.5e-3, 32e-6, 4e-6, 12e-3),
    "lmdeploy": Engine(0.5e-3, 32e-6, 10e-6, 8e-3, sigma=0.20),
    "fastertransformer": Engine(0.5e-3, 45e-6, 5e-6, 3e-3, sigma=0.20),
    "transformers": Engine(3.0e-3, 700e-6, 5e-6, 5e-3, sigma=0.35),
    "deepspeed": Engine(2.0e-3, 80e-6, 20e-6, 10e-3, sigma=0.30),
    "llamacpp": Engine(1.0e-3, 60e-6, 300e-6, 5e-3, read_gain=0.75, gemm_gain=0.5, sigma=0.35),
})  # fmt: skip

# Shares of the sheet. Ampere and Hopper from A100/H100 decode and prefill tables (prefill MFU
# .65-.78 and .62-.75); H20 shows 0.32 of its bandwidth in published runs; the rest by likeness.
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType({
    DEFAULT: Family(0.70, 0.65, 0.50, 0.30, sigma=0.40),
    "ampere": Family(0.88, 0.80, 0.70, 0.45, sigma=0.10),
    "hopper": Family(0.88, 0.82, 0.66, 0.45, sigma=0.10),
    "ada": Family(0.88, 0.80, 0.65, 0.45, sigma=0.15),
    "blackwell": Family(0.80, 0.75, 0.60, 0.40, sigma=0.25),
    "h20": Family(0.45, 0.45, 0.75, 0.50, sigma=0.40),
    "volta": Family(0.80, 0.70, 0.55, 0.25, sigma=0.25),
    "turing": Family(0.78, 0.65, 0.45, 0.20, sigma=0.30),
    "cdna": Family(0.70, 0.65, 0.45, 0.30, sigma=0.30),
    "ascend": Family(0.60, 0.55, 0.50, 0.30, sigma=0.45),
    "kunlun": Family(0.55, 0.50, 0.45, 0.25, sigma=0.50),
    "cpu": Family(0.60, 0.50, 0.40, 0.20, sigma=0.80),
})  # fmt: skip

# NCCL all-reduce of small messages: H100 and H200 8, 11, 17 us at 2, 4, 8 cards; V100 over PCIe
# 14 and 26 us at 2 and 4 (apex_plus tables).
LINKS: Final[Mapping[str, Link]] = MappingProxyType({
    DEFAULT: Link(15e-6, 4e-6, 0.5),
    "nvlink": Link(5e-6, 1.6e-6, 0.8),
    "infinity-fabric": Link(10e-6, 2.5e-6, 0.6),
    "hccs": Link(15e-6, 4e-6, 0.6),
    "pcie": Link(15e-6, 6e-6, 0.5),
})  # fmt: skip

PRECISIONS: Final[Mapping[str, Precision]] = MappingProxyType({
    "fp32": Precision(4.0, ("fp16",), 1.0, 0.25),
    "fp16": Precision(2.0, ("fp16",), 1.0, 1.0),
    "bf16": Precision(2.0, ("bf16", "fp16"), 1.0, 1.0),
    "fp8": Precision(1.0, ("fp8", "fp16"), 0.85, 0.80),
    "int8": Precision(1.0, ("int8", "fp16"), 0.80, 0.70),
    "w8a16": Precision(1.02, ("fp16",), 0.80, 0.85),
    "int4": Precision(0.53, ("fp16",), 0.65, 0.75),
    "fp4": Precision(0.56, ("fp4", "fp8", "fp16"), 0.70, 0.60),
    "mxfp4": Precision(0.53, ("fp16",), 0.70, 0.70),
})  # fmt: skip

_PRECISION_ALIASES: Final[Mapping[str, str]] = MappingProxyType({
    "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "fp16/bf16": "bf16", "f16": "fp16",
    "float32": "fp32", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "w8a8": "int8", "gptq-int8": "w8a16",
    "awq": "int4", "gptq": "int4", "gptq-int4": "int4", "w4a16": "int4", "int4(w4a16)": "int4", "nvfp4": "fp4",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What one combination of engine, card family, link and precision gets of the roofline, and adds.

    Shares of the sheet: ``read``, ``kv``, ``gemm``, ``attention``, ``link_share`` and, of routed
    experts, ``experts_read`` and ``experts_gemm``. Seconds added: ``step_s``, ``layer_s``,
    ``expert_layer_s``, ``seq_s``, ``first_token_s`` and, an all-reduce, ``reduce_s`` plus
    ``reduce_card_s`` a card. Arrays over many work as well as floats.
    """

    read: float
    experts_read: float
    kv: float
    gemm: float
    experts_gemm: float
    attention: float
    link_share: float
    step_s: float
    layer_s: float
    expert_layer_s: float
    seq_s: float
    first_token_s: float
    reduce_s: float
    reduce_card_s: float
    sigma: float


def efficiency(engine_name: str, family_name: str, link_name: str, stored: str) -> Efficiency:
    """The rows of the tables for these keys, put together; shares never exceed the sheet."""
    return compose(engine(engine_name), family(family_name), link(link_name), precision(stored))


def _share(product: Number) -> Any:
    """No more than the sheet (a float, or an array element by element)."""
    return min(product, 1.0) if isinstance(product, float) else np.minimum(product, 1.0)


def compose(costs: Engine, shares: Family, wire: Link, form: Precision) -> Efficiency:
    """Rows put together by multiplication; a share never exceeds the sheet. Rows of arrays give arrays."""
    read = _share(shares.read * form.read_gain * costs.read_gain)
    gemm = _share(shares.gemm * form.gemm_gain * costs.gemm_gain)
    return Efficiency(
        read=read,
        experts_read=_share(read * costs.expert_gain),
        kv=_share(shares.kv * costs.read_gain),
        gemm=gemm,
        experts_gemm=_share(gemm * costs.expert_gain),
        attention=_share(shares.attention * costs.gemm_gain),
        link_share=wire.share,
        step_s=costs.step_s,
        layer_s=costs.layer_s,
        expert_layer_s=costs.expert_layer_s,
        seq_s=costs.seq_s,
        first_token_s=costs.first_token_s,
        reduce_s=wire.latency_s * costs.reduce_gain,
        reduce_card_s=wire.hop_s * costs.reduce_gain,
        sigma=float(np.hypot(costs.sigma, shares.sigma)),
    )


def engine(name: str) -> Engine:
    """The row of that engine era, else of its family, else the default with wide errors."""
    key = name.lower()
    return ENGINES.get(key) or ENGINES.get(key.split("-", maxsplit=1)[0]) or ENGINES[DEFAULT]


def family(name: str) -> Family:
    """The shares of that card architecture, else the default with wide errors."""
    return FAMILIES.get(name, FAMILIES[DEFAULT])


def link(name: str) -> Link:
    """The all-reduce of that link, else the default."""
    return LINKS.get(name, LINKS[DEFAULT])


def precision(name: str) -> Precision:
    """How that precision is stored and computed; ValueError lists those there are."""
    key = name.lower()
    found = PRECISIONS.get(_PRECISION_ALIASES.get(key, key))
    if found is None:
        raise ValueError(f"no precision named {name!r}; expected one of {', '.join(PRECISIONS)}")
    return found
