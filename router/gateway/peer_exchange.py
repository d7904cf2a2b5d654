"""The exchange of changes between this router and its peers: made of the config, and joined to the core.

Must not depend on how messages travel, nor on what a change holds.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Final

from router.config import settings
from router.core.dispatcher import Dispatcher
from router.core.peer_change import PeerChange
from router.gateway.config.plan import Plan
from router.gateway.state import RouterView
from router.gateway.state.changes import Changes, Channel
from router.gateway.state.datagrams import Datagrams
from router.gateway.state.mesh import Mesh
from router.gateway.state.skipped import SkippedValues
from router.gateway.traffic.driver import Driver
from router.gateway.worker_identity import WorkerIdentity

_LIFE_BITS: Final = 62
_ANY: Final = ("0.0.0.0", "::")  # hosts that stand for all addresses of this one


class _Source:
    """The core's side of the exchange."""

    def __init__(self, core: Dispatcher, driver: Driver, clock: Callable[[], float]) -> None:
        self._core, self._driver, self._clock = core, driver, clock

    def own_changes(self, whole: bool, part: int, parts: int) -> PeerChange | None:
        return self._core.own_change(self._clock(), whole=whole, part=part, parts=parts)

    @property
    def waited_for(self) -> bool:
        return self._core.held_anywhere

    def on_peer_change(self, peer: str, change: PeerChange) -> None:
        self._driver.perform(self._driver.core.on_peer_change(peer, change, self._clock()))

    def forget_silent_peers(self) -> None:
        self._driver.perform(self._driver.core.forget_silent_peers(self._clock()))


def exchange(
    plan: Plan,
    identity: WorkerIdentity | None,
    core: Dispatcher,
    driver: Driver,
    clock: Callable[[], float],
    skipped: SkippedValues,
    views: Callable[[], Mapping[str, RouterView]],
) -> Changes | None:
    """The exchange; None: the config has turned it off, or nothing carries changes to a peer.

    From now on *driver* reports its events to it. ``views``: of the other routers, with their addresses.
    """
    state = plan.settings.state
    channels: list[Channel] = []
    if identity is not None and identity.others:
        channels.append(Datagrams(identity.changes(identity.slot), map(identity.changes, identity.others)))
    if state.mesh is not None:
        channels.append(_mesh(plan, state.mesh, identity, views))
    if state.push_s is None or not channels:
        return None
    router_id = identity.router_id if identity else plan.router_id
    life = secrets.randbits(_LIFE_BITS)
    made = Changes(channels, _Source(core, driver, clock), router_id, life, state.push_s, skipped, clock)
    driver.on_event = made.on_event
    return made


def _mesh(
    plan: Plan,
    given: settings.Mesh,
    identity: WorkerIdentity | None,
    views: Callable[[], Mapping[str, RouterView]],
) -> Mesh:
    """The connections to routers of other hosts; the other workers of this one are reached without."""
    siblings = {identity.id_of(slot) for slot in identity.others} if identity else frozenset()
    port = given.port + identity.slot if identity and given.port else given.port
    seed = plan.redis.seeds[0] if plan.redis is not None else None
    toward = (seed.host, seed.port) if seed is not None and seed.host else None
    advertised = given.advertise or ("" if given.host in _ANY else given.host)

    def addresses() -> dict[str, str]:
        return {name: view.mesh for name, view in views().items() if view.mesh and name not in siblings}

    return Mesh(given.host, port, given.key, advertised, toward, addresses)
