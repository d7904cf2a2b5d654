"""The operator's page in a real browser: traffic, failures, backends and the config on it, and its use by keyboard."""

import io
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console

from router.gateway.control import page
from router.top import drawn
from tests.browser import Tab, browser, found
from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.waiting import until

needs_browser = pytest.mark.skipif(
    found() is None, reason="no Chromium here; install one, or name it by HEADROOM_BROWSER"
)
MORE = """
policy: {routing: {name: slo_headroom}, guard: {budget_ms: 10000}}
slo_classes: {default: {ttft_ms: 5000, tpot_ms: 100}}
reload: {validation: {enabled: false}}
"""


@asynccontextmanager
async def opened(tmp_path: Path, *, more: str = MORE) -> AsyncIterator[tuple[Router, Tab, Pages, str]]:
    """A router with backends a and b, where b's checks can be made to fail, and its page in a browser."""
    async with (
        ScriptedEngine([stream("hello", "there", usage={"prompt_tokens": 9, "completion_tokens": 2})]) as engine,
        Pages(dict(HEALTHY)) as pages,
        Pages(dict(HEALTHY)) as others,
    ):
        text = config(backend("a", engine, pages), backend("b", engine, others, card="h20"), more=more)
        async with router(tmp_path / "r.yaml", text) as it, browser(tmp_path / "profile") as chromium:
            await until(lambda: all(watch.up for watch in it.gateway.engines.watches.values()))
            tab = await chromium.tab()
            await tab.open(f"http://127.0.0.1:{it.port}/")
            yield it, tab, others, text


def has(words: str) -> str:
    """A condition: these words stand on the page."""
    return f"document.body.innerText.includes({words!r})"


@needs_browser
async def test_traffic_failures_a_dead_engine_and_a_refused_config_are_on_the_page(tmp_path: Path) -> None:
    """Plots with named percentiles and a table each, rows that open their explanation, cards that say why, a banner."""
    path = tmp_path / "r.yaml"
    async with opened(tmp_path) as (it, tab, others, text):
        for _ in range(3):
            await it.chat(headers={"x-request-id": "first"})
        await it.chat(body={"model": "nosuch"}, headers={"x-request-id": "refused-one"})
        await tab.until("document.querySelectorAll('#requests button').length === 4")
        await tab.js("history_now()")
        await tab.until("document.querySelectorAll('.uplot').length > 5")
        assert await tab.js("document.querySelector('figure:nth-of-type(3) .legend').innerText.includes('p99')")
        label = await tab.js("document.querySelector('figure:nth-of-type(3) [role=img]').getAttribute('aria-label')")
        assert label.startswith("TTFT. p50: now ")
        await tab.js("document.querySelector('figure details').open = true")
        await tab.until("document.querySelectorAll('figure table tbody tr').length === 60")
        await tab.js("document.querySelector('[data-filter=failed]').click()")
        await tab.until("document.querySelectorAll('#requests button').length === 1 && " + has("unknown-model"))
        await tab.js("document.querySelector('[data-filter=all]').click()")
        await tab.js("document.querySelectorAll('#requests button')[1].focus()")
        await tab.press("Enter", 13)
        await tab.until("document.querySelector('#explain').open && " + has("first token"))
        shown = await tab.js("document.querySelector('#explain-body').innerText")
        assert "fewest" in shown or "chosen" in shown
        await tab.press("Escape", 27)
        await tab.until("!document.querySelector('#explain').open")
        others.pages["/health"] = (503, b"")
        await tab.until(has("last health check") + " && " + has("status 503"))
        card = await tab.js("document.querySelector('#backends article').innerText")  # problems first
        assert card.startswith("b\n")
        assert "down: unready" in card
        assert "next one" in card
        assert "no report of the engine" in card
        assert "trusted" not in card
        write(path, text + "polcy: {}\n")
        await tab.until(has("Config refused at") + " && " + has(f"{path}:"))
        write(path, text)
        await tab.until("!" + has("Config refused at"))
        assert tab.errors == []
        assert {url.split("/")[2] for url in tab.requests if url.startswith("http")} == {f"127.0.0.1:{it.port}"}


