"""What several routers share, behind one small interface: their load, their demand, engine reports, beliefs.

Clocks of two machines are not comparable: a time crosses machines only as a time of the store. Must not depend on what
decides or serves. No request waits for a store: ``sync.py`` calls it in the background, and without it a router only
loses the load of its peers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from router.core.errors import StoreGone
from router.core.quota import Shares
from router.core.types import EngineReport, Load
from router.engines import RunningAdapters
from router.gateway.state.seen import SeenVariant
from router.gateway.state.skipped import SkippedValues

NO_ADAPTERS: Final[Mapping[str, RunningAdapters]] = {}
SEEN: Final = "seen:"  # with a router's id: the name under which the backends that it has are kept (``seen.py``)


@dataclass(frozen=True, slots=True)
class KindOfDemand:
    """The demand of one SLO class with prompts of about one length, as it arrives; ``output_tokens`` are expected."""

    slo_class: str
    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    ended: int
    attained: int


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """The demand for one model at one router over its last window.

    Means of ``prompt_tokens`` and ``output_tokens`` a request; ``ended``: requests that ended in the window under the
    SLO of their class, not one that headers changed; ``attained``: how many of these met it; ``slo_class``: the
    tightest class with traffic.

    As requests arrive: ``kinds``, and the ``arrivals`` of the last whole buckets of ``bucket_s``, oldest first (empty:
    from a release that measured none); ``in_flight`` have not ended, and ``held`` of them wait at the router;
    ``shed_per_s`` were refused for want of capacity.
    """

    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    ended: int
    attained: int
    slo_class: str
    kinds: tuple[KindOfDemand, ...] = ()
    arrivals: tuple[float, ...] = ()
    bucket_s: float = 0.0
    in_flight: float = 0.0
    held: float = 0.0
    shed_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RouterView:
    """What one router publishes: work in flight by backend, demand by model, the config version it runs, what it took
    of the quotas, by account, and the address at which its peers send it their changes (``mesh``; empty: none).

    Only where it is read for the autoscaler: ``age_s``, how long ago it was published; ``seen``, the backends that the
    router has, by variant (None: it does not state them, or does not have all of them yet).
    """

    loads: Mapping[str, Load] = field(default_factory=dict)
    demand: Mapping[str, ModelDemand] = field(default_factory=dict)
    version: str = ""
    quotas: Mapping[str, Shares] = field(default_factory=dict)
    age_s: float = 0.0
    seen: tuple[SeenVariant, ...] | None = None
    mesh: str = ""


@dataclass(frozen=True, slots=True)
class Shared:
    """What the store held at one sync: the other routers by id, and engine reports by backend on the caller's clock.

    ``adapters``: for which adapters these engines run requests, where the report says it. ``fault``: why this router's
    own view was not taken (None: it was), as by a server without memory or a replica.
    """

    routers: Mapping[str, RouterView] = field(default_factory=dict)
    reports: Mapping[str, EngineReport] = field(default_factory=dict)
    fault: StoreGone | None = None
    adapters: Mapping[str, RunningAdapters] = field(default_factory=dict)


class Store(Protocol):
    """What the routers of one pool share. Every call may raise StoreGone, in bounded time.

    ``skipped``: the values that it did not take.
    """

    skipped: SkippedValues

    async def sync(self, own: RouterView, backends: tuple[str, ...], now_s: float) -> Shared:
        """Publish this router's view under a lease; read the peers' views and the reports of these backends."""
        ...

    async def report(
        self, reports: Mapping[str, EngineReport], now_s: float, adapters: Mapping[str, RunningAdapters] = NO_ADAPTERS
    ) -> None:
        """Publish engine reports (a sidecar does), and what of *adapters* belongs to them; a report that is not
        repeated expires.
        """
        ...

    async def routers(self, now_s: float) -> Mapping[str, RouterView]:
        """The views of all routers with a lease, this one included, with their age and the backends that they have;
        needs no lease (for the autoscaler).
        """
        ...

    async def beliefs(self, backends: Iterable[str]) -> Mapping[str, bytes]:
        """The belief of each of these backends that was stored last, where there is one."""
        ...

    async def keep_beliefs(self, beliefs: Mapping[str, bytes]) -> None:
        """Store beliefs by backend, so that a new router starts warm."""
        ...

    async def keep(self, name: str, value: bytes, lease_s: float) -> None:
        """Store a value that outlives this process, for so long, under a name that a file may have."""
        ...

    async def kept(self, name: str) -> bytes:
        """The value that was stored last under that name; empty where there is none."""
        ...

    async def close(self) -> None:
        """Release the lease at once and close the connections; never raises."""
        ...
