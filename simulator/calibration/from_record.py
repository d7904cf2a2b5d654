"""The coefficients of one engine, fitted to the times a gateway measured on it.

Uses the attempts on one backend and the step of `router.core.step`; the load of the engine at any time follows from the
attempts themselves. Must not depend on other backends, policies or files.

A time is a sum of terms, each linear in one coefficient of ``LINEAR``; the logarithm of a factor on each is normal a
priori with the coefficient's own error, and the most probable factors are found as calibration finds its tables.

A first token that waited for room in the engine says how long others took to end, not how long a prompt takes: it is
left out.
"""

from dataclasses import dataclass, replace
from math import nan
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core.step import LINEAR, MEASURABLE, StepCoefficients, attention_pairs, step_terms
from router.core.types import Backend
from simulator.calibration.attempts import BackendLog
from simulator.calibration.posterior import Column, Posterior

ENOUGH: Final = 20
"""Streams that ended by themselves without which nothing is fitted."""
_STREAMS_MOST: Final = 2000
_SHORT_REPLY: Final = 8
_ROUNDS: Final = 30
_ROOF: Final = ("token_s", "weights_s", "gemm_token_s", "experts_s", "launch_s", "eager_s")
Terms = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Coefficients with the error that is left of each, from how many *streams*, of which *queued* waited for room, and
    the median relative error of TPOT and first token ``before`` and ``after`` (nan: every first token was queued)."""

    coefficients: StepCoefficients
    streams: int
    queued: int
    before: tuple[float, float]
    after: tuple[float, float]


def fit_log(log: BackendLog) -> Fitted:
    """The most probable coefficients of the backend of *log*. Raises ValueError if too few streams ended, or if a step
    would be faster than its weights can be read."""
    attempts = log.columns()
    ended = np.flatnonzero(np.isfinite(attempts[5]) & (attempts[5] >= _SHORT_REPLY))[-_STREAMS_MOST:]
    if ended.size < ENOUGH:
        raise ValueError(f"{log.backend.name}: {ended.size} streams of {_SHORT_REPLY} tokens or more; needs {ENOUGH}")
    each = [_observed(log.backend, attempts, int(i)) for i in ended]
    terms = np.concatenate([np.stack([one[kind] for one in each]) for kind in (0, 1)])
    seconds = np.concatenate([attempts[3, ended] - attempts[2, ended], attempts[2, ended] - attempts[0, ended]])
    network = np.repeat([0.0, log.backend.network_s], ended.size)
    used = np.concatenate([np.ones(ended.size, dtype=bool), ~queued(attempts, log.backend.seqs_max)[ended]])
    found = _fit(log.backend.prior, terms, np.maximum(seconds - network, 1e-6), used)
    _refuse_impossible(log.backend, found.coefficients)
    return found


_READ_MOST: Final = 2.0
"""How much faster than predicted weights may be read: predictions take half of a sheet's bandwidth or more."""


def _refuse_impossible(backend: Backend, found: StepCoefficients) -> None:
    floor_s = backend.prior.weights_s / _READ_MOST
    if found.fixed_s < floor_s:
        raise ValueError(
            f"{backend.name}: a step of {found.fixed_s * 1e3:.3g} ms is faster than the {floor_s * 1e3:.3g} ms that "
            f"reading its weights takes at best: are card, model, tp and precision those of this engine?"
        )


def queued(attempts: Terms, seqs_max: float) -> NDArray[np.bool_]:
    """Of attempts in columns, which waited for room in the engine before their prompt ran.

    An engine with a queue holds more attempts than it ever decodes at once. An attempt waited if at its sending as many
    were open as ever decode at once, or as many tokens, or if one that was sent before it still waited for room.
    """
    sent, prompt, first, ended, _, output = attempts
    tokens = prompt + np.nan_to_num(output)
    order = np.argsort(sent, kind="stable")
    open_at = [(sent <= at) & (ended > at) for at in sent]
    decoding_at = [(first <= at) & (ended > at) for at in first]
    slots = min(max((int(each.sum()) for each in decoding_at), default=0), seqs_max)
    room = max((float(tokens[each].sum()) for each in decoding_at), default=0.0)
    most = max((int(each.sum()) for each in open_at), default=0)
    waited = np.zeros(sent.size, dtype=bool)
    if most < slots + max(_BEYOND, _BEYOND_SHARE * slots):
        return waited
    for i in order:
        before = open_at[i] & (sent < sent[i])
        full = before.sum() >= slots or tokens[before].sum() + tokens[i] > room
        waited[i] = full or bool((waited & before & (first > sent[i])).any())
    return waited


_BEYOND: Final = 4
_BEYOND_SHARE: Final = 0.2
"""Attempts beyond those that decode at once that mean a queue: a few prompts are always on their way."""