@needs_browser
async def test_a_canary_its_verdict_and_a_rollback_are_on_the_page_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The trial while it runs; then why it ended, which the log has too."""
    more = "canary: {routing: round_robin, share: 0.5}, shadow: {routing: round_robin, share: 1.0}"
    trial = MORE.replace("policy: {", f"policy: {{{more}, ")
    async with opened(tmp_path, more=trial) as (it, tab, _, _):
        await it.chat()
        await tab.until(has("canary on trial, SLO met: ") + " && " + has("shadow agrees in "))
        console = Console(file=io.StringIO(), width=200)
        console.print(drawn((await it.get("/admin/fleet")).json()))
        assert "canary on trial, requests that met their SLO: " in console.file.getvalue()  # type: ignore[attr-defined]
        with caplog.at_level(logging.WARNING, "headroom"):
            await it.gateway.reloader.judged(it.gateway.plan, "returned", "canary", "attainment is lower by 9 %")
        assert "canary returned: attainment is lower by 9 %" in caplog.text
        await tab.until(has("canary returned") + " && " + has("attainment is lower by 9 %"))
        assert not await tab.js(has("canary on trial"))
        await it.client.post("/admin/rollback")
        await tab.until(has("rollback by an admin call"))
        await it.client.post("/admin/rollback?to=nosuch")
        await tab.until(has("Rollback impossible at") + " && " + has("no version 'nosuch' in the history"))


FOCUSED = "(document.activeElement.dataset.request ?? document.activeElement.id)"


@needs_browser
async def test_the_list_of_requests_is_walked_by_keyboard(tmp_path: Path) -> None:
    """One stop of the Tab key; the arrow keys go from row to row, and focus stays where it was when rows are drawn anew
    or the explanation is closed.
    """
    async with opened(tmp_path) as (it, tab, _, _):
        for number in range(4):
            await it.chat(headers={"x-request-id": f"r{number}"})
        await tab.until("document.querySelectorAll('#requests button').length === 4")
        await tab.js("document.querySelector('#request-id').focus()")
        rows = await tab.js("[...document.querySelectorAll('#requests button')].map(each => each.dataset.request)")
        stops = []
        for key, code in (("Tab", 9), ("Tab", 9), ("ArrowDown", 40), ("End", 35), ("ArrowDown", 40), ("ArrowUp", 38)):
            await tab.press(key, code)
            stops.append(await tab.js(FOCUSED))
        assert stops == ["", rows[0], rows[1], rows[3], rows[3], rows[2]]  # first the region, which scrolls
        await it.chat(headers={"x-request-id": "r4"})
        await tab.until("document.querySelectorAll('#requests button').length === 5")
        assert await tab.js(FOCUSED) == rows[2]
        await tab.press("Enter", 13)
        await tab.until("document.querySelector('#explain').open && " + has("first token"))
        await it.chat(headers={"x-request-id": "r5"})
        await tab.until("document.querySelectorAll('#requests button').length === 6")
        await tab.press("Escape", 27)
        await tab.until(f"{FOCUSED} === {rows[2]!r}")
        await tab.press("Tab", 9)
        assert await tab.js("document.activeElement.closest('#requests') === null")
        assert tab.errors == []


@needs_browser
async def test_plots_follow_the_theme_of_the_system_also_while_the_router_is_away(tmp_path: Path) -> None:
    """They are drawn of what was read last."""
    async with opened(tmp_path) as (_, tab, _, _):
        await tab.theme("light")
        await tab.until("document.querySelectorAll('.uplot').length > 3")
        await tab.js("ask = () => Promise.reject(new Error('the router is away'))")
        await tab.theme("dark")
        await tab.until("tone('--s1') === '#4cc9c1' && plots.get('TTFT').uplot.series[1].stroke() === tone('--s1')")
        await tab.until(has("the router is away"))
        assert tab.errors == []


@needs_browser
async def test_a_backend_is_drained_and_undrained_on_its_card(tmp_path: Path) -> None:
    """It gets no more requests, and says so; the audit log has both steps."""
    async with opened(tmp_path) as (it, tab, _, _):
        await tab.until("document.querySelector('[data-drain=a]')")
        await tab.js("window.confirm = () => true; document.querySelector('[data-drain=a]').click()")
        await tab.until("document.querySelector('[data-drain=a]').dataset.action === 'undrain'")
        assert (await it.chat()).headers["x-headroom-backend"] == "b"
        assert (await it.get("/readyz")).json()["backends_down"] == {"a": ["drained"]}
        await tab.js("document.querySelector('[data-drain=a]').click()")
        await tab.until("document.querySelector('[data-drain=a]').dataset.action === 'drain'")
        assert "backends_down" not in (await it.get("/readyz")).json()
        events = [entry["event"] for entry in it.gateway.audit.last if "backend" in entry]
        assert events == ["drained", "undrained"]


@needs_browser
async def test_the_page_wants_the_admin_key_where_there_is_one(tmp_path: Path) -> None:
    """A wrong one is refused in words; the right one stays in the tab."""
    async with opened(tmp_path, more=MORE + "admin_key: {key: admin-secret}\n") as (_, tab, _, _):
        for key, expected in (("wrong-key", has("The router refused this key.")), ("admin-secret", has("2 backends"))):
            await tab.until("document.querySelector('#login')?.open")
            await tab.js(f"document.querySelector('#login-key').value = {key!r}")
            await tab.js("document.querySelector('#login-form button').click()")
            await tab.until(expected)
        assert not await tab.js("document.querySelector('#login').open")


@needs_browser
async def test_who_leaves_the_question_for_the_admin_key_can_come_back_to_it(tmp_path: Path) -> None:
    """Else the page would load for ever."""
    async with opened(tmp_path, more=MORE + "admin_key: {key: admin-secret}\n") as (_, tab, _, _):
        await tab.until("document.querySelector('#login')?.open")
        await tab.press("Escape", 27)
        await tab.until(
            has("Nothing is shown without the admin key.") + " && document.activeElement.closest('#banners')"
        )
        await tab.press("Enter", 13)
        await tab.until("document.querySelector('#login').open")


async def test_a_drain_lasts_through_a_reload_and_names_what_it_does_not_find(tmp_path: Path) -> None:
    """A backend that leaves and comes back is not drained."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        both = config(backend("a", engine, pages), backend("b", engine, pages), more=MORE)
        async with router(path, both) as it:
            await until(lambda: all(watch.up for watch in it.gateway.engines.watches.values()))
            assert (await it.client.post("/admin/backends/nosuch/drain")).status_code == 404
            assert (await it.client.post("/admin/backends/a/drain")).json() == {"backend": "a", "drained": True}
            write(path, both + "api_keys: []\n")
            assert (await it.client.post("/admin/reload")).json()["ok"]
            assert (await it.chat()).headers["x-headroom-backend"] == "b"
            write(path, config(backend("b", engine, pages), more=MORE))
            assert (await it.client.post("/admin/reload")).json()["ok"]
            await until(lambda: "a" not in it.gateway.core.loads())
            write(path, both)
            assert (await it.client.post("/admin/reload")).json()["ok"]
            await until(lambda: not it.gateway.downtimes())


