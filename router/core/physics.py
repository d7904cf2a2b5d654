"""Card x model x parallelism x precision -> step seconds, prefill seconds, KV capacity.

Assumes: data sheets, model shapes and the efficiency tables; a step is a sum of terms each linear
in one coefficient (weights read and GEMM meeting in a soft roof), so that what a backend really
does can correct each term by a factor. Must not depend on: any backend's history, queue or clock.

One step with ``n`` prompt tokens, ``b`` decoding sequences holding ``S`` tokens of context:

    read  = (dense weights + experts touched by b + n tokens) / (TP x bandwidth x share)
    gemm  = 2 x active parameters x (b + n) / (TP x FLOP/s x share)
    step  = soft max(read, gemm) + S x KV bytes / (shards x bandwidth x share)
          + attention FLOPs of the prompt + 2 all-reduces a layer + layer, step and sequence overheads

The roofline is the article this project starts from; terms and constants are argued in DESIGN
section 5 and `coefficients.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final

import numpy as np

from router.core.cards import GIB, Card
from router.core.coefficients import efficiency, precision, row_names
from router.core.efficiency import Efficiency
from router.core.errors import DoesNotFit
from router.core.models import Model
from router.core.profile import LEVELS, NO_PROFILE, Correction, Profile
from router.core.step import (
    LINEAR,
    PREFILL_CHUNK_TOKENS,
    Number,
    StepCoefficients,
    StepTerms,
    attention_pairs,
    decode_step_s,
    measured,
    prefill_s,
    speculative_tpot_s,
    step_s,
    step_terms,
)

__all__ = [
    "LINEAR",
    "PREFILL_CHUNK_TOKENS",
    "Ideal",
    "Number",
    "Shape",
    "StepCoefficients",
    "StepTerms",
    "attention_pairs",
    "belongs_to",
    "cards_needed",
    "coefficients",
    "combine",
    "corrected",
    "decode_step_s",
    "ideal",
    "kv_bytes_per_token",
    "kv_capacity_tokens",
    "measured",
    "prefill_s",
    "speculative_tpot_s",
    "step_s",
    "step_terms",
    "weight_bytes",
]


_GGML: Final = frozenset({"llamacpp", "llamacpp-2024"})
"""Engines whose FP16 products are accumulated in FP16: ggml calls cuBLAS so."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an engine is: ``tp`` x ``pp`` cards of one kind holding one model at one precision.

    ``kv_precision`` None means 16-bit KV. ``ep`` is the part of ``tp`` over which experts are dealt whole
    (expert parallelism); the rest cuts each of them. Raises ``DoesNotFit`` when TP does not divide the
    heads or PP exceeds the layers, ValueError for an unknown precision.
    """

    card: Card
    model: Model
    tp: int = 1
    pp: int = 1
    precision: str = "bf16"
    kv_precision: str | None = None
    engine: str = "vllm"
    ep: int = 1

    def __post_init__(self) -> None:
        """Check what every formula below relies on."""
        precision(self.precision), precision(self.kv_precision or "bf16")
        if self.tp < 1 or self.model.heads % self.tp:
            raise DoesNotFit(f"TP {self.tp} does not divide the {self.model.heads} heads of {self.model.name}")
        if not 1 <= self.pp <= self.model.layers:
            raise DoesNotFit(f"PP {self.pp} must be 1 to the {self.model.layers} layers of {self.model.name}")

    @property
    def stored(self) -> str:
        """The precision as the tables name it: FP8 is ``fp8-block`` for a model published with block scales, FP16 is
        ``f16`` in an engine that accumulates it in FP16.
        """
        name = row_names(self.engine, "", "", self.precision)["precision"]
        if name in {"fp16", "f16"}:
            return "f16" if self.engine in _GGML else "fp16"
        return "fp8-block" if name == "fp8" and self.model.block_fp8 else name


# ---- coefficients -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ideal:
    """The roofline of a shape at all of the data sheet: what an engine would take that wasted nothing.

    Arrays over many shapes work as well as floats. ``experts_`` terms are the routed
    experts' part. ``latent_layers``: those with latent attention, ``linear_layers`` with linear;
    ``experts``: those of all layers; ``context_flop_s``: computing a latent's scores for a token of context.
    ``reduces`` counts all-reduces a step; ``reduce_token_s`` is one token's bytes in all of them; ``pair_s``
    one (prompt token, earlier token) pair.
    """

    weights_s: float
    experts_s: float
    expert_share: float
    gemm_token_s: float
    experts_gemm_token_s: float
    context_s: float
    context_flop_s: float
    pair_s: float
    reduces: float
    reduce_token_s: float
    layers: float
    expert_layers: float
    experts: float
    latent_layers: float
    linear_layers: float
    tp: float
    stages: int


def coefficients(shape: Shape, profile: Profile = NO_PROFILE) -> StepCoefficients:
    """The step of *shape* from data sheets and tables, corrected by *profile*, with the error of each term."""
    use, best = efficiency(shape.engine, shape.card.family, shape.card.link, shape.stored), ideal(shape)
    levels = belongs_to(shape)
    sigma = _sigmas(profile.band) if profile.covers(levels) else _sigma(shape, use)
    made, factors = combine(best, use, sigma), profile.factors(levels)
    return corrected(made, best, factors) if factors else made


def belongs_to(shape: Shape) -> tuple[Correction, ...]:
    """What a profile may know of *shape*, in the order of ``LEVELS``."""
    row, model = row_names(shape.engine, shape.card.family, shape.card.link, shape.stored), shape.model
    kind = ("latent" if model.latent_kv else "mixture") if model.experts else "dense"
    setup = f"{shape.card.name} {row['engine']} {shape.stored}"
    names = (row["family"], shape.card.name, row["engine"], shape.stored, kind, model.name, setup)
    return tuple(zip(LEVELS, names, strict=True))


def corrected(c: StepCoefficients, best: Ideal, by: Mapping[str, Number]) -> StepCoefficients:
    """*c* with each of ``TERMS`` times its factor, and no faster than all of the sheet's bandwidth and compute.

    Arrays over many shapes work as well as floats.
    """
    weights_s = _least(c.weights_s * by["read"], best.weights_s)
    gemm_token_s = _least(c.gemm_token_s * by["compute"], best.gemm_token_s + best.experts_gemm_token_s)
    changed: dict[str, Any] = {
        "fixed_s": (c.fixed_s - c.weights_s) * by["overhead"] + weights_s,
        "weights_s": weights_s,
        "experts_s": _least(c.experts_s * by["read"], best.experts_s),
        "seq_s": c.seq_s * by["sequence"],
        "context_s": _least(c.context_s * by["context"], best.context_s),
        "token_s": (c.token_s - c.gemm_token_s) * by["overhead"] + gemm_token_s,
        "gemm_token_s": gemm_token_s,
        "token_context_s": _least(c.token_context_s * by["compute"], best.pair_s),
        "first_token_s": c.first_token_s * by["first_token"],
        "launch_s": c.launch_s * by["overhead"],
        "eager_s": c.eager_s * by["overhead"],
    }
    return replace(c, **changed)


def _least(value: Any, floor: Any) -> Any:
    return max(value, floor) if isinstance(value, float) else np.maximum(value, floor)


def combine(best: Ideal, use: Efficiency, sigma: tuple[float, float, float, float, float, float]) -> StepCoefficients:
    """The roofline divided by the shares an engine gets of it, plus what it adds of its own."""
    weights_s = best.weights_s / use.read
    gemm_token_s = best.gemm_token_s / use.gemm + best.experts_gemm_token_s / use.experts_gemm
    reduce_token_s = best.reduce_token_s / use.link_share
    reduce_s = best.reduces * (use.reduce_s + use.reduce_card_s * best.tp)
    layers_s = use.layer_s * best.layers + use.expert_layer_s * best.expert_layers
    layers_s += use.latent_layer_s * best.latent_layers + use.linear_layer_s * best.linear_layers
    return StepCoefficients(
        fixed_s=weights_s + use.step_s + layers_s + reduce_s,
        seq_s=use.seq_s + best.reduce_token_s / use.small_link_share,
        context_s=_slower(best.context_s / use.kv, best.context_flop_s / use.gemm),
        token_s=gemm_token_s + reduce_token_s,
        token_context_s=best.pair_s / use.attention,
        first_token_s=use.first_token_s + use.first_expert_layer_s * best.expert_layers,
        weights_s=weights_s,
        gemm_token_s=gemm_token_s,
        experts_s=best.experts_s / use.experts_read,
        expert_share=best.expert_share,
        launch_s=use.launch_layer_s * best.layers + use.expert_launch_s * best.experts,
        eager_s=use.eager_layer_s * best.layers,
        stages=best.stages,
        sigma=sigma,
    )


def _slower(read_s: Any, compute_s: Any) -> Any:
    """Reading and computing overlap: a soft maximum, as of weights and GEMM."""
    return (read_s**_ROOF_POWER + compute_s**_ROOF_POWER) ** (1 / _ROOF_POWER)


_ROOF_POWER: Final = 2.5


def ideal(shape: Shape) -> Ideal:
    """The roofline of *shape*: bytes over bandwidth, FLOPs over peak, split over TP."""
    model, card = shape.model, shape.card
    stored = precision(shape.stored)
    dense, experts = _read_bytes(shape)
    bandwidth = shape.tp * card.bandwidth_bytes_per_s
    reduces = 2 * model.layers if shape.tp > 1 else 0
    flop_s = 2 / (shape.tp * _peak_flops_per_s(card, stored.peaks))
    share = model.experts_per_token / (model.experts or 1)
    cut = _expert_cut(shape)
    return Ideal(
        weights_s=dense / bandwidth,
        experts_s=experts / bandwidth * cut,
        expert_share=share,
        gemm_token_s=flop_s * (_gemm_params(model) - share * model.expert_params),
        experts_gemm_token_s=flop_s * share * model.expert_params * cut,
        context_s=_context_bytes(shape) / card.bandwidth_bytes_per_s,
        context_flop_s=_latent_flops(shape) / _peak_flops_per_s(card, ("bf16", "fp16")),
        pair_s=_attention_flops_per_pair(model) / (shape.tp * _peak_flops_per_s(card, ("bf16", "fp16"))),
        reduces=reduces,
        reduce_token_s=reduces * _reduce_bytes(shape) / card.link_bytes_per_s,
        layers=model.layers,
        expert_layers=model.layers if model.experts else 0,
        experts=model.layers * model.experts,
        latent_layers=model.layers if model.latent_kv else 0,
        linear_layers=model.layers * model.linear_share,
        tp=shape.tp,
        stages=shape.pp,
    )


_TILE: Final = 64.0
"""Columns a slice of an expert loses to filling and draining a kernel; chosen on measured engines alone."""


def _expert_cut(shape: Shape) -> float:
    """How much longer a grouped GEMM takes for narrow slices of experts: 1 + tile / width of a slice.

    TP cuts each expert to ``ffn / TP`` columns (DeepSeek-V3 at TP8: 256), and each slice fills and
    drains a tile of the kernel; experts dealt whole stay wide.
    """
    model = shape.model
    if not model.experts or not model.ffn:
        return 1.0
    return 1.0 + _TILE * max(1.0, shape.tp / shape.ep) / model.ffn


def _gemm_params(model: Model) -> float:
    """Parameters one token multiplies with: the active ones less the input table, which is looked up."""
    return model.active_params - model.embedding_params


def _read_bytes(shape: Shape) -> tuple[float, float]:
    """Bytes of weights a step reads: (every step, all routed experts); the output head stays 16-bit when quantised."""
    model, each = shape.model, precision(shape.stored).bytes_per_param
    head = float(model.vocab * model.hidden)
    body = model.params - model.expert_params - model.embedding_params - head
    return body * each + head * max(each, 2.0), model.expert_params * each


def _context_bytes(shape: Shape) -> float:
    """Bytes a rank reads for one token's KV: a latent (MLA) is on every rank, heads are split at most once each."""
    model = shape.model
    shards = 1 if model.latent_kv else min(shape.tp, model.kv_heads)
    return kv_bytes_per_token(shape) * (1 - model.windowed_share) / shards


