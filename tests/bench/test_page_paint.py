"""How soon the operator's page is painted, with 1,000 backends and a day of history: the target is 1 s.

The answers are a router's own, multiplied and served as files: the time is the browser's.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.gateway.control import page
from tests.browser import browser, found
from tests.fakes_router import HEALTHY, Router, backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.gateway.test_history import log
from tests.pages import Pages

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(found() is None, reason="no Chromium here; install one, or name it by HEADROOM_BROWSER"),
]
BACKENDS = 1_000
MINUTES = 24 * 60
HISTORIES = ("hour", "hour&by=class&name=", "day")
DRAWN = """new Promise(done => {
  const drawn = () => document.querySelectorAll('.backend').length && document.querySelectorAll('.uplot').length > 5;
  const look = () => drawn() ? requestAnimationFrame(() => done(performance.now())) : setTimeout(look, 5);
  look();
})"""
FIRST = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def a_day(it: Router) -> None:
    """Requests of five classes in every minute."""
    history = it.gateway.history
    wall = history.wall
    for minute in range(MINUTES):
        then_s = wall() - 60.0 * (MINUTES - minute)
        history.wall = lambda then_s=then_s: then_s  # type: ignore[misc]
        for number in range(5):
            history.ended(log(0.05 + 0.01 * number, backend="b0", slo_class=f"c{number}"))
    history.wall = wall


async def answers(it: Router) -> dict[str, tuple[int, bytes]]:
    """What the page reads, by path."""
    paths = ["/", *(f"/page/{name}" for name in page.TYPES), *(f"/admin/history?window={each}" for each in HISTORIES)]
    fleet: dict[str, Any] = (await it.get("/admin/fleet")).json()
    (one,) = fleet["backends"]
    fleet["backends"] = [one | {"name": f"b{number}"} for number in range(BACKENDS)]
    return {path: (200, (await it.get(path)).content) for path in paths} | {
        "/admin/fleet": (200, json.dumps(fleet).encode())
    }


def figures(paints: list[tuple[float, float]]) -> Iterator[str]:
    """A line each."""
    for first_ms, drawn_ms in paints:
        yield f"{BACKENDS} backends: first paint {first_ms:.0f} ms, cards and plots after {drawn_ms:.0f} ms"


async def test_first_paint(tmp_path: Path) -> None:
    """Prints the first paint, and when cards and plots are drawn, three times."""
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        async with router(tmp_path / "r.yaml", config(backend("b0", engine, pages))) as it:
            for _ in range(40):
                await it.chat()
            a_day(it)
            made = await answers(it)
        async with Pages(made) as site, browser(tmp_path / "profile") as chromium:
            paints = []
            for _ in range(3):
                tab = await chromium.tab()
                await tab.open(f"{site.url}/")
                drawn_ms = await tab.js(DRAWN)
                paints.append((await tab.js(FIRST), drawn_ms))
                assert tab.errors == []
    print("", *figures(paints), sep="\n")
