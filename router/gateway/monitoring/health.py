"""Watches each engine: its health checks, and the numbers on its metrics page.

Only the health path decides whether an engine is up. A metrics page that cannot be read changes nothing of that: the
last report just grows old; and a slow health check delays no scrape. Must not depend on what the core does with a
report. An engine that answers its health check while its streams stand still is detected by the relay, not here.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf, isfinite, nan
from time import localtime, strftime, time
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from router.config import settings
from router.core.errors import DownReason, Exhausted, Unanswered
from router.core.types import EngineReport
from router.engines import RunningAdapters, Snapshot, read_metrics
from router.engines.facts import document, field
from router.gateway.monitoring.downtime import Downtime
from router.gateway.monitoring.probe import Page, ProbeClient
from router.gateway.monitoring.repeating import Places, Repeated, start_s
from router.gateway.tls import TlsContext
from router.gateway.turns import in_turns

APART_S: Final = 0.02  # the first scrape from the first check: they have one connection for both, mostly
_NO_SUCH_PATH: Final = frozenset({404, 405})


@dataclass(frozen=True, slots=True)
class WatchedEngine:
    """Where one engine answers. ``models``: its models' names; ``scraped``: whether this router reads its metrics.

    ``key``: its bearer token; ``certificates``: as in its target.
    ``models_url``: checked instead where there is no such path as that of ``health_url`` (empty: nothing is).
    ``own_address``: the health check goes to the address that requests go to. ``unready``: statuses of a health check
    by which the engine says that it takes no requests. ``paused_url``: where it says whether it is paused (empty:
    nowhere).
    """

    name: str
    health_url: str
    metrics_url: str
    models: tuple[str, ...]
    scraped: bool = True
    key: str = ""
    certificates: TlsContext | None = None
    models_url: str = ""
    own_address: bool = True
    unready: frozenset[int] = frozenset({503})
    paused_url: str = ""

    @property
    def urls(self) -> tuple[str, ...]:
        """All that is read of it."""
        return self.health_url, self.metrics_url, self.models_url, self.paused_url


@dataclass(frozen=True, slots=True)
class HealthChange:
    """The result of a backend's health checks has changed; the text is for the log.

    ``why``: what the last check got instead of a 2xx status; ``failures``: checks that failed in a row; ``at_s``: since
    when it is up or down, in seconds since the epoch; ``reason``: why it is down, None while it is up; ``missing``: the
    address that is checked by default, where the engine has no such path.
    """

    up: bool
    url: str
    at_s: float
    why: str = ""
    failures: int = 0
    reason: DownReason | None = None
    missing: str = ""

    def __str__(self) -> str:
        at = strftime("%H:%M:%S", localtime(self.at_s))
        if self.up:
            instead = f"; there is no {self.missing}" if self.missing else ""
            return f"health check passed ({self.url}{instead}), up since {at}"
        return f"health check failed ({self.why} at {self.url}), {self.failures} in a row, down since {at}"


class EngineListener(Protocol):
    """Receives what changes at an engine: the gateway, or a sidecar's publisher."""

    def probe_started(self, name: str) -> None:
        """A scrape of this engine starts now."""

    def reported(self, name: str, report: EngineReport) -> None:
        """Its answer."""

    def adapters_reported(self, name: str, running: RunningAdapters) -> None:
        """What the same answer says of its adapters."""

    def backend_health(self, name: str, change: HealthChange) -> None:
        """Its health changed."""


class EngineObserver(Protocol):
    """Counts scrapes."""

    def scraped(self, backend: str, report: EngineReport, took_s: float) -> None:
        """A page was read."""

    def scrape_failed(self, backend: str, why: str) -> None:
        """A page could not be read, or is of no known engine."""


def engine(
    given: settings.Backend, scraped: bool, key: str = "", certificates: TlsContext | None = None
) -> WatchedEngine:
    """The addresses of a configured backend; its engine kind's where the config gives none."""
    kind = given.kind
    health, metrics = given.health_url or kind.health_url(given.url), given.metrics_url or kind.metrics_url(given.url)
    models_url = "" if given.health_url else kind.models_url(given.url)
    own_address = urlsplit(health).netloc == urlsplit(given.url).netloc
    served = tuple(set(given.models.values()))
    return WatchedEngine(
        given.name,
        health,
        metrics,
        served,
        scraped,
        key,
        certificates,
        models_url,
        own_address,
        kind.unready_statuses,
        given.url + kind.paused_path if kind.paused_path else "",
    )


