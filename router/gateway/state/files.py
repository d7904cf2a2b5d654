"""The store of the workers of one host without Redis: one small file each in a folder that only this user may enter.

Assumes one machine, so one monotonic clock, and a rename that readers see whole or not at all. Must not depend on what
the workers do. A view holds the time of its writing and is valid for one lease; any worker removes much older ones.
Nothing is synced to disk: the content is of use for a second, and the folder is best in memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import orjson

from router.core.border import asked_in_time, number
from router.core.errors import SkipReason, StateFault, StoreGone, Unreadable
from router.core.types import EngineReport
from router.engines import RunningAdapters
from router.gateway.private_files import replace_content
from router.gateway.state import NO_ADAPTERS, SEEN, RouterView, Shared
from router.gateway.state.seen import seen_from
from router.gateway.state.skipped import Kind, SkippedValues
from router.gateway.state.wire import UNREADABLE, adapters_of, report_of, report_plain, view_of, view_plain

Stamp = tuple[int, int] | None
Published = tuple[EngineReport, RunningAdapters | None]

REPORT_LEASE_S: Final = 30.0  # as long as the core believes a report at all
SWEEP_LEASES: Final = 100
_VIEW: Final = ".view"
_REPORTS: Final = ".reports"
_BELIEFS: Final = "beliefs.json"
_KEPT: Final = ".kept"


class FileStore:
    """One worker's place in the folder. Every call reads or writes a few kilobytes and answers at once."""

    def __init__(self, folder: Path, router_id: str, lease_s: float) -> None:
        """*folder* exists and is private; ``lease_s``: how long a view is valid after its last sync."""
        self.skipped = SkippedValues()
        self._folder, self._lease_s = folder, lease_s
        self._own = folder / f"{router_id}{_VIEW}"
        self._reports: dict[str, Published] = {}
        self._read: dict[Path, tuple[Stamp, dict[str, Published]]] = {}  # others' reports, as last replaced

    async def sync(self, own: RouterView, backends: tuple[str, ...], now_s: float) -> Shared:
        """Publish this worker's view; read the others' views and engine reports."""
        put(self._own, orjson.dumps({"at_s": now_s, "view": view_plain(own)}))
        found = {path: content for path, content in self._live(now_s) if path != self._own}
        self._read = {path: self._reports_of(path) for path in found}
        newest = self._newest(frozenset(backends), now_s)
        return Shared(
            {path.stem: self._view(path, content) for path, content in found.items()},
            {name: report for name, (report, _) in newest.items()},
            adapters={name: adapters for name, (_, adapters) in newest.items() if adapters is not None},
        )

    def _reports_of(self, view: Path) -> tuple[Stamp, dict[str, Published]]:
        """The reports of that worker; the file is read again only when it has been replaced, which is rare."""
        path = view.with_suffix(_REPORTS)
        known = self._read.get(view, (None, {}))
        now = stamp(path)
        if now == known[0]:
            return known
        content = _read(path) or {}
        reports: dict[str, Published] = {}
        for name, each in content.items():
            try:
                reports[name] = report_of(each), adapters_of(each)
            except Unreadable as error:
                self.skipped.add(Kind.REPORT, name, error.reason, f"{path}: {error}")
        return now, reports

    def _newest(self, wanted: frozenset[str], now_s: float) -> dict[str, Published]:
        newest: dict[str, Published] = {}
        for _, reports in self._read.values():
            for name in wanted & reports.keys():
                report = reports[name][0]
                known = newest.get(name)
                if now_s - report.asked_s < REPORT_LEASE_S and (known is None or _newer(report, known[0], now_s)):
                    newest[name] = reports[name]
        return newest

    async def report(
        self, reports: Mapping[str, EngineReport], now_s: float, adapters: Mapping[str, RunningAdapters] = NO_ADAPTERS
    ) -> None:
        """Publish them, together with earlier ones that are not too old."""
        fresh = {name: each for name, each in self._reports.items() if now_s - each[0].asked_s < REPORT_LEASE_S}
        self._reports = fresh | {name: (report, adapters.get(name)) for name, report in reports.items()}
        put(
            self._own.with_suffix(_REPORTS),
            orjson.dumps({name: report_plain(each, 0.0, running) for name, (each, running) in self._reports.items()}),
        )

    async def routers(self, now_s: float) -> Mapping[str, RouterView]:
        """All with a lease."""
        views = {}
        for path, content in self._live(now_s):
            view, age_s = self._view(path, content), max(0.0, now_s - number(content.get("at_s")))
            if view is not UNREADABLE:
                view = replace(view, age_s=age_s, seen=seen_from(await self.kept(SEEN + path.stem)))
            views[path.stem] = view
        return views

    def _view(self, path: Path, content: Mapping[str, Any]) -> RouterView:
        """The view in a file; one that cannot be read counts as empty."""
        view = view_of(content.get("view"))
        if view is UNREADABLE:
            self.skipped.add(Kind.VIEW, path.stem, SkipReason.UNREADABLE, str(path))
        else:
            self.skipped.taken(Kind.VIEW, path.stem)
        return view

    async def beliefs(self, backends: Iterable[str]) -> Mapping[str, bytes]:
        """The beliefs that any worker saved last."""
        saved = _read(self._folder / _BELIEFS) or {}
        texts = ((name, saved.get(name)) for name in backends)
        return {name: text.encode("latin-1", "replace") for name, text in texts if isinstance(text, str)}

    async def keep_beliefs(self, beliefs: Mapping[str, bytes]) -> None:
        """Save them for a worker that restarts; the last write counts."""
        if beliefs:
            plain = {name: learnt.decode("latin-1") for name, learnt in beliefs.items()}
            put(self._folder / _BELIEFS, orjson.dumps(plain))

    async def keep(self, name: str, value: bytes, lease_s: float) -> None:
        """For as long as the folder exists: that is while the workers' parent lives."""
        put(self._folder / f"{name}{_KEPT}", value)

    async def kept(self, name: str) -> bytes:
        """What any worker stored last."""
        try:
            return (self._folder / f"{name}{_KEPT}").read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StoreGone(f"{self._folder}: {error}", StateFault.FILES) from error

    async def close(self) -> None:
        """Remove this worker's view."""
        with suppress(OSError):  # the lease ends it instead
            self._own.unlink(missing_ok=True)
            self._own.with_suffix(_REPORTS).unlink(missing_ok=True)

    def _live(self, now_s: float) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every view within its lease; removes those long expired."""
        try:
            paths = sorted(self._folder.glob(f"*{_VIEW}"))
        except OSError as error:
            raise StoreGone(f"{self._folder}: {error}", StateFault.FILES) from error
        for path in paths:
            content = _read(path)
            if content is None:
                continue
            age_s = now_s - number(content.get("at_s"))  # -inf where that is no number: neither live nor removed
            if -self._lease_s <= age_s <= self._lease_s:
                yield path, content
            elif age_s > SWEEP_LEASES * self._lease_s and path != self._own:
                path.unlink(missing_ok=True)
                path.with_suffix(_REPORTS).unlink(missing_ok=True)


def _newer(report: EngineReport, known: EngineReport, now_s: float) -> bool:
    """Whether it is of a later time; one from the future, which the core drops, hides no other."""
    return asked_in_time(report, now_s) and (report.asked_s > known.asked_s or not asked_in_time(known, now_s))


def stamp(path: Path) -> Stamp:
    """Differs once the file has been replaced, be it within one tick of the file system's clock; None: no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def put(path: Path, data: bytes) -> None:
    """Replace a file's content in one step. Raises StoreGone."""
    try:
        replace_content(path, data)
    except OSError as error:
        raise StoreGone(f"{path}: {error.strerror or error}", StateFault.FILES) from error


def _read(path: Path) -> dict[str, Any] | None:
    """A file's JSON object; None where there is no such file or it holds something else."""
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
