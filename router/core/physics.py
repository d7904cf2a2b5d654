"""Card x model x parallelism x precision -> step seconds, prefill seconds, KV capacity.

Believes: data sheets, model shapes and the efficiency tables; a step is a sum of terms each linear
in one coefficient (weights read and GEMM meeting in a soft roof), so that what a backend really
does can correct each term by a factor. Must not know: any backend's history, queue or clock.

One step with ``n`` prompt tokens, ``b`` decoding sequences holding ``S`` tokens of context:

    read  = (dense weights + experts touched by b + n tokens) / (TP x bandwidth x share)
    gemm  = 2 x active parameters x (b + n) / (TP x FLOP/s x share)
    step  = soft max(read, gemm) + S x KV bytes / (shards x bandwidth x share)
          + attention FLOPs of the prompt + 2 all-reduces a layer + layer, step and sequence overheads

The roofline is the article this project starts from; terms and constants are argued in DESIGN
section 5 and `coefficients.py`.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.core.cards import Card
from router.core.coefficients import ROOF_POWER, engine, family, link, precision
from router.core.models import Model

Number = float | NDArray[np.float64]

PREFILL_CHUNK_TOKENS: Final = 8192
"""Prompt tokens a step takes at most: vLLM V1's default for a server (max_num_batched_tokens)."""

LINEAR: Final = ("fixed_s", "seq_s", "context_s", "token_s", "token_context_s", "first_token_s")
"""The coefficients a backend's behaviour corrects, in the order of ``StepCoefficients.sigma``."""


class DoesNotFit(ValueError):  # noqa: N818 - named as the vocabulary of the core names faults
    """The model cannot be placed so: memory too small, or TP does not divide its heads."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an engine is: ``tp`` x ``pp`` cards of one kind holding one model at one precision.

    ``kv_precision`` None means 16-bit KV. Raises ``DoesNotFit`` when TP does not divide the
    heads or PP exceeds the layers, ValueError for an unknown precision.
    """

    card: Card
    model: Model
    tp: int = 1
    pp: int = 1
    precision: str = "bf16"
    kv_precision: str | None = None
    engine: str = "vllm"

    def __post_init__(self) -> None:
        """Check what every formula below relies on."""
        precision(self.precision), precision(self.kv_precision or "bf16")
        if self.tp < 1 or self.model.heads % self.tp:
            raise DoesNotFit(f"TP {self.tp} does not divide the {self.model.heads} heads of {self.model.name}")
        if not 1 <= self.pp <= self.model.layers:
            raise DoesNotFit(f"PP {self.pp} must be 1 to the {self.model.layers} layers of {self.model.name}")


@dataclass(frozen=True, slots=True)
class StepCoefficients:
    """A step's time as a form linear in named seconds.

    ``fixed_s``: a step, whatever is in it (dense weights, all-reduce latency, launches);
    ``seq_s``: a decoding sequence; ``context_s``: a token of context held by decoding sequences;
    ``token_s``: a prompt token, compute and communication, once compute binds;
    ``token_context_s``: a (prompt token x token before it) pair; ``first_token_s``: a first token,
    outside the steps. With the fields below left at zero the form is exactly linear.

    ``weights_s``: the part of ``fixed_s`` that overlaps with GEMM; ``gemm_token_s``: the part of
    ``token_s`` (and of a decoding token) that does; ``experts_s``: reading every routed expert,
    of which a token touches ``expert_share``; ``roof_power``: exponent of the soft maximum;
    ``stages``: pipeline stages, among which decoding sequences are spread.
    ``sigma``: relative standard error of each of ``LINEAR``, the prior of a Bayesian correction.
    """

    fixed_s: float
    seq_s: float
    context_s: float
    token_s: float
    token_context_s: float
    first_token_s: float
    weights_s: float = 0.0
    gemm_token_s: float = 0.0
    experts_s: float = 0.0
    expert_share: float = 0.0
    roof_power: float = ROOF_POWER
    stages: int = 1
    sigma: tuple[float, float, float, float, float, float] = (0.3, 0.5, 0.3, 0.3, 0.5, 0.5)


class StepTerms(NamedTuple):
    """The seconds each coefficient of ``LINEAR`` but the last adds to a step; their sum is the step."""

    fixed_s: Number
    seq_s: Number
    context_s: Number
    token_s: Number
    token_context_s: Number


def step_terms(
    c: StepCoefficients, batch: Number, context_tokens: Number, prefill_tokens: Number = 0.0, pairs: Number = 0.0
) -> StepTerms:
    """The terms of one step; floats or arrays of one shape.

    *pairs* is the sum over the prompts in the step of tokens x (context before + tokens / 2),
    as ``attention_pairs`` counts it.
    """
    decoding = batch / c.stages
    return StepTerms(
        c.fixed_s,
        c.seq_s * decoding,
        c.context_s * context_tokens / c.stages,
        _roof_s(c, decoding + prefill_tokens) + (c.token_s - c.gemm_token_s) * prefill_tokens,
        c.token_context_s * pairs,
    )


