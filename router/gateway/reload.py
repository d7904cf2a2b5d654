"""A new config while the old one serves: build, prove, swap one reference; or keep the last good one and say why.

Believes: a plan that was made is whole. Must not know what is in it. A reload is asked for by a change of the file, by
SIGHUP or by a call; they wait for each other, and each gets its own answer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Final, Protocol

from watchfiles import awatch

from router.gateway.config_text import ConfigError
from router.gateway.plan import Plan, plan_file

_log = logging.getLogger("headroom")

LOOK_MS: Final = 1_000
FIXED_SECTIONS: Final = ("listen", "upstream", "state", "record")


@dataclass(frozen=True, slots=True)
class Reloaded:
    """How a reload went. ``version``: the config that serves now, new or old; ``error``: why it was refused."""

    ok: bool
    version: str
    origin: str
    at_s: float
    error: str = ""


class ReloadObserver(Protocol):
    """Who counts."""

    def reloaded(self, ok: bool, version: str, at_s: float) -> None:
        """A config was taken or refused."""


class Reloader:
    """Keeps the running plan and replaces it whole."""

    def __init__(
        self, path: Path, running: Plan, swap: Callable[[Plan], Awaitable[None]], observer: ReloadObserver
    ) -> None:
        """``swap`` makes a plan the running one; it must not fail for a plan that could be made."""
        self.path = path
        self.running = running
        self.last = Reloaded(True, running.version, "start", time())
        self._swap, self._observer = swap, observer
        self._seen = _text(path)  # as it was last tried
        self._one_at_a_time = asyncio.Lock()
        observer.reloaded(True, running.version, self.last.at_s)

    async def reload(self, origin: str) -> Reloaded:
        """Take the file as it is now, all of it or nothing."""
        async with self._one_at_a_time:
            self._seen = _text(self.path)
            try:
                plan = await asyncio.to_thread(plan_file, self.path)  # off the loop: streams go on meanwhile
                _prove_swappable(self.running, plan)
                await self._swap(plan)
                self.running = plan
                self.last = Reloaded(True, plan.version, origin, time())
                _log.info("config %s taken (%s)", plan.version, origin)
            except ConfigError as error:
                self.last = Reloaded(False, self.running.version, origin, time(), str(error))
                _log.error("config refused (%s), %s serves on:\n%s", origin, self.running.version, error)
            self._observer.reloaded(self.last.ok, self.last.version, self.last.at_s)
            return self.last

    async def watch(self) -> None:
        """Reload whenever the file's text changes, for ever; cancel to end.

        The folder is watched, not the file: editors and ConfigMaps put another file in its place. A file system that
        tells of no changes is looked at every second all the same.
        """
        folders = {self.path.resolve().parent, self.path.parent}
        looks = awatch(*folders, debounce=200, step=50, recursive=False, rust_timeout=LOOK_MS, yield_on_timeout=True)
        async for _ in looks:
            if (now := _text(self.path)) is not None and now != self._seen:
                await self.reload("file changed")


def _text(path: Path) -> bytes | None:
    """What the file holds; None in the moment in which it is being replaced."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _prove_swappable(running: Plan, new: Plan) -> None:
    """Sockets, stores and files that are open stay as they are: refuse rather than ignore a change to them."""
    changed = [name for name in FIXED_SECTIONS if getattr(running.settings, name) != getattr(new.settings, name)]
    if changed:
        raise ConfigError([f"{name}: cannot change while running; restart to change it" for name in changed])