def kv_bytes_per_token(shape: Shape) -> float:
    """Bytes of KV one token holds over all layers and heads, at the shape's KV precision."""
    return shape.model.kv_bytes_per_token * precision(shape.kv_precision or "bf16").bytes_per_param / 2


def _peak_flops_per_s(card: Card, peaks: tuple[str, ...]) -> float:
    """The sheet's compute at the first of *peaks* the card has; else the slowest it has."""
    return next((card.flops_per_s[name] for name in peaks if name in card.flops_per_s), min(card.flops_per_s.values()))


_ROPE: Final = 64.0
_LATENT_ROW: Final = 576.0 + 512.0
_HEADS_TILE: Final = 64


def _attention_flops_per_pair(model: Model) -> float:
    """QK^T and PV, a multiply and an add each: 4 x head size x heads x layers that see the whole context.

    Latent attention has 64 more elements in QK^T, for the position (DeepSeek-V2, arXiv 2405.04434).
    """
    head = model.head_dim + (_ROPE / 2 if model.latent_kv else 0.0)
    return 4.0 * head * model.heads * model.layers * (1 - model.windowed_share)


def _latent_flops(shape: Shape) -> float:
    """FLOPs of a rank for a token of latent context: every head scores all 576 elements of it and sums up 512.

    Heads share what is read, so 128 heads do 242 FLOPs a byte, and computing may bind before reading. Kernels work on
    tiles of 64 heads, also where TP leaves a rank fewer (FlashMLA, github.com/deepseek-ai/FlashMLA).
    """
    model = shape.model
    if not model.latent_kv:
        return 0.0
    heads = ceil(model.heads / shape.tp / _HEADS_TILE) * _HEADS_TILE
    return 2.0 * heads * _LATENT_ROW * model.layers * (1 - model.windowed_share)


