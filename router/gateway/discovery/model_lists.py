"""Reads the lists of models of engines again and again: adapters are loaded and unloaded while an engine runs.

What an engine listed last stays when it does not answer: whether it serves is for its health checks to say. Must not
depend on what serves at the moment: ``on_changed`` is called whenever a list has changed.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from router.config.settings import Backend
from router.core.errors import Unanswered
from router.engines import OPENAI_PROTOCOL, ListedModel, model_list
from router.gateway.config.plan import ListedAdapters
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.monitoring.repeating import Places, Repeated, start_s
from router.gateway.tls import TlsContext
from router.gateway.turns import in_turns

_PATH: Final = "/v1/models"
_NAMED_MOST: Final = 8  # of an engine's models in one line of the log
_log = logging.getLogger("headroom")


@dataclass(frozen=True, slots=True)
class ListedEngine:
    """One engine whose list is read. ``key``: its bearer token; ``certificates``: as in its target."""

    given: Backend
    key: str = ""
    certificates: TlsContext | None = None


class ModelLists:
    """The list of each engine, as last read, by backend."""

    def __init__(
        self,
        on_changed: Callable[[], Awaitable[None]],
        on_adapters: Callable[[str, tuple[str, ...], float], None],
        make_client: Callable[[float], ProbeClient],
        clock: Callable[[], float],
    ) -> None:
        """``on_adapters``: called with a backend, the adapters that it lists and when that was asked, at each answer;
        ``make_client``: a client whose every wait is bounded by the seconds given.
        """
        self.lists: dict[str, tuple[ListedModel, ...]] = {}
        self._on_changed, self._on_adapters, self._make_client = on_changed, on_adapters, make_client
        self._clock = clock
        self._places = Places()
        self._reading: dict[str, tuple[tuple[ListedEngine, float, float], Repeated]] = {}
        self._unserved: set[str] = set()  # whose lists have changed; what serves may not have them yet

    def adapters(self, given: Backend) -> ListedAdapters:
        """The adapters that the engine lists of models that are routed to it."""
        models = given.models
        listed = {each.name for each in self.lists.get(given.name, ()) if each.parent in models.values()}
        unnamed = tuple(sorted(listed - {*models, *models.values()}))
        return ListedAdapters(tuple(ours for ours, theirs in models.items() if theirs in listed) + unnamed, unnamed)

    async def watch(self, engines: Iterable[ListedEngine], period_s: float | None, timeout_s: float) -> None:
        """Read the lists of these from now on, and no others; ``period_s`` None: of none."""
        wanted = {}
        if period_s is not None:
            listing = (each for each in engines if each.given.kind.protocol == OPENAI_PROTOCOL)
            wanted = {each.given.name: (each, period_s, timeout_s) for each in listing}
        async for name, (how, _) in in_turns(tuple(self._reading.items())):
            if wanted.get(name) != how:
                await self._end(name)
        begun = 0
        async for name, how in in_turns(tuple(wanted.items())):
            if name not in self._reading:
                engine, every_s, within_s = how
                act = partial(self._read, engine, within_s)
                self._reading[name] = how, Repeated(act, every_s, f"models of {name}", self._places)
                self._reading[name][1].start(start_s(begun))
                begun += 1

    async def _read(self, engine: ListedEngine, timeout_s: float) -> None:
        """Read one list. The connection is not kept: the next reading would come too late for it."""
        given, client, asked_s = engine.given, self._make_client(timeout_s), self._clock()
        try:
            page = await client.get(given.url + _PATH, engine.key, certificates=engine.certificates)
        except Unanswered:
            return
        finally:
            client.close()
        found = model_list(page.body) if page.is_success else ()
        await self._take(given, found)
        if found:
            self._on_adapters(given.name, self.adapters(given).adapters, asked_s)

    async def _take(self, given: Backend, found: tuple[ListedModel, ...]) -> None:
        """What the engine lists now; an empty list is none, since an engine serves one model at least."""
        if not found or (found == self.lists.get(given.name) and given.name not in self._unserved):
            return
        before = self.adapters(given)
        self.lists[given.name] = found
        now = self.adapters(given)
        gone, new = set(before.adapters) - set(now.adapters), set(now.adapters) - set(before.adapters)
        missing = set(given.models.values()) - {each.name for each in found}
        if missing and given.kind.checks_model:
            _log.warning(
                "backend %s: its engine lists %s, but not %s, and refuses requests for it (`models` of the backend)",
                given.name,
                ", ".join(each.name for each in found[:_NAMED_MOST]),
                ", ".join(sorted(missing)),
            )
        for what, names in (("loaded", new), ("unloaded", gone)):
            if names:
                _log.info("backend %s: adapters %s: %s", given.name, what, ", ".join(sorted(names)))
        if now != before:
            self._unserved.add(given.name)
        if given.name in self._unserved:
            await self._on_changed()  # a reading that ends before that leaves it to the next one
            self._unserved.discard(given.name)

    def forget(self, name: str) -> None:
        """A backend has left: its list is dropped."""
        self.lists.pop(name, None)
        self._unserved.discard(name)

    async def _end(self, name: str) -> None:
        await self._reading.pop(name)[1].stop()

    async def close(self) -> None:
        """Stop reading."""
        for name in tuple(self._reading):
            await self._end(name)
