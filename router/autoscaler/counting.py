"""How many replicas of each variant of a model there are: as the target observes them, else as the routers have them,
else as the config lists them; or that it is not known, which is never taken for none.

One workload that cannot be observed holds up its own models alone, and is observed less and less often. Must not depend
on policies; times are arguments.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import isfinite, isnan
from typing import Final

from router.autoscaler.advice import UNBOUNDED, Existing, Loads, bounds_of, variants
from router.autoscaler.demand import Views
from router.autoscaler.memory import ScalingMemory
from router.autoscaler.start_times import Place
from router.core.errors import NotObserved
from router.core.scaling import ReplicaLoad
from router.core.types import Backend, Load
from router.gateway.config.plan import Plan, replica_of
from router.gateway.state.seen import SeenBackend, SeenVariant
from router.targets import Replicas, Target

ROUNDS_APART_MAX: Final = 16
ORDER_STARTS: Final = 3.0  # start times after which a replica that was ordered is not waited for any more
ORDER_S_MIN: Final = 120.0
DOWN_S_MIN: Final = 60.0  # a backend that is down for less, or for less than two start times, may be back at once

_log = logging.getLogger("headroom")


class CountedBy(Enum):
    """Who counted the replicas of a variant."""

    TARGET = "target"
    ROUTERS = "routers"
    CONFIG = "config"


@dataclass(frozen=True, slots=True)
class Counts:
    """``existing``: the replicas by model and variant, and ``by`` whom they were counted; ``unknown``: by model, why
    what runs of it is not known; ``loads``: what is in flight on each of those that routers have.
    """

    existing: Existing = field(default_factory=dict)
    by: Mapping[Place, CountedBy] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    loads: Loads = field(default_factory=dict)


@dataclass(slots=True)
class _Failing:
    """An observation that failed: how often, and in how many rounds it is tried again."""

    why: str
    failures: int = 0
    wait_rounds: int = 0


def seen_in(views: Views) -> tuple[SeenVariant, ...] | None:
    """What the routers have, together; None where no router states it."""
    stated = [view.seen for view in views.values() if view.seen is not None]
    return tuple(variant for seen in stated for variant in seen) if stated else None


def with_patterns(plan: Plan, seen: Iterable[SeenVariant]) -> Plan:
    """The plan with a pattern of each variant that routers have and it does not state itself."""
    own = {
        (backend.variant, model) for backend in (*plan.patterns.values(), *plan.backends) for model in backend.models
    }
    found: dict[str, Backend] = {}
    for each in seen:
        key = f"{each.variant} of {' '.join(each.models)}"
        if key not in found and any((each.variant, model) not in own for model in each.models):
            pattern = replica_of(each.facts, each.variant, each.models, plan.profile)
            if pattern is not None:
                found[key] = pattern
    return plan.with_patterns({**found, **plan.patterns}) if found else plan


class Counting:
    """The count of each round; remembers what failed, and since when which backends are down."""

    def __init__(self) -> None:
        self._failing: dict[Place, _Failing] = {}
        self._down_s: dict[tuple[Place, str], float] = {}

    def restart(self) -> None:
        """Forget what failed: the target is another."""
        self._failing.clear()

    async def counts(
        self, plan: Plan, models: Sequence[str], target: Target, views: Views, memory: ScalingMemory, now_s: float
    ) -> Counts:
        """Of these models. ``now_s``: in seconds since the epoch."""
        places = [(model, variant) for model in models for variant in variants(plan, model)]
        observed = await asyncio.gather(*(self._observed(target, place) for place in places))
        seen = seen_in(views)
        existing: dict[Place, Replicas] = {}
        by: dict[Place, CountedBy] = {}
        unknown: dict[str, str] = {}
        for place, found in zip(places, observed, strict=True):
            if seen is not None:
                self._note_starts(place, seen, memory, now_s)
            if isinstance(found, NotObserved):
                unknown.setdefault(place[0], f"the replicas of {place[1]} could not be observed: {found}")
            elif found is not None:
                stated = found.ready_stated or seen is None
                existing[place] = found if stated else _parted(found.ready, place, seen or ())
                by[place] = CountedBy.TARGET
            elif seen is not None:
                existing[place], by[place] = self._seen(plan, place, seen, memory, now_s), CountedBy.ROUTERS
            elif not plan.settings.discover:
                by[place] = CountedBy.CONFIG
            else:
                unknown.setdefault(place[0], f"what runs of {place[1]} is not known: {_NOT_STATED}")
        return Counts(existing, by, unknown, {place: _loads(place, seen or (), views) for place in places})

    # -- by the target -----------------------------------------------------------------------------------------

    async def _observed(self, target: Target, place: Place) -> Replicas | NotObserved | None:
        failing = self._failing.get(place)
        if failing is not None and failing.wait_rounds > 0:
            failing.wait_rounds -= 1
            return NotObserved(f"{failing.why} ({failing.failures} times; tried again later)")
        try:
            found = await target.observe(*place)
        except Exception as error:
            return self._failed(place, str(error) if isinstance(error, NotObserved) else repr(error))
        self._failing.pop(place, None)
        return found

    def _failed(self, place: Place, why: str) -> NotObserved:
        failing = self._failing.setdefault(place, _Failing(""))
        if failing.why != why:
            _log.warning("%s: the replicas of %s could not be observed: %s; its advice stays as it is", *place, why)
        failing.why = why
        failing.failures += 1
        failing.wait_rounds = min(2 ** min(failing.failures - 1, 10), ROUNDS_APART_MAX) - 1
        return NotObserved(why)

    # -- by the routers ----------------------------------------------------------------------------------------

    def _note_starts(self, place: Place, seen: Sequence[SeenVariant], memory: ScalingMemory, now_s: float) -> None:
        backends = _backends(place, seen)
        up = {name: each.first_ttft_s for name, each in backends.items() if each.up}
        memory.starts.seen(place, up, now_s, backends.keys() - up.keys())

    def _seen(
        self, plan: Plan, place: Place, seen: Sequence[SeenVariant], memory: ScalingMemory, now_s: float
    ) -> Replicas:
        """Those that are up serve; those that are down for a short time, and those that were ordered and are not there
        yet, start.
        """
        start_s = memory.starts.expected_s(place[1], bounds_of(plan, place[1]).start_s)
        backends = _backends(place, seen)
        up = sum(each.up for each in backends.values())
        down = {name for name, each in backends.items() if not each.up}
        self._down_s = {key: since_s for key, since_s in self._down_s.items() if key[0] != place or key[1] in down} | {
            (place, name): min(self._down_s.get((place, name), now_s), now_s)  # the clock may have been set back
            for name in down
        }
        patience_s = max(DOWN_S_MIN, 2.0 * start_s)
        starting = sum(now_s - self._down_s[place, name] < patience_s for name in down)
        order = memory.order(place, now_s)
        if order is not None and now_s - order.at_s < max(ORDER_S_MIN, ORDER_STARTS * start_s):
            starting = max(starting, min(order.replicas, UNBOUNDED) - up)
        return Replicas(up, starting)


def _backends(place: Place, seen: Iterable[SeenVariant]) -> dict[str, SeenBackend]:
    """The backends of a variant that serve a model, by name; up where they are so for any router."""
    model, variant = place
    found: dict[str, SeenBackend] = {}
    for each in seen:
        if each.variant == variant and model in each.models:
            for name, backend in each.backends.items():
                known = found.get(name)
                found[name] = backend if known is None else _together(known, backend)
    return found


def _parted(count: int, place: Place, seen: Iterable[SeenVariant]) -> Replicas:
    """So many replicas, of which those serve that routers have up."""
    ready = min(sum(each.up for each in _backends(place, seen).values()), count)
    return Replicas(ready, count - ready)


def _loads(place: Place, seen: Iterable[SeenVariant], views: Views) -> tuple[ReplicaLoad, ...]:
    """What all routers have in flight on each backend that is up."""
    loads = [view.loads for view in views.values()]
    up = [name for name, backend in _backends(place, seen).items() if backend.up]
    return tuple(ReplicaLoad(name, sum(map(_in_flight, (each[name] for each in loads if name in each)))) for name in up)


def _in_flight(load: Load) -> float:
    requests = load.prefilling + load.decoding
    return requests if isfinite(requests) else 0.0  # a peer may publish what is no number


def _together(one: SeenBackend, other: SeenBackend) -> SeenBackend:
    first_s = other.first_ttft_s if isnan(one.first_ttft_s) else one.first_ttft_s
    return SeenBackend(one.up or other.up, first_s)


_NOT_STATED: Final = "the target cannot observe it, and no router states all backends that it has"
