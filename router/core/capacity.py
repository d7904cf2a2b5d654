"""How many requests a second one replica serves within their SLOs, by the forecast that routes.

A replica in a steady state is a fleet of its own: many slots hold the same backend, each with another number of
replies in flight, and ``loops.predicted`` fills in TTFT, TPOT and E2E for all of them at once, belief included. By
Little's law a batch of ``b`` replies of ``n`` tokens at TPOT ``t`` ends ``b / (n t)`` replies a second, which arrive as
fast. Must not depend on how demand is measured or on what a policy makes of a capacity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, inf
from typing import Any, Final

import numpy as np

from router.core import loops
from router.core.arrays import Floats
from router.core.belief import Belief
from router.core.columns import (
    CONTEXT_TOKENS,
    DECODING,
    FORECAST,
    PREFILL_RATE,
    PREFILL_SHARE,
    PREFILL_TOKENS,
    PREFILLING,
    TAILS,
    TPOT,
    TTFT,
)
from router.core.forecast import WIDTH_MIN
from router.core.ledger import Ledger
from router.core.metering import RATE_TAU_S
from router.core.tails import between
from router.core.types import Backend, Slo

LEVELS: Final = 24  # numbers of replies in flight at which a replica is read
ROUNDS: Final = 8  # of rate and TPOT, until each follows from the other
RATE_MIN: Final = 1e-9
MEMORY_S: Final = 300.0  # of what was learnt of a variant
SHARE_MAX: Final = 0.97  # of its time that a replica may spend on prompts


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of one kind: how many a second, how long, under which SLO, of which ``quantile`` is to be met."""

    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    slo: Slo
    quantile: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica serves of a mix. ``requests_per_s``: of the kinds that it can serve, together, in their
    proportion (0: of none); ``served``: which these are; ``weights``: the share of the replica that one request a
    second of each kind takes (inf: it cannot serve it); ``batch`` replies in flight then, of ``life_s`` each in the
    mean; ``bound``: the metric that allows no more.
    """

    requests_per_s: float
    served: tuple[bool, ...]
    weights: tuple[float, ...]
    batch: float
    life_s: float
    bound: str


NOTHING: Final = Capacity(0.0, (), (), 0.0, 0.0, "")


def capacity(backend: Backend, traffic: Sequence[Traffic], learnt: Mapping[str, Any] | None = None) -> Capacity:
    """What a replica of this kind serves of these kinds of requests, each within its SLO.

    ``learnt``: a belief about such a backend, as ``Belief.export`` writes it; ValueError where it is of another.
    """
    if not traffic:
        return NOTHING
    replica = _Replica(backend, learnt)
    idle = [replica.meets_idle(kind) for kind in traffic]
    if not any(idle):
        return Capacity(0.0, tuple(idle), (inf,) * len(idle), 0.0, 0.0, "")
    kinds = [kind for kind, served in zip(traffic, idle, strict=True) if served]
    rate, at, bound = replica.most(kinds)
    if not rate:
        idle = replica.bearable(traffic, idle)
        kinds = [kind for kind, served in zip(traffic, idle, strict=True) if served]
        rate, at, bound = replica.most(kinds) if kinds else (0.0, 0.0, bound)
    if not rate:
        return Capacity(0.0, (False,) * len(idle), (inf,) * len(idle), 0.0, 0.0, bound)
    whole = sum(kind.requests_per_s for kind in kinds) or 1.0
    alone = [replica.alone(kind, kinds) for kind in kinds]
    used = sum(kind.requests_per_s / each for kind, each in zip(kinds, alone, strict=True)) * rate / whole
    shares = iter([1.0 / (each * used) if used else 1.0 / each for each in alone])
    weights = tuple(next(shares) if served else inf for served in idle)
    life_s = at / rate if rate else 0.0
    return Capacity(rate, tuple(idle), weights, at, life_s, bound)


class VariantBelief:
    """What was learnt of the replicas of one variant: the mean over them and over the last minutes.

    A router's belief in one replica follows its last requests; how many replicas there should be must not.
    """

    __slots__ = ("_at_s", "_mean")

    def __init__(self) -> None:
        self._mean: Mapping[str, Any] | None = None
        self._at_s = -inf

    def update(self, beliefs: Sequence[Mapping[str, Any]], now_s: float) -> Mapping[str, Any] | None:
        """Fold in what is believed of each replica now (as ``Belief.export`` writes it); the mean (None: of none yet).

        Lengths of replies are left out: they are the demand's.
        """
        if beliefs:
            now = [_numbers(each) for each in beliefs]
            new = [np.mean(part, axis=0) for part in zip(*now, strict=True)]
            if self._mean is not None:
                kept = exp(-max(now_s - self._at_s, 0.0) / MEMORY_S)
                pairs = zip(_numbers(self._mean), new, strict=True)
                new = [kept * before + (1.0 - kept) * after for before, after in pairs]
            factors, tails, bias, hit = new
            self._mean = {
                **beliefs[0],
                "lengths": {},
                "regression": {**beliefs[0]["regression"], "log_factor": factors.tolist()},
                "tails": tails.tolist(),
                "load_band_bias": bias.tolist(),
                "hit": float(hit),
            }
            self._at_s = now_s
        return self._mean


def _numbers(belief: Mapping[str, Any]) -> tuple[Floats, ...]:
    numbers = belief["regression"]["log_factor"], belief["tails"], belief["load_band_bias"], belief["hit"]
    return tuple(np.asarray(each, dtype=np.float64) for each in numbers)


class _Replica:
    """A backend at rest and at ``LEVELS`` numbers of replies in flight, a slot each."""

    def __init__(self, backend: Backend, learnt: Mapping[str, Any] | None) -> None:
        self._backend = backend
        self._ledger, self._belief = Ledger(LEVELS), Belief(LEVELS)
        slots = [self._ledger.join(replace(backend, name=f"{level}"), 0.0) for level in range(LEVELS)]
        self._believe(slots, backend, learnt)
        self._slots = np.array(slots, dtype=np.intp)
        self._columns = self._ledger.table.columns

    def _believe(self, slots: list[int], backend: Backend, learnt: Mapping[str, Any] | None) -> None:
        """Fill in the first slot's belief, and copy what a forecast reads of it."""
        belief, first = self._belief, slots[0]
        belief.joined(first, backend)
        if learnt is not None:
            belief.adopt(first, {**learnt, "lengths": {}})
        for rows in (belief.prior, belief.roofs.rows, belief.regression.factor, belief.hit):
            rows[slots] = rows[first]
        for columns in (belief.tails.spread, belief.load_band_bias):
            columns[..., slots] = columns[..., first, None]

    def meets_idle(self, kind: Traffic) -> bool:
        """Whether a replica that has nothing else to do meets the SLO of such a request."""
        if self._too_long(kind):
            return False
        nothing = np.zeros(LEVELS)
        rows = self._read(kind, nothing, nothing, nothing, kind.prompt_tokens)
        return bool(_met(kind, rows, rows[TAILS + TTFT])[0])

    def most(self, kinds: Sequence[Traffic]) -> tuple[float, float, str]:
        """The highest rate of this mix at which every kind meets its SLO, the replies in flight then, and what allows
        no more.
        """
        mix = _Mix(kinds)
        room = self._room(mix)
        found = self._most_within(kinds, mix, room)
        return found if found[0] else self._most_within(kinds, mix, room / LEVELS)

    def bearable(self, kinds: Sequence[Traffic], served: Sequence[bool]) -> list[bool]:
        """Which kinds are left once those go that bear no traffic beside them: the one that bears least first."""
        most = {at: self.most([kind])[0] for at, kind in enumerate(kinds) if served[at]}
        kept = sorted((at for at, rate in most.items() if rate > 0.0), key=lambda at: -most[at])
        while len(kept) > 1 and not self.most([kinds[at] for at in kept])[0]:
            kept.pop()
        return [at in kept for at in range(len(kinds))]

    def _most_within(self, kinds: Sequence[Traffic], mix: "_Mix", room: float) -> tuple[float, float, str]:
        """The same, with no more than so many replies in flight."""
        levels = np.linspace(0.0, room, LEVELS + 1)[1:]
        rates = levels / max(mix.output_tokens, 1.0)
        for _ in range(ROUNDS):
            tpot_s = self._read(mix.whole, levels, levels * mix.held_tokens, rates, mix.prompt_tokens)[TPOT]
            rates = 0.5 * (rates + levels / (mix.output_tokens * tpot_s))
        allowed, bound = np.ones(LEVELS, dtype=np.bool_), "room"
        for kind in kinds:
            met, why = self._within(kind, mix, levels, rates)
            if np.argmin(met) < np.argmin(allowed) or (allowed.all() and not met.all()):
                bound = why
            allowed &= met
        count = int(np.argmin(allowed)) if not allowed.all() else LEVELS
        if not count:
            return 0.0, 0.0, bound
        best = int(np.argmax(rates[:count]))
        return float(rates[best]), float(levels[best]), bound

    def alone(self, kind: Traffic, beside: Sequence[Traffic]) -> float:
        """The highest rate of one kind under the tightest TPOT of all that run beside it."""
        if len(beside) == 1:
            return 1.0  # its weight follows from the rate of the mix
        tpot_s = min(_base(other).tpot_s for other in beside)
        rate, _, _ = self.most([replace(kind, slo=replace(_base(kind), tpot_s=tpot_s))])
        return max(rate, RATE_MIN)

    def _within(self, kind: Traffic, mix: "_Mix", levels: Floats, rates: Floats) -> tuple[Any, str]:
        rows = self._read(kind, levels, levels * mix.held_tokens, rates, mix.prompt_tokens).copy()
        share = np.minimum(rows[PREFILL_SHARE], SHARE_MAX)
        # Of M/D/1 in heavy traffic: the wait exceeds t with probability share * exp(-2 (1 - share) t / service).
        waiting = np.maximum(np.log(np.maximum(share, 1e-12) / (1.0 - kind.quantile)), 0.0) / (2.0 * (1.0 - share))
        behind = self._read(kind, levels, levels * mix.held_tokens, rates, mix.prompt_tokens, waiting)
        ttft_s = np.maximum(behind[TTFT], rows[TAILS + TTFT])
        first = int(np.argmin(_met(kind, rows, ttft_s)))
        slo = _base(kind)
        late = bool(ttft_s[first] > slo.ttft_s)
        return _met(kind, rows, ttft_s), "ttft" if late else "tpot" if rows[TAILS + TPOT][first] > slo.tpot_s else "e2e"

    def _read(
        self,
        kind: Traffic,
        replies: Floats,
        held_tokens: Floats,
        rates: Floats,
        mean_prompt_tokens: float,
        waiting: Floats | None = None,
    ) -> Floats:
        """The forecast for such a request where so many replies are in flight and prompts come at this rate."""
        columns, slots, belief = self._columns, self._slots, self._belief
        computed = mean_prompt_tokens * (1.0 - float(belief.hit[slots[0]]))
        columns[DECODING, slots], columns[CONTEXT_TOKENS, slots] = replies, held_tokens
        columns[PREFILL_RATE, slots] = rates * computed
        columns[PREFILLING, slots] = 0.0 if waiting is None else waiting
        columns[PREFILL_TOKENS, slots] = 0.0 if waiting is None else waiting * computed
        rows = np.empty((FORECAST, LEVELS))
        row, share = between(kind.quantile)
        loops.predicted(
            self._ledger.table.shown,
            np.empty((0, 0)),
            belief.hit,
            np.empty(0),
            1.0,
            belief.prior,
            belief.regression.factor,
            belief.roofs.rows,
            belief.load_band_bias,
            belief.tails.spread,
            slots,
            0.0,
            kind.prompt_tokens,
            max(1.0, mean_prompt_tokens),
            kind.output_tokens,
            kind.output_tokens,
            max(1.0, kind.prompt_tokens + kind.output_tokens / 2.0),
            1.0,
            RATE_TAU_S,
            0.0,
            row,
            share,
            WIDTH_MIN,
            np.empty(0),
            1.0,
            rows,
        )
        return rows

    def _room(self, mix: "_Mix") -> float:
        """Replies that fit, by sequences and by KV cache."""
        return max(1.0, min(self._backend.seqs_max - 1.0, self._backend.kv_tokens_max / mix.held_tokens - 1.0))

    def _too_long(self, kind: Traffic) -> bool:
        longest = self._backend.context_tokens_max or inf
        return kind.prompt_tokens >= min(longest, self._backend.kv_tokens_max)