def _fit(prior: StepCoefficients, terms: Terms, seconds: Column, used: NDArray[np.bool_]) -> Fitted:
    """*terms*: seconds each of ``LINEAR`` adds to each time at factor 1; first all TPOTs, then first tokens. *used*:
    which times to fit to."""

    def residuals(values: Column) -> Column:
        return np.log(np.maximum(terms @ np.exp(values), 1e-9) / seconds)

    def shares(values: Column, _: Column) -> Terms:
        parts = terms * np.exp(values)
        return np.asarray(parts / parts.sum(axis=1, keepdims=True))

    start = np.zeros(len(LINEAR))
    posterior = Posterior(residuals, shares, start, np.array(prior.sigma), used.astype(np.float64))
    values = posterior.most_probable(_ROUNDS)
    return Fitted(
        _scaled(prior, np.exp(values), posterior.standard_errors(values)),
        len(seconds) // 2,
        int(np.count_nonzero(~used)),
        _medians(residuals(start), used),
        _medians(residuals(values), used),
    )


def _medians(off: Column, used: NDArray[np.bool_]) -> tuple[float, float]:
    size, kept = np.abs(np.expm1(off)).reshape(2, -1), used.reshape(2, -1)
    first = float(np.median(size[1][kept[1]])) if kept[1].any() else nan
    return float(np.median(size[0])), first


def _scaled(prior: StepCoefficients, factor: Column, error: Column) -> StepCoefficients:
    """Each coefficient times its factor; all that meets in the roof goes by the prompt token's."""
    by = dict(zip(LINEAR, factor, strict=True))
    times = {name: by["token_s"] if name in _ROOF else by[name] for name in MEASURABLE}
    seconds: dict[str, Any] = {name: getattr(prior, name) * float(times[name]) for name in MEASURABLE}
    fixed, seq, context, token, pair, first = error.tolist()
    return replace(prior, **seconds, sigma=(fixed, seq, context, token, pair, first))


def _observed(backend: Backend, attempts: Terms, i: int) -> tuple[Column, Column]:
    """Terms of the decode and of the first token of attempt *i*, in the order of ``LINEAR``."""
    sent, _, first, ended, _, output = attempts[:, i]
    steps = max(float(output) - 1.0, 1.0)
    meanwhile = (attempts[2] > first) & (attempts[2] < ended)
    decode = _mixed(backend, attempts, meanwhile, (first, ended), steps)
    ahead = (attempts[2] > sent) & (attempts[2] <= first)
    until_first = _mixed(backend, attempts, ahead, (sent, first), 0.0)
    until_first[LINEAR.index("first_token_s")] = backend.prior.first_token_s
    return decode, until_first


def _mixed(
    backend: Backend,
    attempts: Terms,
    prompts: NDArray[np.bool_],
    between: tuple[float, float],
    steps: float,
) -> Column:
    """Terms of *steps* steps of what decoded *between* two moments, and of the chunks of *prompts* among them.

    With no steps (a first token is waited for) half a step was under way when others decode, and
    the chunks are steps of their own.
    """
    batch, context = _decoding(attempts, *between)
    uncached = attempts[4, prompts]
    chunks = float(np.ceil(uncached / backend.chunk_tokens).sum())
    plain = _terms(backend.prior, batch, context, 0.0, 0.0)
    total = plain * (steps or 0.5 * (batch >= 1))
    if chunks:
        pairs = float(np.sum(attention_pairs(uncached, attempts[1, prompts] - uncached)))
        chunked = _terms(backend.prior, batch, context, float(uncached.sum()) / chunks, pairs / chunks)
        total = total + chunks * (chunked - plain if steps else chunked)
    return total


def _decoding(attempts: Terms, since: float, until: float) -> tuple[float, float]:
    """Mean number of sequences that decode between two moments, and of their tokens of context."""
    length = max(until - since, 1e-9)
    begin, end = np.maximum(attempts[2], since), np.minimum(attempts[3], until)
    share = np.maximum(end - begin, 0.0) / length
    lived = np.where(np.isfinite(attempts[3]), attempts[3] - attempts[2], np.inf)
    grown = np.nan_to_num(attempts[5], nan=0.0) * np.clip(((begin + end) / 2 - attempts[2]) / lived, 0.0, 1.0)
    return float(share.sum()), float((share * (attempts[1] + np.nan_to_num(grown))).sum())


def _terms(prior: StepCoefficients, batch: float, context: float, prompt: float, pairs: float) -> Column:
    """The terms of one step in the order of ``LINEAR``; its last is outside of steps."""
    return np.array([*step_terms(prior, batch, context, prompt, pairs), 0.0], dtype=np.float64)


def fragment(name: str, found: Fitted) -> str:
    """The coefficients as a line of YAML for that backend in a pool or a router's config."""
    values = ", ".join(f"{each}: {float(f'{getattr(found.coefficients, each):.4g}')!r}" for each in MEASURABLE)
    (tpot, first), (tpot_before, first_before) = found.after, found.before
    waited = f", {found.queued} of which waited for room (their first tokens are left out)" if found.queued else ""
    comment = (
        f"# {name}: {found.streams} streams{waited}; median error of TPOT {tpot_before:.1%} -> {tpot:.1%}, "
        f"of the first token {first_before:.1%} -> {first:.1%}"
    )
    return f"{comment}\ncoefficients: {{{values}}}"
