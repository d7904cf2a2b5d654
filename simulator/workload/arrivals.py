"""Trace entries or generated requests as arrivals: the core's requests with their times, SLOs and reply lengths.

``output_tokens`` is passed with a request only to the replica that serves it. Must not depend on policies or replicas.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from math import inf
from random import Random
from typing import Final, Protocol

from router.core.slo_metrics import INDEX, SLO_METRICS
from router.core.types import NO_SLO, Fact, Request, Slo, slo_of
from router.spelling import suggestion
from simulator.traces.entry import INFEASIBLE, TraceEntry


@dataclass(init=False, slots=True, unsafe_hash=True)
class Arrival(Fact):
    """A request and the length of its reply, of all of its sequences together.

    ``known_prefix``: hashes of prompt and reply together, if a later turn begins with both; ``tries``: earlier attempts
    of its client, the first at ``first_try_s``.
    """

    request: Final[Request]
    output_tokens: Final[int]
    known_prefix: Final[tuple[Hashable, ...]]
    tries: Final[int]
    first_try_s: Final[float]

    def __init__(
        self,
        request: Request,
        output_tokens: int,
        known_prefix: tuple[Hashable, ...] = (),
        tries: int = 0,
        first_try_s: float = 0.0,
    ) -> None:
        self.request = request
        self.output_tokens = output_tokens
        self.known_prefix = known_prefix
        self.tries = tries
        self.first_try_s = first_try_s

    @property
    def first_arrived_s(self) -> float:
        """When its client first sent it: its SLO counts from there."""
        return self.first_try_s if self.tries else self.request.arrived_s


class Workload(Protocol):
    """Arrivals of which some follow from others: ``after`` returns those that follow from an end.

    ``pending`` counts what ``after`` has returned and has not arrived yet. ``paced``: whether some arrivals follow from
    no other, at a rate that can be changed.
    """

    pending: int

    @property
    def paced(self) -> bool:
        """See above."""
        ...

    def __iter__(self) -> Iterator[Arrival]:
        """The arrivals that follow from no other, in order."""
        ...

    def __len__(self) -> int:
        """The number of arrivals in all."""
        ...

    def after(self, arrival: Arrival, ended_s: float) -> Sequence[Arrival]:
        """The arrivals that follow because *arrival* ended at *ended_s*, each at its ``arrived_s``."""
        ...


@dataclass(frozen=True, slots=True)
class SloClass(Fact):
    """An SLO, and the share of the requests without an SLO of their own that get it."""

    name: str
    slo: Slo
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Shaping:
    """What is done to a trace before it is played: ``rate`` x as fast, from ``from_s`` to ``to_s`` of it, at most
    ``limit`` requests; requests without a model ask for ``model``, those without an SLO draw a class by share, those
    without a cap of their reply state ``output_tokens_max`` (0: none), doubled until the reply fits.
    """

    model: str
    classes: tuple[SloClass, ...] = ()
    rate: float = 1.0
    from_s: float = 0.0
    to_s: float = inf
    limit: int | None = None
    output_tokens_max: int = 0


class Shaper:
    """Turns entries into arrivals, one by one: model, SLO class, id."""

    def __init__(self, how: Shaping, seed: int) -> None:
        """Classes are drawn from *seed*."""
        self._model = how.model
        self._output_tokens_max = how.output_tokens_max
        self._classes = how.classes or (SloClass("default", NO_SLO),)
        self._bounds = list(accumulate(c.share for c in self._classes))
        self._by_name = {c.name: c.slo for c in self._classes}
        self._draw = Random(f"{seed}/classes").random
        self._count = 0

    def arrival(self, entry: TraceEntry, arrived_s: float, known_prefix: tuple[Hashable, ...] = ()) -> Arrival:
        """The next arrival."""
        drawn = self._classes[0] if len(self._classes) == 1 else self._drawn()
        slo = entry.slo or self._by_name.get(entry.slo_class) or drawn.slo
        request = Request(
            entry.id or f"r{self._count}",
            entry.model or self._model,
            arrived_s,
            entry.prompt_tokens,
            entry.output_tokens_max or self._cap(entry.output_tokens),
            slo,
            entry.slo_class or ("own" if entry.slo else drawn.name),
            entry.priority,
            entry.tenant,
            entry.session,
            entry.prefix,
            entry.prefix_block_tokens,
            entry.streamed,
            sequences=entry.sequences,
            prompts=entry.prompts,
            prompt_tokens_longest=-(-entry.prompt_tokens // entry.prompts) if entry.prompts > 1 else 0,
            fallback=entry.fallback,
            requested_model=entry.requested_model,
        )
        self._count += 1
        return Arrival(request, entry.output_tokens, known_prefix)

    def _cap(self, output_tokens: int) -> int:
        cap = self._output_tokens_max
        while 0 < cap < output_tokens:
            cap *= 2
        return cap

    def _drawn(self) -> SloClass:
        at = self._draw() * self._bounds[-1]
        return next((c for c, bound in zip(self._classes, self._bounds, strict=True) if at < bound), self._classes[-1])


def shape(entries: Sequence[TraceEntry], how: Shaping, seed: int) -> list[Arrival]:
    """The arrivals, from 0 s on, in order. ``entries`` must be in order of arrival."""
    if not entries:
        return []
    start_s, end_s = entries[0].arrived_s + how.from_s, entries[0].arrived_s + how.to_s
    shaper = Shaper(how, seed)
    inside = (entry for entry in entries if start_s <= entry.arrived_s < end_s)
    return [
        shaper.arrival(entry, (entry.arrived_s - start_s) / how.rate, entry.known_prefix)
        for entry in islice(inside, how.limit)
    ]


def with_distinct_ids(arrivals: Iterable[Arrival]) -> list[Arrival]:
    """The same arrivals with distinct ids, as the core requires of concurrent requests."""
    seen: set[str] = set()
    result = []
    for arrival in arrivals:
        request, number = arrival.request, len(seen)
        if request.id in seen:
            while f"{request.id}#{number}" in seen:
                number += 1
            request = replace(request, id=f"{request.id}#{number}")
        seen.add(request.id)
        result.append(Arrival(request, arrival.output_tokens, arrival.known_prefix))
    return result


# ---- SLOs in words ------------------------------------------------------------


def parse_seconds(text: str) -> float:
    """Seconds of ``2s``, ``100ms``, ``1.5`` (seconds) or ``3m``. Raises ValueError."""
    for unit, scale in (("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)):
        if text.endswith(unit):
            try:
                return float(text.removesuffix(unit)) * scale
            except ValueError:
                break
    raise ValueError(f"expected a time such as 2s or 100ms, got {text!r}")


def parse_slo(text: str) -> SloClass:
    """The class of ``ttft=2s,tpot=100ms,e2e=60s,quantile=0.95``, optionally after name and share: ``chat@0.7:ttft=1s``.

    ``infeasible=refuse`` (or ``best_effort``, the default) says how a request is treated whose bounds no backend could
    meet even when idle. Raises ValueError: what was expected.
    """
    head, colon, body = text.rpartition(":")
    name, _, share = head.partition("@")
    bounds_s, quantile = [inf] * len(SLO_METRICS), 0.9
    infeasible = INFEASIBLE[0]
    for part in body.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"--slo {text!r}: expected key=value, got {part!r}")
        if key == "quantile":
            quantile = float(value)
        elif key == "infeasible":
            infeasible = value
        elif key in INDEX:
            bounds_s[INDEX[key]] = parse_seconds(value)
        else:
            raise ValueError(f"--slo {text!r}: {_unknown_key(key)}")
    if infeasible not in INFEASIBLE:
        raise ValueError(f"--slo {text!r}: infeasible must be {' or '.join(INFEASIBLE)}, got {infeasible!r}")
    if not all(bound_s > 0 for bound_s in bounds_s) or not 0 < quantile < 1:
        raise ValueError(f"--slo {text!r}: bounds must be above 0 and the quantile below 1")
    slo = slo_of(bounds_s, quantile, infeasible == INFEASIBLE[1])
    return SloClass(name if colon else "default", slo, float(share) if share else 1.0)


def _unknown_key(key: str) -> str:
    return f"unknown key {key!r}; {suggestion(key, [*INDEX, 'quantile', 'infeasible'])}"
