"""The facts that a scaling policy sees, and the decision that it explains: demand as it arrives, supply by variant.

Plain values. Must not depend on how demand is measured, or on what carries a decision out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import Any, Final

from router.core.types import Backend, Slo

CORRECTED: Final = 0.995  # a correction of less is not worth a word


@dataclass(frozen=True, slots=True)
class KindDemand:
    """Requests of one SLO class whose prompts are about as long. Means of ``prompt_tokens`` as they arrived and of
    ``output_tokens`` as they are expected; ``ended`` and ``attained``: of those that ended under the SLO of their
    class, lately.
    """

    slo_class: str
    slo: Slo
    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    ended: int = 0
    attained: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """One running replica, for the choice of which to drain: the replies in flight there."""

    name: str
    in_flight: float = 0.0


@dataclass(frozen=True, slots=True)
class Supply:
    """What is known of one variant beside its pattern.

    ``start_s``: from the order of a replica to its first token; ``start_usd``: what an order costs once, beside the
    price while it starts; ``loss_per_hour``: of one replica, by the provider (spot); ``starting`` of
    ``Demand.replicas`` do not serve yet; ``draining`` come on top of these; ``running``: the replicas that serve;
    ``learnt``: a belief about such a replica, as routers export it.
    """

    start_s: float = 60.0
    replicas_min: int = 0
    replicas_max: int = 1_000_000
    start_usd: float = 0.0
    loss_per_hour: float = 0.0
    starting: int = 0
    draining: int = 0
    running: tuple[ReplicaLoad, ...] = ()
    learnt: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """Why a model gets these replicas. Rates are requests a second; ``capacity`` by variant is of one replica;
    ``usd_per_hour`` of ``mix``; ``runner_up``: the next cheapest mix that would do, empty where there is none (its cost
    is nan then); ``error_per_s``: the standard error of the forecast, and ``bound_per_s`` the rate that replicas are
    kept for before fewer are wanted (nan: of an earlier release); ``hopeless_per_s``: requests that no variant serves
    within their SLO, which count for nothing; ``correction``: what capacities were multiplied by, because
    replicas that should have sufficed did not; ``seasonal_per_s`` with its ``seasonal_error_per_s``: what earlier days
    or weeks foretell (nan: nothing); ``stopped_after``: so many mixes had been compared when the search for the
    cheapest ended at its limit (0: it compared all that could be cheaper); ``planned_per_s``: the forecast with its
    bursts, beyond which a step is one that nothing foretold; ``times``: for so many times the forecast there is to be
    room, because of such steps.
    """

    demand_per_s: float
    forecast_per_s: float
    error_per_s: float
    hopeless_per_s: float
    capacity: Mapping[str, float]
    mix: Mapping[str, int]
    usd_per_hour: float
    runner_up: Mapping[str, int] = field(default_factory=dict)
    runner_up_usd_per_hour: float = nan
    reason: str = ""
    correction: float = 1.0
    seasonal_per_s: float = nan
    seasonal_error_per_s: float = nan
    bound_per_s: float = nan
    stopped_after: int = 0
    planned_per_s: float = nan
    times: float = 1.0

    def described(self) -> str:
        """In one line."""
        bound = f", at most {self.bound_per_s:.2f}" if isfinite(self.bound_per_s) else ""
        text = (
            f"{self.demand_per_s:.2f} req/s, forecast {self.forecast_per_s:.2f} +- {self.error_per_s:.2f}{bound}"
            f"; a replica serves {_listed(self.capacity, '.2f')}"
            f"; {_listed(self.mix, 'd')} at {self.usd_per_hour:.2f} USD/h"
        )
        if isfinite(self.seasonal_per_s):
            text += f", by earlier days {self.seasonal_per_s:.2f} +- {self.seasonal_error_per_s:.2f}"
        if self.times > 1.0:
            text += f", planned for {self.times:.2f} times the forecast because of steps"
        if self.correction < CORRECTED:
            text += f", corrected by {self.correction:.2f}"
        if self.hopeless_per_s > 0.0:
            text += f"; {self.hopeless_per_s:.2f} req/s that no variant can serve"
        if self.runner_up:
            text += f"; next {_listed(self.runner_up, 'd')} at {self.runner_up_usd_per_hour:.2f} USD/h"
        if self.stopped_after:
            text += f"; the cheapest of the {self.stopped_after} mixes compared, at which the search stopped"
        return f"{text}; {self.reason}" if self.reason else text


@dataclass(frozen=True, slots=True)
class Demand:
    """The demand for one model lately, and the variants that may serve it.

    ``requests_per_s`` with mean ``prompt_tokens`` and ``output_tokens``; ``slo`` the tightest class with traffic;
    ``replicas``: how many of each variant there are, those that start included; ``variants``: one backend of each
    variant, as its pattern; ``attainment``: share of the requests of the window that met their SLO (nan: none ended).

    The rest is empty where nothing measures it. ``kinds``: the same demand by class and length of prompt;
    ``arrivals``: requests that arrived in each of the last whole buckets of ``bucket_s``, oldest first; ``in_flight``
    requests have not ended, ``held`` of them wait at routers; ``supply`` by variant; ``age_s``: how old the newest of
    these numbers is; ``settled_s``: since when as many replicas serve as now; ``period_s``: until the next evaluation;
    ``seasonal_per_s``: the highest rate that the same time of earlier days or weeks lets expect while a replica starts
    (nan: no history), with its standard error ``seasonal_error_per_s``; ``beyond``: of so many times the plans of the
    last days, the share of the requests that came beyond them, and ``highest_per_s`` the highest rate of a minute;
    ``replicas_min``: of all variants together (0:
    the model may sleep);
    ``last``: the decision before this one (None: none since the start), which holds what a policy has to remember.
    """

    model: str
    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    slo: Slo
    replicas: Mapping[str, int]
    variants: Mapping[str, Backend]
    attainment: float
    kinds: tuple[KindDemand, ...] = ()
    arrivals: tuple[float, ...] = ()
    bucket_s: float = 0.0
    in_flight: float = 0.0
    held: float = 0.0
    shed_per_s: float = 0.0
    supply: Mapping[str, Supply] = field(default_factory=dict)
    age_s: float = 0.0
    settled_s: float = inf
    period_s: float = 15.0
    seasonal_per_s: float = nan
    seasonal_error_per_s: float = nan
    replicas_min: int = 1
    last: ScalingDecision | None = None
    beyond: tuple[tuple[float, float], ...] = ()
    highest_per_s: float = 0.0


def _listed(by_name: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name} {number:{form}}" for name, number in by_name.items())