class _Mix:
    """Means of several kinds by their rates. Of the tokens that are held, each reply in flight counts, so that long
    replies count as often as they are long.
    """

    def __init__(self, kinds: Sequence[Traffic]) -> None:
        whole = sum(kind.requests_per_s for kind in kinds)
        shares = [kind.requests_per_s / whole if whole else 1.0 / len(kinds) for kind in kinds]
        pairs = list(zip(shares, kinds, strict=True))
        self.prompt_tokens = sum(share * kind.prompt_tokens for share, kind in pairs)
        self.output_tokens = max(1.0, sum(share * kind.output_tokens for share, kind in pairs))
        held = sum(
            share * kind.output_tokens * (kind.prompt_tokens + kind.output_tokens / 2.0) for share, kind in pairs
        )
        self.held_tokens = max(1.0, held / self.output_tokens)
        self.whole = Traffic(whole, self.prompt_tokens, self.output_tokens, Slo(), 0.5)


def _base(kind: Traffic) -> Slo:
    return kind.slo.in_base(kind.prompt_tokens, kind.output_tokens)


def _met(kind: Traffic, rows: Floats, ttft_s: Floats) -> Any:
    slo, tpot_s = _base(kind), rows[TAILS + TPOT]
    e2e_s = ttft_s + max(kind.output_tokens - 1.0, 0.0) * rows[TPOT]
    return (ttft_s <= slo.ttft_s) & (tpot_s <= slo.tpot_s) & (e2e_s <= slo.e2e_s)
