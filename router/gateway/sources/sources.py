"""Reads the sources of a config, and keeps what each gave last for as long as it may still be true.

A source that fails takes nothing away: its last set stays, and is logged and counted as old. Only an endpoint whose own
health checks have failed for ``keep_s`` too is then given up. Must not depend on what kinds of source there are, nor on
how backends are merged into the plan: ``on_changed`` is called whenever a set has changed.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from random import uniform
from time import monotonic, time
from typing import Any, Final

from router.config.settings import Discover
from router.core.errors import SourceFailed
from router.gateway.config.plan import Plan
from router.gateway.sources.endpoint import ENDPOINTS_MAX, Endpoint, Source
from router.gateway.sources.merging import Given, Merged, Merging, Outcome

FIRST_SETS_S: Final = 10.0  # for which a router waits for them: as long as a question to an API server or DNS may take
RETRY_S: Final = 1.0
RETRY_S_MAX: Final = 30.0
_JITTER: Final = 0.2  # of the wait: routers whose source failed together shall not read it together
_log = logging.getLogger("headroom")


class SourceState:
    """What one source gave last, and how it fares. Times are seconds since the epoch."""

    def __init__(self, given: Discover, endpoints: tuple[Endpoint, ...] = ()) -> None:
        """*endpoints*: those of an entry of the config that this one replaces."""
        self.given = given
        self.endpoints: tuple[Endpoint, ...] = endpoints
        self.answered_s: float | None = None  # when it gave a set last
        self.taken = False  # whether a set of it has become backends
        self.failing_s: float | None = None  # since when it has failed
        self.why = ""
        self.failures: int = 0

    @property
    def name(self) -> str:
        """For logs, pages and metrics: ``file:targets.yaml``."""
        return source_name(self.given)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "source": self.name,
            "up": self.failing_s is None and self.answered_s is not None,
            "answered_s": self.answered_s and round(self.answered_s, 3),
            "failing_since_s": self.failing_s and round(self.failing_s, 3),
            "why": self.why,
            "failures": self.failures,
            "endpoints": len(self.endpoints),
            "terminating": sum(each.terminating for each in self.endpoints),
        }


class Sources:
    """The sources of the running config; ``watch`` may be called again with another while they are read."""

    def __init__(
        self,
        make: Callable[[Plan, Discover], Source],
        on_changed: Callable[[], Awaitable[None]],
        down_s: Callable[[str], float],
        retry_s: float = RETRY_S,
    ) -> None:
        """``make``: the source of an entry; ``down_s``: for how long a backend's health checks have failed (0: it is
        up); ``retry_s``: the wait before a source that failed is read again, twice as long each time.
        """
        self._make, self._on_changed, self._down_s, self._retry_s = make, on_changed, down_s, retry_s
        self._states: dict[str, SourceState] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._merging = Merging()
        self._first_sets_until_s: float | None = None  # on the monotonic clock; None: nothing is read yet

    @property
    def states(self) -> tuple[SourceState, ...]:
        """One a source, in the config's order."""
        return tuple(self._states.values())

    @property
    def unanswered(self) -> list[str]:
        """The names of those of which no set has become backends yet."""
        return [state.name for state in self._states.values() if not state.taken]

    @property
    def informed(self) -> bool:
        """Whether each source has given a first set, or has had its time to since the router started."""
        over = self._first_sets_until_s is None or monotonic() > self._first_sets_until_s
        return over or not self.unanswered

    def complete(self, plan: Plan) -> Plan:
        """The plan with the backends that its sources have given by now; the same plan when it has them."""
        return plan.sourced(self.merged(plan).found) if plan.settings.discover or plan.found else plan

    def merged(self, plan: Plan) -> Merged:
        """What becomes of every endpoint of the plan's sources. Changes nothing here; other threads may call it."""
        states = dict(self._states)
        pairs = zip(plan.settings.discover, plan.accesses, strict=True)
        return self._merging.merged(
            plan, [Given(entry, access, self._last(states, plan, entry)) for entry, access in pairs]
        )

    def view(self, plan: Plan) -> Iterator[tuple[SourceState, tuple[Outcome, ...]]]:
        """Each source of the running plan, with what becomes of its endpoints."""
        for entry, outcomes in zip(plan.settings.discover, self.merged(plan).outcomes, strict=True):
            state = self._states.get(_key(entry))
            if state is not None:
                yield state, outcomes

    def _last(self, states: dict[str, SourceState], plan: Plan, entry: Discover) -> tuple[Endpoint, ...]:
        """The endpoints of an entry. A new one begins with those of an entry of its kind that it replaces: a change of
        how engines are found takes none away before the new source has answered.
        """
        known = states.get(_key(entry))
        if known is not None:
            return known.endpoints
        wanted = {_key(each) for each in plan.settings.discover}
        replaced = [each for key, each in states.items() if key not in wanted and each.given.kind == entry.kind]
        return tuple(endpoint for each in replaced for endpoint in each.endpoints)

    async def watch(self, plan: Plan) -> None:
        """Read the sources of this plan from now on, and no others."""
        self._first_sets_until_s = self._first_sets_until_s or monotonic() + FIRST_SETS_S
        wanted = {_key(entry): entry for entry in plan.settings.discover}
        before = dict(self._states)
        for key in tuple(self._tasks):
            if key not in wanted:
                await self._end(key)
        self._states = {key: before.get(key) or self._new(before, plan, entry) for key, entry in wanted.items()}
        for key, entry in wanted.items():
            self._states[key].given = entry
            if key not in self._tasks:
                reading = self._read(self._states[key], self._make(plan, entry))
                self._tasks[key] = asyncio.create_task(reading, name=f"source {source_name(entry)}")

    def _new(self, states: dict[str, SourceState], plan: Plan, entry: Discover) -> SourceState:
        return SourceState(entry, self._last(states, plan, entry))

    async def _read(self, state: SourceState, source: Source) -> None:
        wait_s = self._retry_s
        while True:
            try:
                async with aclosing(source.sets()) as sets:
                    async for endpoints in sets:
                        wait_s = self._retry_s
                        await self._take(state, endpoints)
                why = "it has ended"
            except SourceFailed as failed:
                why = str(failed)
            except Exception as fault:  # what one source sends must not end its reading for good
                _log.exception("source %s: fault in reading it", state.name)
                why = repr(fault)
            self._fail(state, why)
            await self._give_up(state)
            await asyncio.sleep(wait_s * uniform(1 - _JITTER, 1 + _JITTER))
            wait_s = min(wait_s * 2, RETRY_S_MAX)

    async def _take(self, state: SourceState, endpoints: tuple[Endpoint, ...]) -> None:
        if len(endpoints) > ENDPOINTS_MAX:
            raise SourceFailed(f"{len(endpoints)} endpoints; one source may give {ENDPOINTS_MAX}")
        if state.failing_s is not None:
            _log.info("source %s: can be read again", state.name)
        state.answered_s, state.failing_s, state.why = time(), None, ""
        if endpoints != state.endpoints:
            self._log_change(state, endpoints)
            state.endpoints = endpoints
            await self._on_changed()
        state.taken = True

    def _log_change(self, state: SourceState, endpoints: tuple[Endpoint, ...]) -> None:
        before, now = ({each.name for each in these if not each.terminating} for these in (state.endpoints, endpoints))
        _log.info(
            "source %s: %d endpoints, %d new, %d gone", state.name, len(now), len(now - before), len(before - now)
        )

    def _fail(self, state: SourceState, why: str) -> None:
        state.failures += 1
        if why != state.why:
            kept = f"; its {len(state.endpoints)} endpoints stay" if state.endpoints else ""
            _log.warning("source %s: %s%s; trying again", state.name, why, kept)
        state.failing_s, state.why = state.failing_s or time(), why

    async def _give_up(self, state: SourceState) -> None:
        """Drop the endpoints of a source that fails which are down themselves, both for longer than ``keep_s``."""
        keep_s = state.given.keep_s
        if state.failing_s is None or time() - state.failing_s < keep_s:
            return
        kept = tuple(each for each in state.endpoints if self._down_s(each.name) < keep_s)
        if len(kept) < len(state.endpoints):
            _log.warning("source %s: %d endpoints given up", state.name, len(state.endpoints) - len(kept))
            state.endpoints = kept
            await self._on_changed()

    async def _end(self, key: str) -> None:
        task = self._tasks.pop(key)
        if task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Stop reading."""
        for key in tuple(self._tasks):
            await self._end(key)


def source_name(given: Discover) -> str:
    """``kind:what``, of what the source's section states."""
    section = given.source
    stated = [getattr(section, name) for name in type(section).model_fields if name in section.model_fields_set]
    return f"{given.kind}:{' '.join(map(str, stated))}"


def _key(given: Discover) -> str:
    """What a source reads: entries that differ in nothing but their defaults are one source."""
    return f"{given.kind} {given.source.model_dump_json()}"
