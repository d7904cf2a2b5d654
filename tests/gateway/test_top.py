"""``headroom top``: a fleet as it is drawn in a terminal."""

import io
from pathlib import Path

from rich.console import Console

from router.top import drawn
from tests.fakes_router import HEALTHY, backend, config, router, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.waiting import until


async def test_it_names_means_and_why_a_backend_gets_no_requests(tmp_path: Path) -> None:
    """And a config that was refused, with its place; an engine that is down has no running sequences."""
    path = tmp_path / "r.yaml"
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        Pages(dict(HEALTHY)) as others,
    ):
        text = config(backend("a", engine, pages), backend("b", engine, others))
        async with router(path, text) as it:
            await until(lambda: all(watch.up for watch in it.gateway.engines.watches.values()))
            others.pages["/health"] = (503, b"")
            await until(lambda: "b" in it.gateway.downtimes())
            write(path, text + "polcy: {}\n")
            await it.client.post("/admin/reload")
            console = Console(file=io.StringIO(), width=200)
            console.print(drawn((await it.get("/admin/fleet")).json()))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "mean TTFT ms" in shown
    assert "b: unready since " in shown
    assert "; next health check " in shown
    assert "config refused (" in shown
    assert f"{path}:" in shown
    assert "-/-" in shown
