"""The store that workers of one host share without Redis: leases, reports, and files that are not whole."""

import json
import os
from pathlib import Path

import pytest

from router.core.errors import StoreGone
from router.core.types import EngineReport, Load
from router.engines import RunningAdapters
from router.gateway.state import SEEN, ModelDemand, RouterView
from router.gateway.state.files import FileStore
from router.gateway.state.seen import SeenBackend, SeenVariant, seen_json
from router.gateway.state.wire import UNREADABLE, published_from

VIEW = RouterView({"b1": Load(1, 200, 3, 900)}, {"m": ModelDemand(2.5, 100, 50, 9, 8, "default")}, "v1")


def store(folder: Path, router_id: str, lease_s: float = 1.0) -> FileStore:
    """A worker's store in that folder."""
    return FileStore(folder, router_id, lease_s)


async def test_a_worker_sees_what_another_published(tmp_path: Path) -> None:
    """Whole values come back equal at the very next sync; one's own view is not among the others'."""
    a, b = store(tmp_path, "h.w0"), store(tmp_path, "h.w1")
    await a.sync(VIEW, (), 0.0)
    assert (await b.sync(RouterView(version="v2"), (), 0.1)).routers == {"h.w0": VIEW}
    assert set(await a.routers(0.2)) == {"h.w0", "h.w1"}


async def test_all_views_are_read_with_their_age_and_the_backends_of_their_router(tmp_path: Path) -> None:
    """For the autoscaler; a value that is kept outlives the worker that wrote it."""
    a, b = store(tmp_path, "h.w0"), store(tmp_path, "h.w1")
    seen = (SeenVariant("small", ("m",), {"b1": SeenBackend(True, 0.25)}, {"card": "l4"}),)
    await a.sync(VIEW, (), 0.0)
    await a.keep(SEEN + "h.w0", seen_json(seen), 600.0)
    found = (await b.routers(0.75))["h.w0"]
    assert (found.age_s, found.seen) == (0.75, seen)
    await a.close()
    await a.keep("autoscaler", b"learnt", 600.0)
    assert (await b.kept("autoscaler"), await b.kept("autoscaler:history")) == (b"learnt", b"")
    with pytest.raises(StoreGone):
        await store(tmp_path / "no", "x").keep("autoscaler", b"", 1.0)


async def test_a_view_counts_for_a_lease_and_is_swept_long_after(tmp_path: Path) -> None:
    """A worker that was killed vanishes by itself, its file too."""
    dead, alive = store(tmp_path, "dead"), store(tmp_path, "alive")
    await dead.sync(VIEW, (), 0.0)
    assert "dead" in (await alive.sync(VIEW, (), 1.0)).routers
    assert "dead" not in (await alive.sync(VIEW, (), 1.1)).routers
    await alive.sync(VIEW, (), 101.0)
    assert os.listdir(tmp_path) == ["alive.view"]


async def test_a_worker_that_closes_is_gone_at_once(tmp_path: Path) -> None:
    """Nobody counts its load for another lease."""
    a, b = store(tmp_path, "a"), store(tmp_path, "b")
    await a.sync(VIEW, (), 0.0)
    await a.close()
    assert (await b.sync(VIEW, (), 0.0)).routers == {}


async def test_the_newest_report_of_an_engine_is_read_and_old_ones_are_not_told_on(tmp_path: Path) -> None:
    """Two workers may have read the same engine, one after the other; after its lease a report is no news."""
    a, b, c = (store(tmp_path, name, lease_s=100.0) for name in "abc")
    for each, asked_s in ((a, 1.0), (b, 2.0)):
        await each.report({"b1": EngineReport(asked_s, running=asked_s), "b2": EngineReport(asked_s)}, asked_s)
        await each.sync(VIEW, (), asked_s)
    found = (await c.sync(VIEW, ("b1",), 3.0)).reports
    assert {name: (each.asked_s, each.running) for name, each in found.items()} == {"b1": (2.0, 2.0)}
    for each in (a, b):
        await each.sync(VIEW, (), 40.0)
    assert (await c.sync(VIEW, ("b1",), 40.0)).reports == {}


