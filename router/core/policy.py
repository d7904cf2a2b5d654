"""The three Protocols a policy may fulfil, and what "pure" asks of them.

A policy is a frozen value with one verb; its fields are its parameters. It answers from its arguments alone: the same
request, fleet, forecast and rng state give the same answer. It may keep nothing between calls; what admission must
remember (a token bucket) is a value it hands back, so that reload and replay lose nothing.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from router.core.decisions import Admit, Choice, ScaleTo, Shed
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.scaling import Demand
from router.core.types import Request, Rng

__all__ = ["Admission", "Demand", "Memory", "Routing", "Scaling", "rank_times"]

Memory = Any  # whatever an admission policy hands back; the dispatcher keeps it and never looks inside


class Routing(Protocol):
    """Where a request goes now."""

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Dispatch to one of ``fleet.slots`` (never empty), hold, or shed."""
        ...


class Admission(Protocol):
    """Who may come in, and in what order the held are served."""

    @property
    def held_max(self) -> int:
        """How many requests of one model may be held at the gateway."""
        ...

    @property
    def hold_s_max(self) -> float:
        """How long one may be held, seconds."""
        ...

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit | Shed, Memory]:
        """Let the request through to routing, with its rank should it have to wait, or refuse it.

        ``memory`` is what the last call handed back, None at first; it is a value, never changed in place.
        """
        ...


def rank_times(admission: object) -> tuple[int, ...] | None:
    """The places in an admission policy's ranks that are moments, which routers need to compare what they hold: its
    clocks are those of several hosts. None where the policy does not state it (``rank_times``, which is optional): each
    router's held requests are a queue of their own then.
    """
    stated = getattr(admission, "rank_times", None)
    return stated if isinstance(stated, tuple) else None


class Scaling(Protocol):
    """How many replicas of each variant the demand needs."""

    def scale(self, demand: Demand) -> Sequence[ScaleTo]:
        """One answer for each variant in ``demand.variants``; a variant without an answer stays as it is."""
        ...