def _roof_s(c: StepCoefficients, tokens: Number) -> Number:
    """Seconds by which experts and compute of *tokens* exceed the dense weight read.

    The soft maximum is the p-norm of read and compute. Experts touched: with ``k`` of ``E``
    chosen independently a token leaves an expert idle with probability ``1 - k/E``.
    """
    read: Number = c.weights_s
    if c.experts_s:
        read = read + c.experts_s * (1.0 - (1.0 - c.expert_share) ** tokens)
    compute = c.gemm_token_s * tokens
    power = c.roof_power
    return (read**power + compute**power) ** (1.0 / power) - c.weights_s


def attention_pairs(prompt_tokens: Number, context_before: Number = 0.0) -> Number:
    """(Prompt token, token it attends to) pairs of causal attention over one chunk."""
    return prompt_tokens * (context_before + prompt_tokens / 2)


def step_s(
    c: StepCoefficients,
    batch: Number,
    context_tokens: Number,
    prefill_tokens: Number = 0.0,
    prefill_context: Number = 0.0,
) -> Number:
    """Seconds of one step: *batch* sequences decode over *context_tokens* in all, and
    *prefill_tokens* of a prompt run, whose earlier *prefill_context* tokens are in the cache.

    For chunks of several prompts use ``step_terms`` with the sum of their ``attention_pairs``.
    """
    pairs = attention_pairs(prefill_tokens, prefill_context)
    fixed, seq, context, token, attention = step_terms(c, batch, context_tokens, prefill_tokens, pairs)
    return fixed + seq + context + token + attention


def decode_step_s(c: StepCoefficients, batch: Number, context_tokens: Number) -> Number:
    """Seconds of one step in which *batch* sequences decode over *context_tokens* in all."""
    return step_s(c, batch, context_tokens)


def prefill_s(c: StepCoefficients, prompt_tokens: float, chunk_tokens: int = PREFILL_CHUNK_TOKENS) -> float:
    """Seconds to the first token of a prompt that waits for nobody, chunk after chunk.

    Includes ``first_token_s``. Chunks follow each other through the pipeline stages, so all but
    the last cost a stage's share.
    """
    if prompt_tokens < 0 or chunk_tokens < 1:
        raise ValueError(f"expected prompt_tokens >= 0 and chunk_tokens >= 1, got {prompt_tokens}, {chunk_tokens}")
    full, rest = divmod(prompt_tokens, chunk_tokens)
    before = np.arange(int(full), dtype=np.float64) * chunk_tokens
    chunks = np.asarray(step_s(c, 0.0, 0.0, np.full(int(full), float(chunk_tokens), dtype=np.float64), before))
    last = float(step_s(c, 0.0, 0.0, rest, full * chunk_tokens)) if rest else 0.0
    total = float(chunks.sum()) + last
    longest = last or (float(chunks[-1]) if full else 0.0)
    return c.first_token_s + longest + (total - longest) / c.stages


def speculative_pace_s(step_seconds: Number, acceptance: float, drafted: int, draft_cost: float = 0.0) -> Number:
    """Seconds a token when *drafted* tokens are proposed a step and each is accepted with rate *acceptance*.

    A step yields 1 + a + ... + a^k tokens (Leviathan et al., arXiv 2211.17192, eq. 1) and costs
    *draft_cost* of a step for each proposal.
    """
    if not 0 <= acceptance <= 1 or drafted < 0 or draft_cost < 0:
        raise ValueError("expected acceptance in [0, 1], drafted >= 0 and draft_cost >= 0")
    tokens = sum(acceptance**k for k in range(drafted + 1))
    return step_seconds * (1 + draft_cost * drafted) / tokens


# ---- coefficients -----------------------------------------------------------


def coefficients(shape: Shape) -> StepCoefficients:
    """The step of *shape* from data sheets and efficiency tables, with the error of each term."""
    costs = engine(shape.engine)
    weights_s, experts_s = _read_s(shape)
    gemm_token_s = 2 * _gemm_params(shape.model) / (shape.tp * _gemm_flops_per_s(shape))
    latency_s, comm_token_s = _reduce_s(shape)
    chosen = shape.model.experts_per_token / (shape.model.experts or 1)
    return StepCoefficients(
        fixed_s=weights_s + costs.step_s + costs.layer_s * shape.model.layers + latency_s,
        seq_s=costs.seq_s + comm_token_s,
        context_s=_context_s(shape),
        token_s=gemm_token_s + comm_token_s,
        token_context_s=_attention_flops_per_pair(shape.model) / (shape.tp * _attention_flops_per_s(shape)),
        first_token_s=costs.first_token_s,
        weights_s=weights_s,
        gemm_token_s=gemm_token_s,
        experts_s=experts_s,
        expert_share=chosen,
        stages=shape.pp,
        sigma=_sigma(shape),
    )


def _gemm_params(model: Model) -> float:
    """Parameters one token multiplies with: the active ones less the input table, which is looked up."""
    return model.active_params - model.embedding_params


