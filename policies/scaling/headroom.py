"""The cheapest replicas that meet the SLOs of the traffic to come while a replica starts, and the reason in words.

Demand is what arrives, by kind of request, with its trend; a replica serves what the forecast that routes says it
serves; the numbers of replicas are the cheapest that cover the demand, orders included. Fewer are wanted only where
even the upper bound of the forecast leaves them without work, so that noise changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan, nan, sqrt
from typing import Final

from policies.scaling._kinds import ENDED_MIN, RATE_MAX, TINY, kinds_of, shortest, traffic_of
from policies.scaling._trend import Trend, steady, trend
from router.core import (
    Backend,
    Capacity,
    Demand,
    KindDemand,
    ReplicaMix,
    ScaleTo,
    ScalingDecision,
    Supply,
    VariantOption,
    capacity,
    cheapest_mixes,
    uncovered,
)

BUCKETS_MIN: Final = 2  # that a trend is read from
CHANCE_SIGMA: Final = 2.0  # by which fewer attain than the quantile of their SLOs, for it to be no chance
LAX_GAIN: Final = 1.5  # times the capacity, for which a class's longest prompts are left out
USED_MIN: Final = 0.5  # share of the capacity in use below which more replicas help nobody
CORRECTION_MIN: Final = 0.5
CORRECTION_STEP: Final = 0.97
CORRECTION_S: Final = 3600.0  # until a correction has faded
SETTLED_S: Final = 120.0  # as long as attainment is counted
HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Headroom:
    """``load_max``: the share of a replica's capacity to plan for, and ``burst_sigma`` standard deviations of the
    requests in flight on top; ``attainment_goal``: the share of a class's requests that are planned for, those with
    the shortest prompts, and of a model's that steps may not take. ``replicas_min`` bounds all variants of a model
    together, ``replicas_max`` each of them; ``step_max`` replicas of a variant are ordered or drained at once. A change
    has to pay for itself within ``payback_s``; a forecast is ``keep_sigma`` standard errors too low before replicas are
    drained; numbers older than ``stale_s`` change nothing; a mix costs no more than ``usd_per_hour_max``, also while
    others take the place of replicas that serve.
    """

    load_max: float = 1.0
    burst_sigma: float = 1.5
    attainment_goal: float = 0.99
    replicas_min: int = 0
    replicas_max: int = 64
    step_max: int = 8
    payback_s: float = 900.0
    keep_sigma: float = 2.5
    stale_s: float = 60.0
    usd_per_hour_max: float = inf

    def __post_init__(self) -> None:
        """Refuse bounds that contradict each other."""
        if not 0 < self.load_max <= 1:
            raise ValueError(f"headroom: load_max must be above 0 and at most 1, not {self.load_max}")
        if not 0 <= self.replicas_min <= self.replicas_max:
            raise ValueError("headroom: expected 0 <= replicas_min <= replicas_max")
        if not 0 < self.attainment_goal <= 1 or self.step_max < 1:
            raise ValueError("headroom: expected 0 < attainment_goal <= 1 and step_max of 1 or more")
        if not min(self.burst_sigma, self.payback_s, self.keep_sigma, self.stale_s, self.usd_per_hour_max) >= 0:
            raise ValueError("headroom: expected sigmas, seconds and money of 0 or more")

    def scale(self, demand: Demand) -> Sequence[ScaleTo]:
        """Replicas of every variant. A demand that is not known (not finite, below 0, stale) leaves all as they run."""
        if not demand.variants:
            return []
        unknown = self._unknown(demand)
        if unknown:
            return [ScaleTo(name, demand.replicas.get(name, 0), unknown) for name in demand.variants]
        return _Plan(self, demand).answers()

    def _unknown(self, demand: Demand) -> str:
        means = (demand.requests_per_s, demand.prompt_tokens, demand.output_tokens, demand.in_flight, demand.held)
        of_kinds = [
            each for kind in demand.kinds for each in (kind.requests_per_s, kind.prompt_tokens, kind.output_tokens)
        ]
        if not all(0.0 <= mean < inf for mean in (*means, *of_kinds, *demand.arrivals)):
            return "the demand is not known"
        if not demand.age_s <= self.stale_s:
            return f"the demand is {demand.age_s:.0f} s old"
        return ""


class _Plan:
    """One decision, step by step."""

    def __init__(self, policy: Headroom, demand: Demand) -> None:
        self.policy, self.demand = policy, demand
        self.names = list(demand.variants)
        self.supply = {name: demand.supply.get(name, Supply()) for name in self.names}
        self.there = [demand.replicas.get(name, 0) for name in self.names]
        self.kinds = kinds_of(demand)
        self.trend = _trend_of(demand)
        self.capacities, self.guaranteed, self.hopeless = self._promised()
        self.groups = self._groups()
        self.times = self._times()
        self.correction = self._corrected()
        self.options = self._options(self.correction)

    # ---- demand ------------------------------------------------------------------------

    def _promised(self) -> tuple[dict[str, Capacity], tuple[KindDemand, ...], list[KindDemand]]:
        """Capacities by variant, the kinds that they are for, and those that no variant can serve.

        Prompts so long that replicas would have to stay almost empty for them are left out too, as far as the quantile
        of their SLO allows.
        """
        strict = self._served(tuple(shortest(self.kinds, self.policy.attainment_goal)))
        lax = shortest(self.kinds, 0.0)
        if len(lax) == len(strict[1]) + len(strict[2]):
            return strict
        alternative = self._served(tuple(lax))
        most = [
            max((each.requests_per_s for each in found[0].values()), default=0.0) for found in (strict, alternative)
        ]
        return alternative if alternative[1] and most[1] > LAX_GAIN * most[0] else strict

    def _served(
        self, kinds: tuple[KindDemand, ...]
    ) -> tuple[dict[str, Capacity], tuple[KindDemand, ...], list[KindDemand]]:
        found = {name: self._capacity(name, kinds) for name in self.names}
        hopeless = [kind for at, kind in enumerate(kinds) if not any(each.served[at] for each in found.values())]
        if hopeless:
            kinds = tuple(kind for kind in kinds if kind not in hopeless)
            found = {name: self._capacity(name, kinds) for name in self.names}
        return found, kinds, hopeless

    @property
    def ahead_s(self) -> float:
        """Until a replica that is ordered at the next evaluation serves."""
        return max(supply.start_s for supply in self.supply.values()) + self.demand.period_s

    def expected_per_s(self) -> float:
        """The highest rate to be expected while a replica starts."""
        seasonal = self.demand.seasonal_per_s
        return max(self.trend.peak(self.ahead_s), 0.0 if isnan(seasonal) else seasonal)

    def bound_per_s(self) -> float:
        """The same, at the upper bound of both forecasts."""
        sigma, seasonal = self.policy.keep_sigma, self.demand.seasonal_per_s
        bound = self.expected_per_s() + sigma * self.trend.error_per_s
        error = self.demand.seasonal_error_per_s
        return bound if isnan(seasonal) else max(bound, seasonal + sigma * (0.0 if isnan(error) else error))

    def stepped(self, rate_per_s: float) -> float:
        """A rate with room for steps that nothing foretells: no more than the highest of the last days, and none where
        so many times the rate would not have been enough.
        """
        return max(rate_per_s, min(rate_per_s * self.times, self.demand.highest_per_s))

    def _times(self) -> float:
        """The fewest times that the plans of the last days would have needed, for no more requests to come beyond them
        than the goal leaves.
        """
        allowed = 1.0 - self.policy.attainment_goal
        return min((times for times, share in self.demand.beyond if times >= 1.0 and share <= allowed), default=1.0)

    def planned_per_s(self, rate_per_s: float) -> float:
        """A rate, with the bursts that a replica's queue cannot even out."""
        whole = sum(kind.requests_per_s for kind in self.kinds)
        share = sum(kind.requests_per_s for kind in self.guaranteed) / whole if whole else 0.0
        lives = [each.life_s for each in self.capacities.values() if each.life_s > 0.0]
        in_flight = rate_per_s * share * (sum(lives) / len(lives) if lives else 1.0)
        return rate_per_s * (1.0 + self.policy.burst_sigma / sqrt(max(in_flight, 1.0)))

    def needs(self, rate_per_s: float) -> list[float]:
        """By group, requests a second to make room for where so many arrive, bursts included."""
        whole = sum(kind.requests_per_s for kind in self.kinds)
        if not whole:
            return [0.0] * len(self.groups)
        planned = self.planned_per_s(rate_per_s)
        by_group = [sum(self.guaranteed[at].requests_per_s for at in group) for group in self.groups]
        return [min(planned * rate / whole, RATE_MAX) for rate in by_group]

    # ---- supply ------------------------------------------------------------------------

    def _capacity(self, name: str, kinds: Sequence[KindDemand]) -> Capacity:
        traffic = [traffic_of(kind) for kind in kinds]
        return capacity(self.demand.variants[name], traffic, self.supply[name].learnt)

    def _groups(self) -> list[list[int]]:
        """The kinds that the same variants serve, by their places among the guaranteed."""
        served = [
            tuple(self.capacities[name].weights[at] < inf for name in self.names) for at in range(len(self.guaranteed))
        ]
        return [[at for at, by in enumerate(served) if by == pattern] for pattern in dict.fromkeys(served)]

    def _options(self, correction: float) -> list[VariantOption]:
        return [self._option(at, name, correction) for at, name in enumerate(self.names)]

    def _option(self, at: int, name: str, correction: float) -> VariantOption:
        supply, backend = self.supply[name], self.demand.variants[name]
        price = _price_per_s(backend)
        lost_per_s = max(supply.loss_per_hour, 0.0) / HOUR_S
        order = price * supply.start_s + max(supply.start_usd, 0.0)
        usable = correction * self.policy.load_max * max(0.0, 1.0 - lost_per_s * supply.start_s)
        most = max(min(supply.replicas_max, self.policy.replicas_max), 0)
        return VariantOption(
            name,
            tuple(self._serves(name, group) * usable for group in self.groups),
            (price + lost_per_s * order) * self.policy.payback_s,
            order,
            self.there[at],
            min(supply.replicas_min, most),
            most,
            backend.price_per_hour,
        )

    def _serves(self, name: str, group: Sequence[int]) -> float:
        """Requests a second of a group that one replica serves."""
        whole = sum(self.guaranteed[at].requests_per_s for at in group)
        weights = self.capacities[name].weights
        if any(weights[at] == inf for at in group):
            return 0.0
        used = sum(
            weights[at] * (self.guaranteed[at].requests_per_s / whole if whole else 1 / len(group)) for at in group
        )
        return 1.0 / used if used > 0.0 else RATE_MAX

    def _corrected(self) -> float:
        """What capacities are multiplied by: less where replicas that should suffice, settled and in use, miss the
        quantiles of their SLOs, until one more is needed; what was so learnt fades.
        """
        last = self.demand.last.correction if self.demand.last is not None else 1.0
        faded = last + (1.0 - last) * min(self.demand.period_s / CORRECTION_S, 1.0)
        correction = min(1.0, max(CORRECTION_MIN, faded))  # the last decision may have been read from outside
        if not self._misses(correction):
            return correction
        need = self.needs(self.expected_per_s())
        while correction > CORRECTION_MIN and uncovered(self._options(correction), self.there, need) <= TINY:
            correction *= CORRECTION_STEP
        return correction

    def _misses(self, correction: float) -> bool:
        ended = sum(kind.ended for kind in self.guaranteed)
        attained = sum(kind.attained for kind in self.guaranteed)
        promised = sum(kind.ended * kind.slo.quantile for kind in self.guaranteed)
        chance = sum(kind.ended * kind.slo.quantile * (1.0 - kind.slo.quantile) for kind in self.guaranteed)
        life_s = max((each.life_s for each in self.capacities.values()), default=0.0)
        if len(self.guaranteed) < len(self.kinds):
            return False  # prompts that nothing is planned for delay the others too, on any number of replicas
        starting = sum(supply.starting for supply in self.supply.values())
        if ended < ENDED_MIN or starting or not self.demand.settled_s > 2.0 * life_s + SETTLED_S:
            return False
        double = [need / USED_MIN for need in self.needs(self.trend.rate_per_s)]
        in_use = uncovered(self._options(correction), self.there, double) > TINY
        return in_use and attained < promised - CHANCE_SIGMA * sqrt(chance)

    # ---- choice ------------------------------------------------------------------------

    def answers(self) -> list[ScaleTo]:
        """One for each variant."""
        need, keep = (self.needs(self.stepped(rate)) for rate in (self.expected_per_s(), self.bound_per_s()))
        target, found, reason = self._target(need, keep)
        counts = self._in_steps(self._made_before_broken(target, need), target)
        decision = self._decision(counts, found, reason)
        why = decision.described()
        return [self._answer(at, name, counts[at], why, decision) for at, name in enumerate(self.names)]

    def _may_stay(self) -> bool:
        """Whether what there is keeps the bounds and the budget."""
        there = tuple(self.there)
        return self._bounded(there) == there and self._at_least(there) == there and not self._too_dear(there)

    def _too_dear(self, counts: Sequence[int]) -> bool:
        return self._usd_per_hour(counts) > self.policy.usd_per_hour_max * (1.0 + TINY)

    def _target(self, need: list[float], keep: list[float]) -> tuple[tuple[int, ...], Sequence[ReplicaMix], str]:
        """The mix to come to, the cheapest ones that would do, and why."""
        covered = uncovered(self.options, self.there, need) <= TINY and self._may_stay()
        found = cheapest_mixes(self.options, keep if covered else need, self.policy.usd_per_hour_max)
        counts = self._at_least(found[0].counts)
        if counts == tuple(self.there):
            return counts, found, "they serve what is expected"
        if self._too_dear(self.there):
            return counts, found, "the replicas cost more than the budget"
        if not covered:
            return counts, found, "more is expected than the replicas serve"
        if self._costs(counts) >= self._costs(self.there):
            return tuple(self.there), found, "a change would not pay for itself"
        if any(kind.attained for kind in self.hopeless):
            return tuple(self.there), found, "SLOs are met that by the forecast no variant can meet"
        return counts, found, "fewer serve even the upper bound of the forecast"

    def _costs(self, counts: Sequence[int]) -> float:
        return sum(option.price(count) for option, count in zip(self.options, counts, strict=True))

    def _bounded(self, counts: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            min(max(count, option.least), option.most) for option, count in zip(self.options, counts, strict=True)
        )

    def _at_least(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        """With as many as the model has to have, and one where something is to be served at all."""
        demand = self.demand
        busy = demand.in_flight > 0.0 or demand.held > 0.0 or any(demand.arrivals) or demand.requests_per_s > 0.0
        least = max(self.policy.replicas_min, demand.replicas_min, int(busy))
        while sum(counts) < least:
            free = [at for at, option in enumerate(self.options) if counts[at] < option.most]
            if not free:
                break
            added = min(
                free, key=lambda at: self.options[at].price(counts[at] + 1) - self.options[at].price(counts[at])
            )
            counts = tuple(count + (at == added) for at, count in enumerate(counts))
        return counts

    def _made_before_broken(self, target: tuple[int, ...], need: list[float]) -> tuple[int, ...]:
        """No replica that serves goes before those that take its place serve, nor while requests are held; as far as
        the budget has room for both.
        """
        ready = [there - self.supply[name].starting for there, name in zip(self.there, self.names, strict=True)]
        left = [min(now, wanted) for now, wanted in zip(ready, target, strict=True)]
        fewer = any(wanted < there for wanted, there in zip(target, self.there, strict=True))
        if not fewer or (self.demand.held <= 0.0 and uncovered(self.options, left, need) <= TINY):
            return target
        return self._affordable([max(wanted, there) for wanted, there in zip(target, self.there, strict=True)], target)

    def _affordable(self, counts: list[int], target: tuple[int, ...]) -> tuple[int, ...]:
        """Within the budget, unless the target is not: of those that come fewer, and where what is there alone costs
        too much, fewer of those that go; of the dearest first.
        """
        by_price = sorted(range(len(counts)), key=lambda at: -self.options[at].usd_per_hour)
        for least in (self.there, target):
            for at in by_price:
                while counts[at] > least[at] and self._too_dear(counts):
                    counts[at] -= 1
        return tuple(counts)

    def _in_steps(self, counts: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
        step = self.policy.step_max
        stepped = (min(max(count, there - step), there + step) for count, there in zip(counts, self.there, strict=True))
        return tuple(
            min(max(count, option.least), option.most) for count, option in zip(stepped, self.options, strict=True)
        )

    # ---- words -------------------------------------------------------------------------

    def _decision(self, counts: tuple[int, ...], found: Sequence[ReplicaMix], reason: str) -> ScalingDecision:
        runner_up = next((mix for mix in found if mix.counts != counts), None)  # the best one, where it is not chosen
        whole = sum(kind.requests_per_s for kind in self.kinds)
        hopeless = sum(kind.requests_per_s for kind in self.hopeless)
        expected = self.expected_per_s()
        if self.hopeless and not self.guaranteed:
            reason = "no variant can meet this SLO, with any number of replicas"
        return ScalingDecision(
            whole,
            expected,
            self.trend.error_per_s,
            hopeless,
            {name: self.capacities[name].requests_per_s for name in self.names},
            dict(zip(self.names, counts, strict=True)),
            self._usd_per_hour(counts),
            dict(zip(self.names, runner_up.counts, strict=True)) if runner_up is not None else {},
            self._usd_per_hour(runner_up.counts) if runner_up is not None else nan,
            reason,
            self.correction,
            self.demand.seasonal_per_s,
            self.demand.seasonal_error_per_s,
            self.bound_per_s(),
            found[0].stopped_after,
            self.planned_per_s(expected),
            self.stepped(expected) / expected if expected > 0.0 else 1.0,
        )

    def _usd_per_hour(self, counts: Sequence[int]) -> float:
        return sum(option.usd_per_hour * count for option, count in zip(self.options, counts, strict=True))

    def _answer(self, at: int, name: str, count: int, why: str, decision: ScalingDecision) -> ScaleTo:
        running = sorted(self.supply[name].running, key=lambda replica: replica.in_flight)
        fewer = max(0, self.there[at] - self.supply[name].starting - count)
        return ScaleTo(name, count, why, tuple(replica.name for replica in running[:fewer]), decision)


def _trend_of(demand: Demand) -> Trend:
    if len(demand.arrivals) < BUCKETS_MIN or demand.bucket_s <= 0.0:
        return steady(min(demand.requests_per_s, RATE_MAX))
    return trend(demand.arrivals, demand.bucket_s)


def _price_per_s(backend: Backend) -> float:
    """Of one replica; where nothing has a price, replicas count."""
    price = backend.price_per_hour
    return (price if 0.0 < price < inf else 1.0) / HOUR_S


policy = Headroom
