"""A pool as a fluid, for scaling alone: a week of arrivals in minutes.

A replica has room for as many requests at once, and ends as many a second, as ``capacity`` says of its truth; one that
finds no room is missed. Between buckets of Poisson's counts, arrivals and ends are continuous. Waiting, the tails of
latencies, routing and learning are left out: good for comparing scalers, and no claim by itself. The policy is passed
what the simulator passes it, except that of each variant it gets one mean replica as its pattern, as if that had been
learnt. Capacities depend on the proportion of the kinds alone, which is constant here: each is computed once
(``remembered``).
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import exp, log, nan
from typing import Any, Final

import numpy as np

import policies.scaling.headroom
from router.core.capacity import Capacity, Traffic, capacity
from router.core.policy import Scaling
from router.core.scaling import Demand, KindDemand, ReplicaLoad, ScalingDecision, Supply
from router.core.seasons import RateHistory
from router.core.step import MEASURABLE
from router.core.types import Backend, Slo
from simulator.pool import Member, Pool

BUCKET_S: Final = 5.0
RECENT: Final = 24  # buckets that means are taken over
BUCKETS: Final = 240
TRUTHS: Final = 8  # replicas of a variant that differ
REPLICAS: Final = 1024  # of a variant at most


_known: dict[tuple[int, tuple[Traffic, ...]], tuple[Backend, Capacity]] = {}  # a backend that is held has its id alone


def remembered(backend: Backend, traffic: Sequence[Traffic], learnt: Mapping[str, Any] | None = None) -> Capacity:
    """``capacity``, computed once for each proportion of the kinds."""
    if learnt is not None or not traffic:
        return capacity(backend, traffic, learnt)
    whole = sum(kind.requests_per_s for kind in traffic) or 1.0
    kinds = tuple(replace(kind, requests_per_s=round(kind.requests_per_s / whole, 9)) for kind in traffic)
    if (id(backend), kinds) not in _known:
        _known[id(backend), kinds] = backend, capacity(backend, kinds)
    return _known[id(backend), kinds][1]


@dataclass(frozen=True, slots=True)
class Kind:
    """A share of the requests, with their lengths and their SLO."""

    share: float
    prompt_tokens: float
    output_tokens: float
    slo: Slo
    slo_class: str = "chat"


@dataclass(frozen=True, slots=True)
class FluidVariant:
    """``pattern``: what is believed; ``truths``: capacities of its replicas, in the order of their orders."""

    name: str
    pattern: Backend
    truths: tuple[Capacity, ...]

    @property
    def usd_per_s(self) -> float:
        """Of one replica."""
        return self.pattern.price_per_hour / 3600.0


def variant_of(member: Member, kinds: Sequence[Kind], seed: int) -> FluidVariant:
    """A member of a pool: replicas of different truths, and their mean as what is believed."""
    pool = Pool((member,), belief="given")
    sites = [pool.site(member, f"{member.name}-{number}", seed) for number in range(TRUTHS)]
    traffic = [
        Traffic(kind.share, kind.prompt_tokens, kind.output_tokens, kind.slo, kind.slo.quantile) for kind in kinds
    ]
    steps = [site.backend.prior for site in sites]
    mean = {name: float(np.mean([getattr(step, name) for step in steps])) for name in MEASURABLE}
    pattern = replace(sites[0].backend, name=member.name, variant=member.name, prior=replace(steps[0], **mean))
    return FluidVariant(member.name, pattern, tuple(capacity(site.backend, traffic) for site in sites))


@dataclass(frozen=True, slots=True)
class FluidWorld:
    """``rate`` of arrivals by time, for ``until_s``."""

    rate: Callable[[float], float]
    until_s: float
    kinds: tuple[Kind, ...]
    variants: tuple[FluidVariant, ...]
    start_s: float = 60.0
    period_s: float = 5.0
    replicas_min: int = 1
    replicas_max: int = 64
    first: Mapping[str, int] = field(default_factory=dict)  # replicas that serve from the beginning


@dataclass(frozen=True, slots=True)
class FluidOutcome:
    """``replicas`` paid for in the mean; ``log``: each change, as when, which variant, and how many of it from then on;
    ``missed`` and ``paid`` by bucket.
    """

    attained: float
    replicas: float
    usd: float
    log: tuple[tuple[float, str, int], ...]
    missed: tuple[float, ...]
    paid: tuple[int, ...]

    @property
    def changes(self) -> int:
        """Of the number of replicas of a variant."""
        return len(self.log)


class _Side:
    """The replicas of one variant."""

    __slots__ = ("_decay", "_rooms", "in_flight", "life_s", "paid_s", "serving", "starting", "variant")

    def __init__(self, variant: FluidVariant, serving: int) -> None:
        self.variant, self.serving = variant, serving
        self.starting: deque[float] = deque()  # when each serves, the next one first
        self.in_flight = self.paid_s = 0.0
        self.life_s = variant.truths[0].life_s or BUCKET_S
        self._decay = exp(-BUCKET_S / self.life_s)
        self._rooms = [0.0, *accumulate(variant.truths[at % len(variant.truths)].batch for at in range(REPLICAS))]

    @property
    def there(self) -> int:
        """Those that serve, and those that start."""
        return self.serving + len(self.starting)

    def room(self) -> float:
        """Requests at once."""
        return self._rooms[self.serving]

    def advance(self, now_s: float) -> None:
        """One bucket: replicas join, and are paid for."""
        while self.starting and self.starting[0] <= now_s:
            self.starting.popleft()
            self.serving += 1
        self.paid_s += self.there * BUCKET_S

    def accepts(self) -> float:
        """How many requests it can take in the next bucket at most."""
        room = self.room()
        return max(0.0, room - self.in_flight) + BUCKET_S * room / self.life_s

    def admit(self, count: float) -> float:
        """One bucket, in which so many arrive, evenly; how many of them find room."""
        room, life_s, before = self.room(), self.life_s, self.in_flight
        would = count * life_s / BUCKET_S  # in flight in the end, if that went on
        self.in_flight = before * self._decay + would * (1.0 - self._decay)
        if self.in_flight <= room or not count:
            return count
        if not room:
            self.in_flight = before * self._decay
            return 0.0
        if before >= room:
            full_s, free = min(life_s * log(before / room), BUCKET_S), 0.0
            self.in_flight = max(room, before * self._decay)
        else:
            full_s = life_s * log((would - before) / (would - room))
            free, self.in_flight = full_s * count / BUCKET_S, room
        return min(count, free + (BUCKET_S - full_s) * room / life_s)

    def set(self, count: int, now_s: float, start_s: float) -> bool:
        """As many replicas as that, in time; what starts is cancelled first. Whether that changed anything."""
        before = self.there
        self.starting.extend([now_s + start_s] * (count - before))
        while self.there > count and self.starting:
            self.starting.pop()
        if self.there > count:
            gone = self.there - count
            self.in_flight *= count / self.serving
            self.paid_s += gone * self.life_s
            self.serving = count
        return self.there != before


class Fluid:
    """One world under one scaler."""

    def __init__(
        self, world: FluidWorld, make: Callable[["Fluid"], Scaling], seed: int, *, measured: bool = True
    ) -> None:
        """At the beginning of time. ``measured``: whether the scaler reads more of the demand than what runs."""
        self.world, self.now_s, self.measured = world, 0.0, measured
        self.sides = {variant.name: _Side(variant, world.first.get(variant.name, 0)) for variant in world.variants}
        self.counts: deque[float] = deque(maxlen=BUCKETS)
        self.missed: list[float] = []
        self.paid: list[int] = []
        self.log: list[tuple[float, str, int]] = []  # when, which variant, how many replicas from then on
        self._draw = np.random.default_rng(seed)
        self._settled_s, self._served = 0.0, -1
        self._last: ScalingDecision | None = None
        self._history = RateHistory()
        self._scaling = make(self)

    def run(self, progress: Callable[[float], None] | None = None) -> FluidOutcome:
        """To the end."""
        original = policies.scaling.headroom.capacity
        policies.scaling.headroom.capacity = remembered
        try:
            return self._run(progress)
        finally:
            policies.scaling.headroom.capacity = original

    def _run(self, progress: Callable[[float], None] | None) -> FluidOutcome:
        world, due_s = self.world, self.world.period_s
        starts = np.arange(0.0, world.until_s, BUCKET_S)
        arrivals = self._draw.poisson([max(world.rate(float(at_s)), 0.0) * BUCKET_S for at_s in starts])
        for count in map(float, arrivals.tolist()):
            self.now_s += BUCKET_S
            for side in self.sides.values():
                side.advance(self.now_s)
            self.counts.append(count)
            if self.measured:
                self._history.add(count, BUCKET_S, self.now_s)
            self.missed.append(count - self._admit(count))
            self.paid.append(sum(side.there for side in self.sides.values()))
            if self.now_s >= due_s:
                due_s = self.now_s + world.period_s
                self._evaluate()
                if progress is not None:
                    progress(self.now_s / world.until_s)
        usd = sum(side.paid_s * side.variant.usd_per_s for side in self.sides.values())
        replicas = sum(side.paid_s for side in self.sides.values()) / world.until_s
        attained = 1.0 - sum(self.missed) / max(float(arrivals.sum()), 1.0)
        return FluidOutcome(attained, replicas, usd, tuple(self.log), tuple(self.missed), tuple(self.paid))

    def _admit(self, count: float) -> float:
        accepts = [side.accepts() for side in self.sides.values()]
        whole = sum(accepts) or 1.0
        return sum(side.admit(count * part / whole) for side, part in zip(self.sides.values(), accepts, strict=True))

    def _evaluate(self) -> None:
        for answer in self._scaling.scale(self._demand()):
            self._last = answer.decision
            if self.sides[answer.variant].set(answer.replicas, self.now_s, self.world.start_s):
                self.log.append((self.now_s, answer.variant, answer.replicas))
        if self._last is not None:
            self._history.shortfalls.planned(self._last.planned_per_s, self.now_s + self.world.start_s)

    def _demand(self) -> Demand:
        there = {name: side.there for name, side in self.sides.items()}
        patterns = {name: side.variant.pattern for name, side in self.sides.items()}
        if not self.measured:
            return Demand("model", nan, nan, nan, self.world.kinds[0].slo, there, patterns, nan)
        return self._measured(there, patterns)

    def _measured(self, there: Mapping[str, int], patterns: Mapping[str, Backend]) -> Demand:
        world, serving = self.world, sum(side.serving for side in self.sides.values())
        if serving != self._served:
            self._settled_s, self._served = self.now_s, serving
        recent = list(self.counts)[-RECENT:]
        rate = sum(recent) / (BUCKET_S * len(recent))
        ended, missed = int(sum(recent)), int(sum(self.missed[-RECENT:]))
        kinds = tuple(
            KindDemand(
                kind.slo_class,
                kind.slo,
                rate * kind.share,
                kind.prompt_tokens,
                kind.output_tokens,
                int(ended * kind.share),
                int((ended - missed) * kind.share),
            )
            for kind in world.kinds
        )
        seasonal = self._history.forecast(self.now_s, self.now_s + world.start_s + world.period_s)
        prompt = sum(kind.share * kind.prompt_tokens for kind in world.kinds)
        output = sum(kind.share * kind.output_tokens for kind in world.kinds)
        return Demand(
            "model",
            rate,
            prompt,
            output,
            min((kind.slo for kind in world.kinds), key=lambda slo: slo.bounds_s()),
            there,
            patterns,
            1.0 - missed / ended if ended else nan,
            kinds if rate else (),
            tuple(self.counts),
            BUCKET_S,
            sum(side.in_flight for side in self.sides.values()),
            supply={name: self._supply(side) for name, side in self.sides.items()},
            settled_s=self.now_s - self._settled_s,
            period_s=world.period_s,
            seasonal_per_s=seasonal.rate_per_s,
            seasonal_error_per_s=seasonal.error_per_s,
            replicas_min=world.replicas_min,
            last=self._last,
            beyond=self._history.shortfalls.beyond(),
            highest_per_s=self._history.shortfalls.highest_per_s,
        )

    def _supply(self, side: _Side) -> Supply:
        world, alone = self.world, len(self.sides) == 1
        running = tuple(ReplicaLoad(f"{number}") for number in range(side.serving))
        least = world.replicas_min if alone else 0
        return Supply(world.start_s, least, world.replicas_max, starting=len(side.starting), running=running)