def _read_bytes(shape: Shape) -> tuple[float, float]:
    """Bytes of weights a step reads: (every step, all routed experts); the output head stays 16-bit when quantised."""
    model, stored = shape.model, precision(shape.precision)
    head = float(model.vocab * model.hidden)
    body = model.params - model.expert_params - model.embedding_params - head
    return body * stored.bytes_per_param + head * max(stored.bytes_per_param, 2.0), (
        model.expert_params * stored.bytes_per_param
    )


def _read_s(shape: Shape) -> tuple[float, float]:
    """Seconds to read (the dense weights, all routed experts) once, split over TP."""
    share = family(shape.card.family).read * precision(shape.precision).read_gain * engine(shape.engine).read_gain
    per_byte_s = 1 / (shape.tp * shape.card.bandwidth_bytes_per_s * min(share, 1.0))
    dense, experts = _read_bytes(shape)
    return dense * per_byte_s, experts * per_byte_s


def _context_s(shape: Shape) -> float:
    """Seconds to read one token's KV: a latent (MLA) is copied to every rank, heads are split at most once each."""
    model, card = shape.model, shape.card
    shards = 1 if model.latent_kv else min(shape.tp, model.kv_heads)
    read = kv_bytes_per_token(shape) * (1 - model.windowed_share) / shards
    return read / (card.bandwidth_bytes_per_s * family(card.family).kv)


def kv_bytes_per_token(shape: Shape) -> float:
    """Bytes of KV one token holds over all layers and heads, at the shape's KV precision."""
    return shape.model.kv_bytes_per_token * precision(shape.kv_precision or "bf16").bytes_per_param / 2


def _peak_flops_per_s(card: Card, peaks: tuple[str, ...]) -> float:
    """The sheet's compute at the first of *peaks* the card has; else the slowest it has."""
    return next((card.flops_per_s[name] for name in peaks if name in card.flops_per_s), min(card.flops_per_s.values()))


def _gemm_flops_per_s(shape: Shape) -> float:
    stored = precision(shape.precision)
    share = family(shape.card.family).gemm * stored.gemm_gain * engine(shape.engine).gemm_gain
    return _peak_flops_per_s(shape.card, stored.peaks) * min(share, 1.0)


def _attention_flops_per_s(shape: Shape) -> float:
    """Attention runs at 16 bits whatever the weights are."""
    return _peak_flops_per_s(shape.card, ("bf16", "fp16")) * family(shape.card.family).attention


def _attention_flops_per_pair(model: Model) -> float:
    """QK^T and PV, a multiply and an add each: 4 x head size x heads x layers that see the whole context."""
    return 4.0 * model.head_dim * model.heads * model.layers * (1 - model.windowed_share)


def _reduce_s(shape: Shape) -> tuple[float, float]:
    """(Latency a step, seconds a token) of the two all-reduces a layer; ring traffic 2 (n-1)/n of the message."""
    if shape.tp == 1:
        return 0.0, 0.0
    cost, reduces = link(shape.card.link), 2 * shape.model.layers
    latency_s = (cost.latency_s + cost.hop_s * shape.tp) * engine(shape.engine).reduce_gain
    token_bytes = 2.0 * shape.model.hidden * 2 * (shape.tp - 1) / shape.tp
    return reduces * latency_s, reduces * token_bytes / (shape.card.link_bytes_per_s * cost.share)


_CONFIDENCE_SIGMA: Final = {"A": 0.05, "B": 0.10, "C": 0.25, "D": 0.50}


def _sigma(shape: Shape) -> tuple[float, float, float, float, float, float]:
    """Relative error of each of ``LINEAR``: engine, family and sheet errors are independent and add as squares."""
    sheet = max(_CONFIDENCE_SIGMA.get(grade, 0.5) for grade in (shape.card.confidence, shape.model.confidence))
    hardware = float(np.hypot(family(shape.card.family).sigma, sheet))
    whole = float(np.hypot(hardware, engine(shape.engine).sigma))
    return whole, max(0.5, whole), max(0.2, whole), max(0.15, whole), max(0.4, whole), max(0.5, whole)


# ---- memory -----------------------------------------------------------------

_CONTEXT_AND_GRAPHS_BYTES: Final = 1.6e9
_COMM_BUFFERS_BYTES: Final = 0.8e9
_ACTIVATION_TOKENS: Final = PREFILL_CHUNK_TOKENS
_LOGIT_ROWS: Final = 256


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
    logits of the sampled rows in 32-bit, twice. About 3.5 GB on a 24 GB card with an 8B model.
    """
    model = shape.model
    width = 2 * max(model.ffn, 2 * model.hidden) / shape.tp + 4 * model.hidden
    logits = 2 * 4 * _LOGIT_ROWS * model.vocab / shape.tp
    comm = _COMM_BUFFERS_BYTES if shape.tp * shape.pp > 1 else 0.0
    return _CONTEXT_AND_GRAPHS_BYTES + 2 * _ACTIVATION_TOKENS * width + logits + comm


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

    TP is a power of two that divides the heads, within one node; beyond it come pipeline stages
    of whole nodes. ``DoesNotFit`` when even one layer a stage is too much.
    """
    sizes = [n for n in (1, 2, 4, 8, 16) if n <= card.cards_per_node and model.heads % n == 0]
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
