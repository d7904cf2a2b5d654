"""The time of one engine step as a form linear in a few named seconds.

Assumes: a step is a sum of terms (weights and GEMM meeting in a soft roof), each of which a
backend's behaviour may correct by a factor; the same functions serve prediction, learning and the
simulator's replicas, each with coefficients of its own. Must not depend on: where coefficients come
from (`physics.py`) or any backend's history, queue or clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Number = float | NDArray[np.float64]

PREFILL_CHUNK_TOKENS: Final = 8192
"""Prompt tokens a step takes at most: vLLM V1's default for a server (max_num_batched_tokens)."""

LINEAR: Final = ("fixed_s", "seq_s", "context_s", "token_s", "token_context_s", "first_token_s")
"""The coefficients a backend's behaviour corrects, in the order of ``StepCoefficients.sigma``."""


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
    of which a token touches ``expert_share``; ``launch_s``: host time of launching a step's kernels,
    which overlaps with reading and computing; ``eager_s``: what prompts add to a step at least, because a step with
    prompts is launched kernel by kernel where one of decoding sequences alone is a CUDA graph replayed;
    ``roof_power``: exponent of the soft maximum (chosen on measured engines among 2, 2.5 and 3);
    ``stages``: pipeline stages, among which decoding sequences are spread.
    (Arrays over many shapes work as well as floats: calibration does so.)
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
    launch_s: float = 0.0
    eager_s: float = 0.0
    roof_power: float = 2.5
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
    alone_s = _roof_s(c, decoding)
    over_s = _roof_s(c, decoding + prefill_tokens) - alone_s
    prompts_s = np.hypot(over_s, c.eager_s * np.minimum(prefill_tokens, 1.0))  # launched while the card computes
    return StepTerms(
        c.fixed_s,
        c.seq_s * decoding,
        c.context_s * context_tokens / c.stages,
        alone_s + prompts_s + (c.token_s - c.gemm_token_s) * prefill_tokens,
        c.token_context_s * pairs,
    )


def _roof_s(c: StepCoefficients, tokens: Number) -> Number:
    """Seconds by which experts, compute of *tokens* and the host's launches exceed the dense weight read.

    The soft maximum is the p-norm of the three: an engine without CUDA graphs launches kernels while
    the card works on those before, so the slower of the two decides.
    """
    read = c.weights_s + c.experts_s * experts_touched(c.expert_share, tokens)
    compute = c.gemm_token_s * tokens
    power = c.roof_power
    joined: Number = (read**power + compute**power + c.launch_s**power) ** (1.0 / power) - c.weights_s
    return joined


EXPERT_EVENNESS: Final = 0.5
"""Shape of the gamma distribution of experts' popularity; infinite would be routing that is independent and even.

One half (popularity chi-squared with one degree of freedom) was chosen on measured engines, not derived."""


def experts_touched(share: Number, tokens: Number) -> Number:
    """Share of all experts that *tokens* tokens touch, of which each touches *share*.

    Evenly routed, a token leaves an expert idle with probability ``1 - share`` and ``n`` tokens with its
    ``n``-th power. Routing is neither even nor independent (neighbouring tokens share experts more often than chance,
    arXiv 2401.04088, section 5): with popularity gamma-distributed the tokens after the first find fewer new ones, a
    negative binomial's zero class.
    """
    hazard = -np.log1p(-np.minimum(share, 0.999))
    after = np.maximum(tokens - 1.0, 0.0)
    idle = (1.0 - share) ** np.minimum(tokens, 1.0) * (1.0 + hazard * after / EXPERT_EVENNESS) ** -EXPERT_EVENNESS
    touched: Number = 1.0 - idle
    return touched


MEASURABLE: Final = (*LINEAR, "weights_s", "gemm_token_s", "experts_s", "launch_s", "eager_s")
"""The seconds of ``StepCoefficients`` that a measurement of an engine may put in place of the tables'."""


def measured(prior: StepCoefficients, seconds: Mapping[str, float]) -> StepCoefficients:
    """*prior* with the *seconds* an operator measured; ValueError for a name or a number that cannot be."""
    for name, value in seconds.items():
        if name not in MEASURABLE:
            raise ValueError(f"no coefficient {name!r}; expected one of {', '.join(MEASURABLE)}")
        if not 0 <= value < float("inf"):
            raise ValueError(f"coefficient {name}: expected seconds of at least 0, got {value!r}")
    changed: dict[str, Any] = dict(seconds)
    return replace(prior, **changed)


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
    """Seconds to the first token of a prompt that does not wait, chunk after chunk.

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


def speculative_tpot_s(step_seconds: Number, acceptance: float, drafted: int, draft_cost: float = 0.0) -> Number:
    """Seconds a token when *drafted* tokens are proposed a step and each is accepted with rate *acceptance*.

    A step costs *draft_cost* of a step for each proposal.
    """
    if draft_cost < 0:
        raise ValueError(f"expected draft_cost >= 0, got {draft_cost}")
    return step_seconds * (1 + draft_cost * drafted) / tokens_a_step(acceptance, drafted)


def tokens_a_step(acceptance: float, drafted: int) -> float:
    """Tokens a sequence gains in a step that proposes *drafted*: 1 + a + ... + a^k (Leviathan et al., arXiv 2211.17192,
    eq. 1)."""
    if not 0 <= acceptance <= 1 or drafted < 0:
        raise ValueError(f"expected acceptance in [0, 1] and drafted >= 0, got {acceptance}, {drafted}")
    return float(sum(acceptance**k for k in range(drafted + 1)))
