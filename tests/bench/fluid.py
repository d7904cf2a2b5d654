"""A pool as a fluid, for scaling alone: a week of arrivals in minutes.

A replica has room for as many requests at once, and ends as many a second, as ``capacity`` says of its truth; one that
finds no room is missed. Waiting, the tails of latencies, routing and learning are left out: good for comparing scalers,
and no claim by itself. The policy is passed what the simulator passes it, except that of each variant it gets one mean
replica as its pattern, as if that had been learnt.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, nan
from typing import Final

import numpy as np

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
    """``replicas`` paid for in the mean, ``changes`` of their number; ``missed`` by bucket."""

    attained: float
    replicas: float
    usd: float
    changes: int
    missed: tuple[float, ...]
    paid: tuple[int, ...]


@dataclass(slots=True)
class _Side:
    """The replicas of one variant."""

    variant: FluidVariant
    serving: int = 0
    starting: list[float] = field(default_factory=list)  # when each serves
    in_flight: float = 0.0
    paid_s: float = 0.0

    @property
    def there(self) -> int:
        return self.serving + len(self.starting)

    def room(self) -> float:
        return sum(self.truth(number).batch for number in range(self.serving))

    def truth(self, number: int) -> Capacity:
        return self.variant.truths[number % len(self.variant.truths)]

    def life_s(self) -> float:
        return self.truth(0).life_s or BUCKET_S

    def advance(self, now_s: float) -> None:
        """One bucket: replicas join, replies end, replicas are paid for."""
        joined = [at_s for at_s in self.starting if at_s <= now_s]
        self.starting = [at_s for at_s in self.starting if at_s > now_s]
        self.serving += len(joined)
        self.in_flight *= exp(-BUCKET_S / self.life_s())
        self.paid_s += self.there * BUCKET_S

    def set(self, count: int, now_s: float, start_s: float) -> bool:
        """As many replicas as that, in time; what starts is cancelled first. Whether that changed anything."""
        before = self.there
        self.starting += [now_s + start_s] * (count - before)
        while self.there > count and self.starting:
            self.starting.pop()
        if self.there > count:
            gone = self.there - count
            self.in_flight *= count / self.serving
            self.paid_s += gone * self.life_s()
            self.serving = count
        return self.there != before


class Fluid:
    """One world under one scaler."""

    def __init__(self, world: FluidWorld, make: Callable[["Fluid"], Scaling], seed: int) -> None:
        """At the beginning of time."""
        self.world, self.now_s = world, 0.0
        self.sides = {variant.name: _Side(variant, world.first.get(variant.name, 0)) for variant in world.variants}
        self.counts: deque[float] = deque(maxlen=BUCKETS)
        self.missed: list[float] = []
        self.paid: list[int] = []
        self.changes = 0
        self._draw = np.random.default_rng(seed)
        self._settled_s, self._served = 0.0, -1
        self._last: ScalingDecision | None = None
        self._history = RateHistory()
        self._scaling = make(self)

    def run(self, progress: Callable[[float], None] | None = None) -> FluidOutcome:
        """To the end."""
        world, arrived, due_s = self.world, 0.0, self.world.period_s
        while self.now_s < world.until_s:
            count = float(self._draw.poisson(world.rate(self.now_s) * BUCKET_S))
            self.now_s += BUCKET_S
            for side in self.sides.values():
                side.advance(self.now_s)
            arrived += count
            self.counts.append(count)
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
        attained = 1.0 - sum(self.missed) / max(arrived, 1.0)
        return FluidOutcome(attained, replicas, usd, self.changes, tuple(self.missed), tuple(self.paid))

    def _admit(self, count: float) -> float:
        free = {name: max(0.0, side.room() - side.in_flight) for name, side in self.sides.items()}
        whole = sum(free.values())
        taken = min(count, whole)
        for name, side in self.sides.items():
            side.in_flight += taken * free[name] / whole if whole else 0.0
        return taken

    def _evaluate(self) -> None:
        for answer in self._scaling.scale(self._demand()):
            self._last = answer.decision
            self.changes += self.sides[answer.variant].set(answer.replicas, self.now_s, self.world.start_s)

    def _demand(self) -> Demand:
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
            {name: side.there for name, side in self.sides.items()},
            {name: side.variant.pattern for name, side in self.sides.items()},
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
        )

    def _supply(self, side: _Side) -> Supply:
        world, alone = self.world, len(self.sides) == 1
        running = tuple(ReplicaLoad(f"{number}") for number in range(side.serving))
        least = world.replicas_min if alone else 0
        return Supply(world.start_s, least, world.replicas_max, starting=len(side.starting), running=running)