class Watch:
    """One engine under watch."""

    def __init__(
        self,
        engine: WatchedEngine,
        client: ProbeClient,
        listener: EngineListener,
        observer: EngineObserver,
        down_after: int,
        clock: Callable[[], float],
        scrapes: Callable[[str], bool] = lambda _: True,
        last_read_s: Callable[[str], float] = lambda _: -inf,
    ) -> None:
        """``down_after``: failed checks in a row before an engine counts as down; one good one brings it back.

        ``scrapes``: whether reading this engine's metrics is ours at the moment, and not another worker's;
        ``last_read_s``: when bytes of a reply last came from it, on ``clock``.
        """
        self.engine = engine
        self.health: HealthChange | None = None  # the last change; None: not checked yet
        self.began_s = time()
        self.last: Snapshot | None = None
        self._client, self._listener, self._observer = client, listener, observer
        self._down_after, self._clock, self._scrapes = down_after, clock, scrapes
        self._last_read_s = last_read_s
        self._failures = 0
        self._period_s = 0.0
        self._acts: tuple[Repeated, ...] = ()
        self._checked_s = nan  # when the last check ended, in seconds since the epoch
        self._failure_now = ""
        self._url = engine.health_url
        self._paused_url = engine.paused_url
        self._paused = False

    @property
    def up(self) -> bool:
        """Whether its health checks pass; not so before the first one."""
        return self.health is not None and self.health.up

    @property
    def down(self) -> Downtime | None:
        """Why it is down; None while it is up."""
        if self.health is None:
            return Downtime(DownReason.UNCHECKED, self.began_s, "no health check has ended yet")
        if self.health.reason is None:
            return None
        return Downtime(self.health.reason, self.health.at_s, f"{self.health.why} at {self.health.url}")

    @property
    def down_s(self) -> float:
        """For how long it has been down; 0 while it is up."""
        return 0.0 if self.down is None else max(0.0, time() - self.down.since_s)

    def plain(self) -> dict[str, Any]:
        """The last health check, as JSON: when it ended, what it got ("" for a success), the failed ones in a row, and
        when the next one is due; null before the first.
        """
        checked = isfinite(self._checked_s)
        return {
            "url": self._url,
            "at_s": round(self._checked_s, 3) if checked else None,
            "failure": self._failure_now,
            "in_a_row": self._failures,
            "next_s": round(self._checked_s + self._period_s, 3) if checked else None,
        }

    def start(self, period_s: float, delay_s: float, places: Places) -> None:
        """Check and scrape, each about every ``period_s``, for the first time in ``delay_s``; ``places``: as many
        probes of all engines run at once.
        """
        self._period_s = period_s
        acts = (("health check of", self.check), ("scrape of", self.scrape))[: 2 if self.engine.scraped else 1]
        self._acts = tuple(Repeated(act, period_s, f"{what} {self.engine.name}", places) for what, act in acts)
        for number, each in enumerate(self._acts):
            each.start(delay_s + number * APART_S)

    async def stop(self) -> None:
        """Check and scrape no more."""
        for each in self._acts:
            await each.stop()

    async def check(self) -> None:
        """One health check."""
        began_s = self._clock()
        failed = await self._failure()
        if isinstance(failed, Exhausted):  # nothing is known of the engine
            return
        self._checked_s, self._failure_now = time(), str(failed) if failed is not None else ""
        if failed is not None and self._lives(failed, began_s):
            self._failures = 0
            return
        self._failures = self._failures + 1 if failed else 0
        before, url = self.health, self._url
        if failed is None:
            if before is None or not before.up or before.url != url:
                self._paused_url = self.engine.paused_url  # what came up may be another engine
                at_s = before.at_s if before is not None and before.up else time()
                default = self.engine.health_url
                self._change(HealthChange(True, url, at_s, missing=default if url != default else ""))
            return
        if self.up and self._failures < self._down_after:
            return
        if before is None or before.up or before.reason is not failed.reason:
            at_s = time() if before is None or before.up else before.at_s
            self._change(HealthChange(False, url, at_s, str(failed), self._failures, failed.reason))
        self._url = self.engine.health_url  # what answers there next may have it again

    def _lives(self, failed: Unanswered, began_s: float) -> bool:
        """Whether replies flow from an engine that is slow to answer its check: a busy one may be."""
        late = failed.reason is DownReason.TIMEOUT and self.up
        return late and self._last_read_s(self.engine.name) >= began_s

    def _change(self, change: HealthChange) -> None:
        self.health = change
        self._listener.backend_health(self.engine.name, change)

    async def _failure(self) -> Unanswered | None:
        """What a health check gets instead of a success."""
        try:
            page = await self._get(self._url)
            if page.status in _NO_SUCH_PATH and self.engine.models_url not in {"", self._url}:
                self._url = self.engine.models_url
                page = await self._get(self._url)
        except Unanswered as failed:
            if failed.reason is DownReason.REFUSED and not self.engine.own_address:
                return Unanswered(str(failed), DownReason.UNREACHABLE)  # says nothing of where requests go
            if failed.reason is DownReason.INVALID and await self._client.speaks_tls(self._url):
                return Unanswered(f"{failed}; it speaks TLS: is its url https://?", DownReason.TLS)
            return failed
        if page.is_success:
            return None
        return Unanswered(str(page), DownReason.UNREADY if page.status in self.engine.unready else DownReason.STATUS)

    async def _get(self, url: str) -> Page:
        return await self._client.get(url, self.engine.key, certificates=self.engine.certificates)

    async def scrape(self) -> None:
        """One reading of the metrics, where it is ours to do."""
        if not self.engine.scraped or not self._scrapes(self.engine.name):
            return
        asked_s, url = self._clock(), self.engine.metrics_url
        self._listener.probe_started(self.engine.name)
        try:
            page = await self._get(url)
        except Unanswered as why:
            self._observer.scrape_failed(self.engine.name, f"{url}: {why}")
            return
        if not page.is_success:
            self._observer.scrape_failed(self.engine.name, f"{url} answered {page}")
            return
        found = read_metrics(page.lines, self.engine.models)
        if found is None:
            self._observer.scrape_failed(self.engine.name, f"no known engine's metrics at {url}")
            return
        await self._ask_whether_paused()
        found = replace(found, asleep=found.asleep or self._paused)
        report = found.report(asked_s, self.last)
        self.last = found
        if found.adapters is not None:
            self._listener.adapters_reported(self.engine.name, found.adapters)
        self._listener.reported(self.engine.name, report)
        self._observer.scraped(self.engine.name, report, self._clock() - asked_s)

    async def _ask_whether_paused(self) -> None:
        """Read the page that says so, where the engine has it; one without it is not asked again."""
        if not self._paused_url:
            return
        with suppress(Unanswered):
            page = await self._get(self._paused_url)
            if page.is_success:
                self._paused = field(document(page.body), "is_paused") is True
            elif page.status in _NO_SUCH_PATH:
                self._paused, self._paused_url = False, ""