def _reduce_bytes(shape: Shape) -> float:
    """Bytes a card sends for one token in one all-reduce: a ring moves 2 (n-1)/n of the 16-bit message."""
    return 2.0 * shape.model.hidden * 2 * (shape.tp - 1) / shape.tp


_CONFIDENCE_SIGMA: Final = {"A": 0.05, "B": 0.10, "C": 0.25, "D": 0.50, "E": 1.0}


def _sigma(shape: Shape, use: Efficiency) -> tuple[float, float, float, float, float, float]:
    """Relative error of each of ``LINEAR``: table and sheet errors are independent and add as squares."""
    sheet = max(_CONFIDENCE_SIGMA.get(grade, 0.5) for grade in (shape.card.confidence, shape.model.confidence))
    return _sigmas(float(np.hypot(use.sigma, sheet)))


def _sigmas(whole: float) -> tuple[float, float, float, float, float, float]:
    """Of each of ``LINEAR``, where a step's is *whole*: what few measurements separate is known less well."""
    return whole, max(0.5, whole), max(0.2, whole), max(0.15, whole), max(0.4, whole), max(0.5, whole)


# ---- memory -----------------------------------------------------------------

_CONTEXT_AND_GRAPHS_BYTES: Final = 0.75e9
_PROCESS_BYTES: Final = 0.5e9
"""A worker on a CPU has neither context nor graphs; vLLM 0.32 takes off what its process holds (two tiny models)."""
_COMM_BUFFERS_BYTES: Final = 0.8e9
_LARGE_CARD_BYTES: Final = 70 * GIB
_PROFILED: Final = {True: (PREFILL_CHUNK_TOKENS, 1024), False: (2048, 256)}
"""Tokens and sequences of the largest step, which vLLM runs once to see what is left: its defaults for cards of 70 GiB
and more but the A100, and for all others (``EngineArgs.get_batch_defaults``)."""


