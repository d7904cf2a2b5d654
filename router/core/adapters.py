"""Which adapters (LoRA) each backend has ready, so that a request for one need not wait until it is loaded.

An engine has places for so many at once and gives up the one used longest ago. Those are known from what requests were
sent for and from what the engine reports of those that run. Must not depend on load, or on how engines report.
"""

from collections.abc import Iterable
from typing import Final

PLACES: Final = 1  # of an engine that does not say; vLLM's own default
PLACES_MOST: Final = 1024


class Adapters:
    """By slot, the adapters in the order of their last use."""

    def __init__(self) -> None:
        self._used: dict[int, dict[str, None]] = {}
        self._places: dict[int, int] = {}

    def ready(self, slot: int, name: str) -> bool:
        """Whether the adapter should be loaded there."""
        used = self._used.get(slot)
        return used is not None and name in used

    def use(self, slot: int, name: str) -> None:
        """A request for the adapter runs there: it is loaded now, if it was not, in the place of another."""
        used = self._used.setdefault(slot, {})
        used.pop(name, None)
        used[name] = None
        while len(used) > self._places.get(slot, PLACES):
            del used[next(iter(used))]

    def reported(self, slot: int, running: Iterable[str], places: int) -> None:
        """The engine has so many places, and requests for these adapters run there."""
        self._places[slot] = min(max(places, PLACES), PLACES_MOST)
        for name in running:
            self.use(slot, name)

    def forget(self, slot: int) -> None:
        """The backend left, or its engine began anew."""
        self._used.pop(slot, None)
        self._places.pop(slot, None)