class Engines:
    """All engines under watch; ``watch`` may be called again with another set while it runs."""

    def __init__(
        self,
        listener: EngineListener,
        observer: EngineObserver,
        make_client: Callable[[float], ProbeClient],
        clock: Callable[[], float],
        scrapes: Callable[[str], bool] = lambda _: True,
        last_read_s: Callable[[str], float] = lambda _: -inf,
    ) -> None:
        """``make_client``: a client whose every wait is bounded by the seconds given; the others: see Watch."""
        self._listener, self._observer, self._make_client = listener, observer, make_client
        self._clock, self._scrapes, self._last_read_s = clock, scrapes, last_read_s
        self._client: ProbeClient | None = None
        self._timeout_s = 0.0
        self._places = Places()
        self._how: dict[str, tuple[WatchedEngine, float, int]] = {}
        self._watches: dict[str, Watch] = {}

    @property
    def watches(self) -> Mapping[str, Watch]:
        """By backend name."""
        return self._watches

    async def watch(
        self, engines: tuple[WatchedEngine, ...], period_s: float, timeout_s: float, down_after: int
    ) -> None:
        """Watch these from now on: new ones begin, changed ones begin anew, the others end.

        One whose health is checked where it was before stays up or down until a check says otherwise.
        """
        known = {name: watch.health for name, watch in self._watches.items()}
        addresses = {name: watch.engine.health_url for name, watch in self._watches.items()}
        await self._use_timeout(timeout_s)
        wanted = {engine.name: (engine, period_s, down_after) for engine in engines}
        async for name, how in in_turns(tuple(self._how.items())):
            if wanted.get(name) != how:
                await self._end(name)
        assert self._client is not None  # made above
        self._client.keep(url for engine in engines for url in engine.urls)
        begun = 0
        async for name, how in in_turns(tuple(wanted.items())):
            if name not in self._how:
                same = addresses.get(name) == how[0].health_url
                self._begin(how, known[name] if same else None, start_s(begun))
                begun += 1

    async def _use_timeout(self, timeout_s: float) -> None:
        if self._client is None or timeout_s != self._timeout_s:
            await self.close()
            self._client, self._timeout_s = self._make_client(timeout_s), timeout_s

    def _begin(self, how: tuple[WatchedEngine, float, int], health: HealthChange | None, delay_s: float) -> None:
        engine, period_s, down_after = how
        assert self._client is not None
        watch = Watch(
            engine,
            self._client,
            self._listener,
            self._observer,
            down_after,
            self._clock,
            self._scrapes,
            self._last_read_s,
        )
        watch.health = health
        self._watches[engine.name], self._how[engine.name] = watch, how
        watch.start(period_s, delay_s, self._places)

    async def _end(self, name: str) -> None:
        del self._how[name]
        await self._watches.pop(name).stop()

    async def close(self) -> None:
        """Stop all watches."""
        for name in tuple(self._how):
            await self._end(name)
        if self._client is not None:
            self._client.close()
            self._client = None
