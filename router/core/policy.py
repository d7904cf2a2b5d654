"""The three Protocols a policy may fulfil, and what "pure" asks of them.

A policy is a frozen value with one verb; its fields are its parameters. It answers from its arguments alone: the same
request, fleet, forecast and rng state give the same answer. It may keep nothing between calls; what admission must
remember (a token bucket) is a value it hands back, so that reload and replay lose nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from router.core.decisions import Admit, Choice, ScaleTo, Shed
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.types import Backend, Request, Rng, Slo

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


@dataclass(frozen=True, slots=True)
class Demand:
    """The demand for one model lately, and the variants that may serve it.

    ``requests_per_s`` with mean ``prompt_tokens`` and ``output_tokens``; ``slo`` the tightest class with traffic;
    ``replicas``: how many of each variant run now; ``variants``: one backend of each variant, as its pattern;
    ``attainment``: share of the requests of the window that met their SLO (nan: none ended).
    """

    model: str
    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    slo: Slo
    replicas: Mapping[str, int]
    variants: Mapping[str, Backend]
    attainment: float


class Scaling(Protocol):
    """How many replicas of each variant the demand needs."""

    def scale(self, demand: Demand) -> Sequence[ScaleTo]:
        """One answer for each variant in ``demand.variants``."""
        ...
