"""What several routers share in a run: views of each other that are so old, or changes that arrive so much later.

Nothing is shared while nothing changes, so that an idle second costs nothing however fresh the views are. Depends on
the world's periods. Must not depend on what the routers decide.
"""

from collections.abc import Sequence
from math import floor, inf
from typing import Final

from router.core.peer_change import WHOLE_S, PeerChange
from simulator.run.kernel import Kernel
from simulator.run.router import SimulatedRouter
from simulator.world import World

_LATER: Final = 1e-9  # of a period: rounding does not make a period of its own


class Sharing:
    """Passes on what changes at each of several routers."""

    def __init__(self, routers: Sequence[SimulatedRouter], kernel: Kernel, world: World) -> None:
        """From now on every router's changes reach the others."""
        self._routers, self._kernel, self._sync_s, self._push_s = routers, kernel, world.sync_s, world.push_s
        self._due_s = -inf  # of the next sync, if that is still to come
        self._whole_s = dict.fromkeys((router.name for router in routers), -inf)
        for router in routers:
            router.on_change = self._sync_later if world.push_s == inf else self._push

    # ---- views -------------------------------------------------------------------

    def _sync_later(self, _: SimulatedRouter) -> None:
        """Something may have changed at a router: the others see it with the next sync."""
        now_s = self._kernel.now_s
        if self._due_s < now_s:
            self._due_s = (floor(now_s / self._sync_s + _LATER) + 1) * self._sync_s
            self._kernel.at(self._due_s, self._sync)

    def _sync(self, _: object) -> None:
        """Every router receives the load of the others."""
        self._due_s = -inf
        loads = {router.name: router.core.loads() for router in self._routers}
        for router in self._routers:
            for name, load in loads.items():
                if name != router.name:
                    router.on_commands(router.core.on_peer_load(name, load, self._kernel.now_s))

    # ---- changes -------------------------------------------------------------------

    def _push(self, router: SimulatedRouter) -> None:
        """Send the others what changed at a router, and now and then all of it."""
        now_s = self._kernel.now_s
        whole = now_s - self._whole_s[router.name] >= WHOLE_S
        if whole:
            self._whole_s[router.name] = now_s
        change = router.core.own_change(now_s, whole=whole)
        if change is not None:
            self._kernel.at(now_s + self._push_s, self._deliver, (router, self.passed(change)))

    def passed(self, change: PeerChange) -> PeerChange:
        """What of a change reaches the others: all of it."""
        return change

    def _deliver(self, sent: tuple[SimulatedRouter, PeerChange]) -> None:
        sender, change = sent
        for router in self._routers:
            if router is not sender:
                router.on_commands(router.core.on_peer_change(sender.name, change, self._kernel.now_s))