def weight_bytes(model: Model, stored: str) -> float:
    """Bytes of all weights at that precision; tables of a quantised model stay 16-bit.

    At 16 bits this is the article's rule: parameters x 2 bytes.
    """
    each = precision(stored).bytes_per_param
    tables = model.vocab * model.hidden + model.embedding_params
    return (model.params - tables) * each + tables * max(each, 2.0)


def _held_back_bytes(shape: Shape) -> float:
    """Memory a card gives to neither weights nor KV: context and graphs, activations, logits, communication.

    Activations at the largest step: a gate and an up projection beside four hidden rows, 16-bit;
    logits of the sampled rows in 32-bit, twice. An 8B model leaves aside 1.2 GB of a 24 GB card and 2.5 GB of an H100,
    whose largest step is four times as large.
    """
    model, card = shape.model, shape.card
    tokens, rows = _PROFILED[card.memory_bytes >= _LARGE_CARD_BYTES and card.family != "ampere"]
    width = 2 * max(model.ffn, 2 * model.hidden) / shape.tp + 4 * model.hidden
    logits = 2 * 4 * rows * model.vocab / shape.tp
    comm = _COMM_BUFFERS_BYTES if shape.tp * shape.pp > 1 else 0.0
    own = _PROCESS_BYTES if shape.card.family == "cpu" else _CONTEXT_AND_GRAPHS_BYTES
    return own + 2 * tokens * width + logits + comm


