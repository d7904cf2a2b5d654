"""What several routers share, behind one small interface: their load, their demand, engine reports, beliefs.

Believes: every clock is somebody's own; a time crosses machines only as a time of the store. Must not know who decides
or serves. The hot path never waits for a store: ``sync.py`` calls it beside the traffic, and losing it loses nothing
but the others' view.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from router.core.types import EngineReport, Load


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """What one router was asked of one model over its last window.

    Means of ``prompt_tokens`` and ``output_tokens`` a request; ``ended``: requests that ended in the window under the
    SLO of their class, not one that headers changed; ``attained``: how many of these met it; ``slo_class``: the
    tightest class with traffic.
    """

    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    ended: int
    attained: int
    slo_class: str


@dataclass(frozen=True, slots=True)
class RouterView:
    """What one router says of itself: work in flight by backend, demand by model, the config version it runs."""

    loads: Mapping[str, Load] = field(default_factory=dict)
    demand: Mapping[str, ModelDemand] = field(default_factory=dict)
    version: str = ""


@dataclass(frozen=True, slots=True)
class Shared:
    """What the store held at one sync: the other routers by id, and engine reports by backend on the caller's clock."""

    routers: Mapping[str, RouterView] = field(default_factory=dict)
    reports: Mapping[str, EngineReport] = field(default_factory=dict)


class Store(Protocol):
    """Where routers of one pool meet. Every call may raise StoreGone, in bounded time."""

    async def sync(self, own: RouterView, backends: tuple[str, ...], now_s: float) -> Shared:
        """Publish our own view under a lease; read the others', and what sidecars say of these backends."""
        ...

    async def report(self, reports: Mapping[str, EngineReport], now_s: float) -> None:
        """Publish what engines say of themselves (a sidecar does); it expires if not repeated."""
        ...

    async def routers(self, now_s: float) -> Mapping[str, RouterView]:
        """All routers with a lease, ours included, without becoming one (the autoscaler reads so)."""
        ...

    async def beliefs(self) -> Mapping[str, bytes]:
        """What was learnt of each backend and last kept."""
        ...

    async def keep_beliefs(self, beliefs: Mapping[str, bytes]) -> None:
        """Keep what was learnt, by backend, so that a new router starts warm."""
        ...

    async def close(self) -> None:
        """Give up our lease at once and close the connections; never raises."""
        ...
