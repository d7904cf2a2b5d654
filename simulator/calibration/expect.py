"""What a measurement should show if a step takes what its coefficients say.

Believes: how static batches and closed loops fill an engine. Must not know: where coefficients
come from. The step is the core's own (`router.core.step`), on columns instead of numbers.

A static batch prefills its prompts together, then decodes in step. In a closed loop of ``C``
users each request meets, during its own ``osl`` steps, the prefill of every other user once, so
its mean gap is a decode step plus ``(C - 1) / osl`` prompts' marginal time.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from router.core.step import PREFILL_CHUNK_TOKENS, StepCoefficients, attention_pairs, step_terms
from simulator.calibration.design import Column, Design

WARM_UP_SHARE: Final = 0.1
"""Share of a closed loop's requests that start together: load generators send about ten a user."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Seconds, a column each: mean gap between tokens, mean first token, whole request."""

    pace_s: Column
    ttft_s: Column
    e2e_s: Column


def expected(c: StepCoefficients, stream_s: Any, of: Design) -> Expected:
    """What each measurement of *of* should show; the fields of *c* and *stream_s* are columns."""
    running = of.batch
    for _ in range(_LITTLE_ROUNDS):
        pace_s = _pace_s(c, stream_s, of, running)
        running = np.where(of.lockstep, of.batch, _running(of, pace_s, running))
    pace_s = _pace_s(c, stream_s, of, running)
    ttft_s = np.where(of.lockstep, _batch_ttft_s(c, of), _loop_ttft_s(c, of, pace_s))
    return Expected(pace_s, ttft_s, ttft_s + (of.output_tokens - 1) * pace_s)


_LITTLE_ROUNDS: Final = 4


def _running(of: Design, pace_s: Column, before: Column) -> Column:
    """Users that decode, by Little's law: those who wait for a first token are not in the batch.

    The wait is the measured one (nothing measured: everybody runs); the decode is the expected one,
    so no measured pace comes into the expected pace. Half-way steps keep the rounds from swinging.
    """
    decode_s = of.output_tokens * pace_s
    wanted = of.batch * decode_s / (decode_s + of.waited_s)
    return np.maximum(1.0, (before + wanted) / 2)


def _pace_s(c: StepCoefficients, stream_s: Any, of: Design, running: Column) -> Column:
    """Mean gap of a request: a decode step, and in a closed loop the prompts that join meanwhile; or,
    where that is longer, the API server's time to send a token to each of those that run."""
    engine_s = _decode_s(c, of, running) + np.where(of.lockstep, 0.0, _stall_s(c, of, running))
    return np.asarray((engine_s**c.roof_power + (stream_s * running) ** c.roof_power) ** (1 / c.roof_power))


def _step(c: StepCoefficients, batch: Any, context: Any, prompt: Any, pairs: Any) -> Column:
    return np.asarray(sum(step_terms(c, batch, context, prompt, pairs)))


def _context(of: Design, running: Column) -> Column:
    """Tokens held on average over a request's decode."""
    return running * (of.prompt_tokens + of.output_tokens / 2)


def _decode_s(c: StepCoefficients, of: Design, running: Column) -> Column:
    return _step(c, running, _context(of, running), 0.0, 0.0)


def _stall_s(c: StepCoefficients, of: Design, running: Column) -> Column:
    """Marginal prefill seconds that others' prompts add to each of a request's gaps."""
    chunks = np.ceil(of.prompt_tokens / PREFILL_CHUNK_TOKENS)
    chunk = of.prompt_tokens / chunks
    pairs = attention_pairs(of.prompt_tokens) / chunks
    mixed = _step(c, running, _context(of, running), chunk, pairs) - _decode_s(c, of, running)
    return np.asarray(np.maximum(running - 1, 0.0) / np.maximum(of.output_tokens, 1) * chunks * mixed)


def _prefill_s(c: StepCoefficients, of: Design, prompts: Any) -> Column:
    """Seconds to prefill *prompts* prompts in chunks."""
    tokens = prompts * of.prompt_tokens
    chunks = np.ceil(tokens / PREFILL_CHUNK_TOKENS)
    pairs = prompts * attention_pairs(of.prompt_tokens) / chunks
    return np.asarray(chunks * _step(c, 0.0, 0.0, tokens / chunks, pairs))


def _batch_ttft_s(c: StepCoefficients, of: Design) -> Column:
    return np.asarray(c.first_token_s + _prefill_s(c, of, of.batch))


def _loop_ttft_s(c: StepCoefficients, of: Design, pace_s: Column) -> Column:
    """Own prefill, half a step under way, others' prefills met by chance, and the warm-up wave.

    A user is in prefill for ``S`` of every cycle, so an arrival meets ``rho = (C - 1) S / cycle``
    of work, waited for as in M/D/1; the wave's mean wait is half the others' prefill.
    """
    own: Column = _prefill_s(c, of, 1.0)
    others = of.batch - 1
    rho = np.minimum(others * own / (own + of.output_tokens * pace_s), 0.95)
    chance = rho / (2 * (1 - rho)) * own
    wave = WARM_UP_SHARE * others / 2 * own
    residual = np.where(others > 0, 0.5 * pace_s, 0.0)
    return np.asarray(c.first_token_s + own + residual + chance + wave)