def kv_capacity_tokens(shape: Shape, memory_utilization: float = 0.9, block_tokens: int = 16) -> int:
    """Tokens of KV the engine can hold, in whole blocks; ``DoesNotFit`` when not even one block."""
    if not 0 < memory_utilization <= 1 or block_tokens < 1:
        raise ValueError("expected memory_utilization in (0, 1] and block_tokens >= 1")
    free = shape.card.memory_bytes * memory_utilization - _held_back_bytes(shape)
    free -= weight_bytes(shape.model, shape.precision) / (shape.tp * shape.pp)
    shards = 1 if shape.model.latent_kv else min(shape.tp, shape.model.kv_heads)
    tokens = free * shards * shape.pp / kv_bytes_per_token(shape)
    if tokens < block_tokens:
        raise DoesNotFit(
            f"{shape.model.name} at {shape.precision} on {shape.tp * shape.pp} x {shape.card.name}: "
            f"{max(free, 0) / 1e9:.1f} GB left for KV"
        )
    return int(tokens // block_tokens) * block_tokens


def cards_needed(model: Model, card: Card, stored: str = "bf16", memory_utilization: float = 0.9) -> tuple[int, int]:
    """The smallest (TP, PP) whose cards hold the weights and some KV.

    TP is a power of two that divides the heads, within one node (or one domain of links, as the 72 cards of an NVL72);
    beyond it come pipeline stages of whole nodes. ``DoesNotFit`` when even one layer a stage is too much.
    """
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= card.cards_per_node and model.heads % n == 0]
    most_stages = min(model.layers, 64)
    for tp, pp in [(tp, 1) for tp in sizes] + [(sizes[-1], pp) for pp in range(2, most_stages + 1)]:
        if _fits(Shape(card, model, tp, pp, stored), memory_utilization):
            return tp, pp
    need = ceil(weight_bytes(model, stored) / (card.memory_bytes * memory_utilization))
    raise DoesNotFit(f"{model.name} at {stored} needs {need} x {card.name} for its weights alone")


def _fits(shape: Shape, memory_utilization: float) -> bool:
    try:
        return kv_capacity_tokens(shape, memory_utilization) > 0
    except DoesNotFit:
        return False