async def test_failures_stay_when_successes_scroll_on_and_an_explanation_has_a_timeline(tmp_path: Path) -> None:
    """Also found by their ids then; a reply of one token has no TPOT."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages), more=MORE)) as it,
    ):
        await it.chat(body={"model": "nosuch"}, headers={"x-request-id": "lost"})
        journal = it.gateway.journal
        await it.chat(headers={"x-request-id": "won"})
        (won,) = journal.find("won")
        for _ in range(1_100):
            journal.ended(won)
        fleet = (await it.get("/admin/fleet")).json()
        assert [line["request_id"] for line in fleet["failed"]][-1] == "lost"
        assert all(line["request_id"] == "won" for line in fleet["recent"])
        assert (await it.get("/explain/lost")).json()["reason"] == "unknown-model"
        shown = (await it.get("/explain/won")).json()
        assert [each["event"] for each in shown["timeline"]] == ["arrived", "sent", "first token", "end"]
        times = [each["at_ms"] for each in shown["timeline"]]
        assert times == sorted(times)
        assert shown["actual"]["tpot_ms"] is None
        (candidate,) = shown["candidates"]
        assert candidate["chosen"]
        assert set(candidate["headroom_ms"]) <= {"ttft", "tpot", "e2e"}


async def test_the_files_of_the_page_are_served_with_a_policy_that_lets_nothing_in_from_elsewhere(
    tmp_path: Path,
) -> None:
    """Each that the page names is there, uPlot's licence beside it, and no other file is."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages))) as it,
    ):
        index = await it.get("/")
        assert "default-src 'none'" in index.headers["content-security-policy"]
        for name, kind in page.TYPES.items():
            file = await it.get(f"/page/{name}")
            assert (file.status_code, file.headers["content-type"]) == (200, kind)
            assert "http" not in file.text or name.startswith("uPlot")
            assert f"page/{name}" in index.text or name.endswith(".txt")
        assert "//" not in index.text.replace("<!doctype", "")
        assert (await it.get("/page/__init__.py")).status_code == 404