async def test_the_adapters_of_the_newest_report_are_read_with_it(tmp_path: Path) -> None:
    """Those of an older one are not."""
    a, b, c = (store(tmp_path, name, lease_s=100.0) for name in "abc")
    for each, asked_s in ((a, 1.0), (b, 2.0)):
        adapters = RunningAdapters((f"seen at {asked_s:g}",), 4)
        reports = {name: EngineReport(asked_s) for name in ("b1", "b2")}
        await each.report(reports, asked_s, {"b1": adapters})
        await each.sync(VIEW, (), asked_s)
    assert (await c.sync(VIEW, ("b1", "b2"), 3.0)).adapters == {"b1": RunningAdapters(("seen at 2",), 4)}


@pytest.mark.parametrize(
    "odd",
    [None, [], {}, {"running": "x", "places": 1}, {"running": [1], "places": 1}, {"running": [], "places": True},
     {"running": [], "places": -1}, {"running": [], "places": 1e9}, {"running": ["x" * 257], "places": 1},
     {"running": ["x"] * 33, "places": 1}],
)  # fmt: skip
def test_adapters_that_cannot_be_are_passed_over(odd: object) -> None:
    """The report that names them is taken all the same."""
    raw = json.dumps({"asked_s": 1.0, "running": 3, "adapters": odd}).encode()
    report, adapters = published_from(raw, 0.0)
    assert (report.running, adapters) == (3, None)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff"])
async def test_a_file_that_is_no_view_is_passed_over(tmp_path: Path, text: bytes) -> None:
    """Whoever wrote it."""
    (tmp_path / "odd.view").write_bytes(text)
    a = store(tmp_path, "a")
    assert (await a.sync(VIEW, (), 0.0)).routers == {}


@pytest.mark.parametrize("at_s", ["null", '"1"', "1e308", "-1e308", "[]"])
async def test_a_view_without_a_time_of_this_machine_is_passed_over(tmp_path: Path, at_s: str) -> None:
    """It would never go, or end every sync."""
    (tmp_path / "odd.view").write_text(f'{{"at_s": {at_s}, "view": {{}}}}')
    (tmp_path / "older.view").write_text('{"at_s": 0}')
    assert (await store(tmp_path, "a").sync(VIEW, (), 0.0)).routers == {"older": UNREADABLE}


async def test_a_report_that_cannot_be_hides_no_other(tmp_path: Path) -> None:
    """Of the same engine by another worker; each is counted."""
    a, b, reader = store(tmp_path, "a"), store(tmp_path, "b"), store(tmp_path, "c")
    for each in (a, b):
        await each.sync(VIEW, (), 1.0)
    (tmp_path / "a.reports").write_text('{"b1": {"asked_s": "soon"}, "b2": 7}')
    await b.report({"b1": EngineReport(1.0, running=2.0)}, 1.0)
    found = (await reader.sync(VIEW, ("b1", "b2"), 1.5)).reports
    assert {name: each.running for name, each in found.items()} == {"b1": 2.0}
    assert reader.skipped.counts == {("report", "unreadable"): 2}


async def test_beliefs_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    """The others are read."""
    (tmp_path / "beliefs.json").write_text('{"b1": 5, "b2": "x"}')
    assert await store(tmp_path, "a").beliefs(["b1", "b2", "b3"]) == {"b2": b"x"}


async def test_a_view_of_another_release_counts_as_empty(tmp_path: Path) -> None:
    """An unreadable file fails no other."""
    (tmp_path / "odd.view").write_bytes(b'{"at_s": 0, "view": {"loads": 3}, "reports": {}}')
    assert (await store(tmp_path, "a").sync(VIEW, (), 0.0)).routers["odd"].loads == {}


async def test_beliefs_outlive_the_worker(tmp_path: Path) -> None:
    """A worker that is restarted starts warm; bytes come back as they were."""
    a = store(tmp_path, "a")
    assert await a.beliefs(["b1"]) == {}
    await a.keep_beliefs({"b1": b"\x00\xfflearnt"})
    await a.close()
    assert await store(tmp_path, "b").beliefs(["b1"]) == {"b1": b"\x00\xfflearnt"}


async def test_a_folder_that_is_gone_is_a_store_that_is_gone(tmp_path: Path) -> None:
    """StoreGone, never another error; back again, all is well at the next sync."""
    folder = tmp_path / "x"
    a = store(folder, "a")
    with pytest.raises(StoreGone):
        await a.sync(VIEW, (), 0.0)
    with pytest.raises(StoreGone):
        await a.keep_beliefs({"b": b"x"})
    await a.close()
    folder.mkdir()
    await a.sync(VIEW, (), 1.0)
    assert set(await a.routers(1.0)) == {"a"}
