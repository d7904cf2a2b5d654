"""The measurement expected if a step takes the time that its coefficients give.

Models how static batches and closed loops fill an engine. Must not depend on where coefficients
come from. The step is the core's own (`router.core.step`), on columns instead of numbers.

A static batch prefills its prompts together, then decodes in step; what the KV cache cannot hold comes after that. In a
closed loop of ``C`` users every user prefills once a cycle, so a request meets the prefill of every other one once:
while it waits for its own first token, or during its own ``osl`` steps, whose mean gap is a decode step plus its part
of those prompts' marginal time."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from router.core.step import PREFILL_CHUNK_TOKENS, StepCoefficients, attention_pairs, step_terms
from simulator.calibration.design import Column, Design

WARM_UP_SHARE: Final = 0.1
"""Share of a closed loop's requests that start together: load generators send about ten a user."""
GROUP_TOKENS: Final = 1024.0
"""Prompt tokens that a closed loop's requests are admitted in together, chosen on measured engines. Requests of one
length that were prefilled in one step end in one step and come back together, for as long as the loop lasts."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Seconds, a column each: mean gap between tokens, mean first token, whole request."""

    tpot_s: Column
    ttft_s: Column
    e2e_s: Column


def expected(c: StepCoefficients, stream_s: Any, of: Design) -> Expected:
    """The expected times of each measurement of *of*; the fields of *c* and *stream_s* are columns."""
    together = np.minimum(of.batch, of.running_most)
    running = together
    for _ in range(_LITTLE_ROUNDS):
        tpot_s = _tpot_s(c, stream_s, of, running)
        loop = np.minimum(_running(of, tpot_s, running, _sat_out_s(c, of, running)), of.running_most)
        running = np.where(of.lockstep, together, loop)
    tpot_s = _tpot_s(c, stream_s, of, running)
    ttft_s = np.where(of.lockstep, _batch_ttft_s(c, of, together), _loop_ttft_s(c, of, tpot_s))
    waves = np.where(of.lockstep, of.batch / together, 1.0)  # what does not fit waits for what does
    return Expected(tpot_s, ttft_s, waves * (ttft_s + (of.output_tokens - 1) * tpot_s))


_LITTLE_ROUNDS: Final = 4


def _running(of: Design, tpot_s: Column, before: Column, sat_out_s: Column) -> Column:
    """Users that decode, by Little's law: those who wait for a first token are not in the batch.

    The wait is the measured one (nothing measured: everybody runs); the decode is the expected one,
    so no measured TPOT comes into the expected TPOT. No sequence decodes while an engine that puts prompts first
    runs them, so a wait for them removes no sequence from the batch. Half-way steps keep the rounds from swinging.
    """
    decode_s = of.output_tokens * tpot_s
    waited_s = of.waited_s - np.where(of.prefill_first, sat_out_s, 0.0)
    wanted = of.batch * decode_s / (decode_s + waited_s)
    return np.maximum(1.0, (before + wanted) / 2)


def _tpot_s(c: StepCoefficients, stream_s: Any, of: Design, running: Column) -> Column:
    """Mean gap of a request: a decode step, and in a closed loop the prompts that join meanwhile; or,
    where that is longer, the API server's time to send a token to each of those that run."""
    engine_s = _decode_s(c, of, running) / of.yielded + np.where(of.lockstep, 0.0, _stall_s(c, of, running))
    return np.asarray((engine_s**c.roof_power + (stream_s * running) ** c.roof_power) ** (1 / c.roof_power))


def _step(c: StepCoefficients, batch: Any, context: Any, prompt: Any, pairs: Any) -> Column:
    return np.asarray(sum(step_terms(c, batch, context, prompt, pairs)))


def _context(of: Design, running: Column) -> Column:
    """Tokens held on average over a request's decode."""
    return running * (of.prompt_tokens + of.output_tokens / 2)


def _decode_s(c: StepCoefficients, of: Design, running: Column) -> Column:
    """A step that also verifies what was drafted: the context is read once, the rest is done for every token."""
    return _step(c, running * (1.0 + of.drafted), _context(of, running), 0.0, 0.0)


def _stall_s(c: StepCoefficients, of: Design, running: Column) -> Column:
    """Seconds that others' prompts add to each of a request's gaps.

    During its own decode a request meets every other group of prompts once; groups that meet in one step share what
    such a step costs, and what an engine that puts prompts first made it sit out before, it meets no more.
    """
    chunks = np.ceil(of.prompt_tokens / PREFILL_CHUNK_TOKENS)
    group = np.clip(GROUP_TOKENS / of.prompt_tokens, 1.0, running)
    steps = np.maximum(of.output_tokens, 1.0)
    met = np.maximum(running - group, 0.0) / group * chunks / steps
    share = -np.expm1(-met)  # of its steps that hold prompts, which come by chance
    prompts = group * met / chunks / np.maximum(share, 1e-9)
    pairs = prompts * attention_pairs(of.prompt_tokens)
    mixed = _step(c, running * (1.0 + of.drafted), _context(of, running), prompts * of.prompt_tokens, pairs)
    stall = share * (mixed - _decode_s(c, of, running))
    sat_out = np.where(of.prefill_first, _sat_out_s(c, of, running) / steps, 0.0)
    return np.asarray(np.maximum(stall - sat_out, 0.0))


def _sat_out_s(c: StepCoefficients, of: Design, running: Column) -> Column:
    """Of the measured wait for a first token, the seconds in which others' prompts ran: what is left of it after the
    own prefill, and no more than all others take."""
    own = _prefill_s(c, of, 1.0)
    return np.asarray(np.clip(of.waited_s - c.first_token_s - own, 0.0, np.maximum(running - 1.0, 0.0) * own))


def _prefill_s(c: StepCoefficients, of: Design, prompts: Any) -> Column:
    """Seconds to prefill *prompts* prompts in chunks."""
    tokens = prompts * of.prompt_tokens
    chunks = np.ceil(tokens / PREFILL_CHUNK_TOKENS)
    pairs = prompts * attention_pairs(of.prompt_tokens) / chunks
    return np.asarray(chunks * _step(c, 0.0, 0.0, tokens / chunks, pairs))


def _batch_ttft_s(c: StepCoefficients, of: Design, together: Column) -> Column:
    return np.asarray(c.first_token_s + _prefill_s(c, of, together))


def _loop_ttft_s(c: StepCoefficients, of: Design, tpot_s: Column) -> Column:
    """Own prefill, half a step under way, others' prefills met by chance, and the warm-up wave.

    A user is in prefill for ``S`` of every cycle, so an arrival meets ``rho = (C - 1) S / cycle``
    of work, waited for as in M/D/1; the wave's mean wait is half the others' prefill.
    """
    own: Column = _prefill_s(c, of, 1.0)
    others = of.batch - 1
    rho = np.minimum(others * own / (own + of.output_tokens * tpot_s), 0.95)
    chance = rho / (2 * (1 - rho)) * own
    wave = WARM_UP_SHARE * others / 2 * own
    residual = np.where(others > 0, 0.5 * tpot_s, 0.0)
    return np.asarray(c.first_token_s + own + residual + chance + wave)
