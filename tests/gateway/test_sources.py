"""Backends that come and go by themselves: what a source gives joins, drains and leaves, and no stream is lost."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from router.config.settings import BackendDefaults
from router.core.errors import ConfigError, SourceFailed
from router.core.types import EngineReport
from router.gateway.config.plan import Plan, plan_file
from router.gateway.sidecar import Sidecar
from router.gateway.sources.endpoint import ENDPOINTS_MAX, Endpoint, Source, name_of
from router.gateway.sources.facts import backend_of
from router.gateway.sources.file import FileTargets, endpoints
from router.gateway.sources.merging import Given, Merging
from router.gateway.sources.sources import Sources
from router.gateway.state.memory import MemoryStore
from tests.fakes_engine import WholeEngine
from tests.fakes_router import Router, router
from tests.fakes_wire import STREAM_HEAD, chunked, event, token
from tests.waiting import until, until_async

HEAD = "listen: {port: 0, drain_s: 5}\nscrape: {period_s: 0.02, models_s: null}\n"
DISCOVER = HEAD + "discover: [{file: targets.yaml}]\n"


def targets(folder: Path, *groups: dict[str, Any]) -> None:
    """Put the list in place whole, as a ConfigMap does."""
    (folder / "next").write_text(json.dumps(list(groups)))
    (folder / "next").rename(folder / "targets.yaml")


def names(it: Router) -> set[str]:
    """The backends that requests can go to."""
    return {backend.name for backend in it.gateway.plan.backends}


async def up(it: Router, *wanted: str) -> None:
    """Wait until exactly these are backends and up."""
    await until(lambda: names(it) == set(wanted) and len(it.gateway.engines.watches) == len(wanted))
    await until(lambda: all(watch.up for watch in it.gateway.engines.watches.values()))


async def test_what_a_file_lists_is_served_with_the_facts_of_its_labels_and_its_engine(tmp_path: Path) -> None:
    """One with labels, one of which only the address is known; both take requests, and each page shows them."""
    async with WholeEngine() as a, WholeEngine(model="other") as b:
        labels = {"name": "a", "card": "h100", "tp": "2", "model": "llama-3.1-8b", "models": "m,big=m", "zone": "x"}
        targets(tmp_path, {"targets": [a.at], "labels": labels}, {"targets": [f"http://{b.at}"]})
        async with router(tmp_path / "r.yaml", DISCOVER) as it:
            other = name_of(b.at)
            await up(it, "a", other)
            facts = {backend.name: backend for backend in it.gateway.plan.backends}
            assert facts["a"].models == ("m", "big")
            assert {key: facts["a"].labels[key] for key in ("card", "tp", "model", "zone")} == {
                "card": "h100-sxm", "tp": "2", "model": "llama-3-8b", "zone": "x",
            }  # fmt: skip
            assert facts[other].models == ("other",)
            assert facts[other].labels["card"] == "unknown"
            assert min(facts[other].prior.sigma) >= 1.0
            assert (await it.chat(body={"model": "big"})).status_code == 200
            assert (await it.chat(body={"model": "other"})).status_code == 200
            (shown,) = (await it.get("/admin/discovery")).json()["sources"]
            assert (shown["source"], shown["up"], shown["why"]) == ("file:targets.yaml", True, "")
            assert [(each["name"], each["state"]) for each in shown["endpoints"]] == [
                ("a", "serving"),
                (other, "serving"),
            ]
            page = (await it.get("/metrics")).text
            assert 'headroom_discovery_up{source="file:targets.yaml"} 1.0' in page
            assert 'headroom_discovery_endpoints{source="file:targets.yaml"} 2.0' in page


async def test_one_that_leaves_drains_and_its_stream_ends_whole(tmp_path: Path) -> None:
    """No new request goes there, the open one gets its last token, then it is no backend any more."""
    rest = asyncio.Event()
    begun = [
        STREAM_HEAD + chunked(event(token(" first"))),
        rest,
        chunked(event(token(" last")), event("[DONE]")),
        b"0\r\n\r\n",
    ]
    async with WholeEngine(begun) as a, WholeEngine() as b:
        only_a, only_b = ({"targets": [each.at], "labels": {"name": name}} for each, name in ((a, "a"), (b, "b")))
        targets(tmp_path, only_a)
        async with router(tmp_path / "r.yaml", DISCOVER) as it:
            await up(it, "a")
            open_one = asyncio.create_task(it.chat())
            await until(lambda: a.requests)
            targets(tmp_path, only_b)
            await up(it, "b")
            assert (await it.chat()).headers["x-headroom-backend"] == "b"
            assert "a" in it.gateway.driver.upstreams
            rest.set()
            answer = await open_one
            assert " last" in answer.text
            assert answer.text.endswith("data: [DONE]\n\n")
            await until(lambda: set(it.gateway.driver.upstreams) == {"b"})
            assert len(a.requests) == 1


@pytest.mark.parametrize("broken", [b"", b"targets: [", b"{}", b'[{"targets": "a:1"}]', b'[{"target": []}]', None])
async def test_a_file_that_cannot_be_read_takes_nothing_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: bytes | None
) -> None:
    """Empty, broken, of another form or gone: the last set serves on, and the failure is to be seen."""
    async with WholeEngine() as a:
        targets(tmp_path, {"targets": [a.at]})
        async with router(tmp_path / "r.yaml", DISCOVER) as it:
            await up(it, name_of(a.at))
            file = tmp_path / "targets.yaml"
            file.write_bytes(broken) if broken is not None else file.unlink()
            (state,) = it.gateway.sources.states
            await until(lambda: state.failing_s is not None)
            assert "its 1 endpoints stay" in caplog.text
            assert (await it.chat()).status_code == 200
            page = (await it.get("/metrics")).text
            assert 'headroom_discovery_up{source="file:targets.yaml"} 0.0' in page
            targets(tmp_path)  # it surely lists none
            await until(lambda: not names(it))
            assert (await it.chat()).status_code == 503


async def test_the_configs_own_backends_come_first(tmp_path: Path) -> None:
    """An endpoint with the name or the address of a configured backend is not a second one."""
    async with WholeEngine() as a, WholeEngine() as b:
        targets(
            tmp_path,
            {"targets": [b.at], "labels": {"name": "a"}},
            {"targets": [a.at], "labels": {"name": "again"}},
            {"targets": [b.at], "labels": {"name": "b"}},
            {"targets": [b.at], "labels": {"name": "c"}},
        )
        text = DISCOVER + f"backends: [{{name: a, url: 'http://{a.at}'}}]\n"
        async with router(tmp_path / "r.yaml", text) as it:
            await up(it, "a", "b")
            (shown,) = (await it.get("/admin/discovery")).json()["sources"]
            assert [each["skipped"] for each in shown["endpoints"]] == [
                "its name is taken by the config",
                "its address is that of a",
                None,
                "its address is that of b",
            ]


async def test_a_reload_keeps_what_was_found_and_takes_new_defaults(tmp_path: Path) -> None:
    """A changed default changes the backend; a source in another place begins with what the one before had given."""
    async with WholeEngine() as a:
        targets(tmp_path, {"targets": [a.at], "labels": {"name": "a"}})
        async with router(tmp_path / "r.yaml", DISCOVER) as it:
            await up(it, "a")
            changed = HEAD + "discover: [{file: targets.yaml, defaults: {card: l4, api_key: abcdefgh}}]\n"
            (tmp_path / "r.yaml").write_text(changed)
            assert (await it.gateway.reloader.reload("test")).ok
            await until(lambda: [b.labels["card"] for b in it.gateway.plan.backends] == ["l4"])
            assert it.gateway.plan.engine_keys == {"a": "abcdefgh"}
            (tmp_path / "r.yaml").write_text(HEAD + "discover: [{file: elsewhere.yaml}]\n")
            assert (await it.gateway.reloader.reload("test")).ok
            (state,) = it.gateway.sources.states
            await until(lambda: state.failing_s is not None)
            await up(it, "a")
            assert (await it.chat()).status_code == 200


async def test_a_change_is_served_while_a_reload_is_validated(tmp_path: Path) -> None:
    """Validation takes up to a minute; a pod that ends has no such time."""
    async with WholeEngine() as a, WholeEngine() as b:
        targets(tmp_path, {"targets": [a.at], "labels": {"name": "a"}})
        async with router(tmp_path / "r.yaml", DISCOVER) as it:
            await up(it, "a")
            async with it.gateway.reloader._one_at_a_time:  # as a reload holds it while its policies are replayed
                targets(tmp_path, {"targets": [b.at], "labels": {"name": "b"}})
                await up(it, "b")


class Scripted(Source):
    """Gives the sets of a queue; an exception in it is a failure."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[Endpoint, ...] | Exception] = asyncio.Queue()

    async def sets(self) -> AsyncGenerator[tuple[Endpoint, ...], None]:
        while True:
            given = await self.queue.get()
            if isinstance(given, Exception):
                raise given
            yield given


async def watched(plan: Plan, down_s: Callable[[str], float]) -> tuple[Sources, Scripted]:
    """The sources of a plan with one, scripted."""
    source = Scripted()

    async def changed() -> None:
        pass

    sources = Sources(lambda *_: source, changed, down_s, retry_s=0.001)
    await sources.watch(plan)
    return sources, source


def plan_of(folder: Path, text: str) -> Plan:
    (folder / "r.yaml").write_text(text)
    return plan_file(folder / "r.yaml")


async def test_only_what_is_down_itself_is_given_up_while_a_source_fails(tmp_path: Path) -> None:
    """Of two endpoints of a source that fails for longer than keep_s, the one whose health checks pass stays."""
    plan = plan_of(tmp_path, HEAD + "discover: [{file: t.yaml, keep_s: 0.01}]\n")
    down = {"up": 0.0, "down": 1e9}
    sources, source = await watched(plan, down.__getitem__)
    both = (Endpoint("up", "http://a:1"), Endpoint("down", "http://b:1"))
    source.queue.put_nowait(both)
    (state,) = sources.states
    await until(lambda: state.endpoints == both)

    async def failed_again() -> bool:
        source.queue.put_nowait(SourceFailed("away"))
        await asyncio.sleep(0)
        return state.endpoints != both

    await until_async(failed_again)
    assert state.endpoints == both[:1]
    assert state.why == "away"
    source.queue.put_nowait(())
    await until(lambda: not state.endpoints)
    await until(lambda: state.failing_s is None)
    await sources.close()


@pytest.mark.parametrize(
    "bad",
    [ValueError("a fault of ours"), tuple(Endpoint(f"e{n}", f"http://h:{n + 1}") for n in range(ENDPOINTS_MAX + 1))],
)
async def test_a_fault_or_an_endless_list_ends_no_source(tmp_path: Path, bad: Any) -> None:
    """It is logged, what was there stays, and the source is read again."""
    sources, source = await watched(plan_of(tmp_path, DISCOVER), lambda _: 0.0)
    (state,) = sources.states
    for given in ((Endpoint("a", "http://a:1"),), bad):
        source.queue.put_nowait(given)
    await until(lambda: state.failing_s is not None)
    assert [each.name for each in state.endpoints] == ["a"]
    source.queue.put_nowait((Endpoint("b", "http://b:1"),))
    await until(lambda: [each.name for each in state.endpoints] == ["b"])
    await sources.close()


def made(said: dict[str, Any], url: str = "http://h:1", **defaults: Any) -> tuple[Any, tuple[str, ...]]:
    return backend_of(Endpoint("e", url, said), BackendDefaults(**defaults))


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ({"tp": "two"}, "tp: input should be a valid integer"),
        ({"tp": "-1"}, "tp: input should be greater than 0"),
        ({"card": "h999"}, "card: "),
        ({"model": "no-such-model"}, "model: "),
        ({"price_per_hour": "nan"}, "price_per_hour: input should be a finite number"),
        ({"engine": "apache"}, "engine: "),
        ({"models": 7}, "models: "),
        ({"card": "l4", "model": "llama-3.1-405b", "tp": 1}, "model: does not fit"),
    ],
)
def test_a_label_that_is_no_fact_is_ignored_and_named(labels: dict[str, Any], fault: str) -> None:
    """The rest of the endpoint counts: a typing error in a label costs a forecast, not a replica."""
    backend, faults = made(labels | {"seqs_max": "8", "zone": "a"})
    assert backend is not None
    assert (backend.seqs_max, backend.labels) == (8, {"zone": "a"})
    assert faults[0].startswith(fault)


def test_labels_name_neither_secrets_nor_files() -> None:
    """Whoever may label a pod shall not read this machine's environment or disk."""
    labels = {"api_key_env": "AWS_SECRET", "ca": "/etc/passwd", "client_key": "/k", "url": "http://x", "name": "z"}
    backend, faults = made(labels)
    assert (backend.api_key_env, backend.ca, backend.client_key, backend.url) == (None, None, None, "http://h:1")
    assert faults == ()
    assert backend.labels == labels


def test_labels_win_over_defaults_and_their_number_is_bounded() -> None:
    """A source's defaults are for what its endpoints do not say."""
    backend, _ = made({"tp": 4, **{f"l{n}": "x" * n for n in range(1, 300)}}, tp=2, card="h100", labels={"pool": "p"})
    assert (backend.tp, backend.card.like) == (4, "h100")
    assert len(backend.labels) == 65
    assert max(map(len, backend.labels.values())) <= 200


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://u:p@h:1", "http://h:0", "nonsense", "http://h:99999"])
def test_an_endpoint_without_an_address_is_skipped(url: str) -> None:
    """There is nothing to send requests to."""
    backend, faults = made({}, url)
    assert backend is None
    assert faults[0].startswith("url: ")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("discover: [{}]", "r.yaml:3: discover[0]: give exactly one of "),
        ("discover: [{file: a.yaml, defaults: {url: 'http://h'}}]", "discover[0].defaults: url differs from backend"),
        ("discover: [{file: a.yaml, defaults: {card: h999}}]", "discover[0].defaults.card: "),
        ("discover: [{file: a.yaml, defaults: {api_key_env: NO_SUCH}}]", "variable NO_SUCH is not set"),
        ("discover: [{file: a.yaml, defaults: {ca: no.pem}}]", "discover[0].defaults.ca: cannot read"),
        ("discover: [{file: a.yaml, keep: 3}]", "discover[0].keep: unknown key"),
        ("discover: []", "backends: needs at least one entry"),
    ],
)
def test_a_fault_of_a_source_is_placed(tmp_path: Path, text: str, fault: str) -> None:
    """Like any other of the config."""
    with pytest.raises(ConfigError) as refused:
        plan_of(tmp_path, HEAD + text)
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"{}", "expected a list of"),
        (b"- {targets: [7]}", "[0].targets[0]: expected host:port"),
        (b"- {targets: [a, b], labels: {name: x}}", "[0].labels.name: expected the name of the one target"),
        (b"- {targets: [a], labels: [b]}", "[0].labels: expected names"),
        (b"- &a [*a]", "[0]: expected targets"),
        (b"\xff\xfe\x00", "not valid YAML"),
    ],
)
def test_a_fault_of_a_target_list_is_placed(text: bytes, fault: str) -> None:
    """The file and the place in it."""
    with pytest.raises(SourceFailed) as failed:
        list(endpoints(Path("t.yaml"), text))
    assert fault in str(failed.value)


async def test_a_router_is_not_ready_before_each_source_has_had_its_time(tmp_path: Path) -> None:
    """Though a backend of the config is up: for the models of others a router that has just started answers 503."""
    async with WholeEngine() as a, WholeEngine() as b:
        facts = "models: [m], card: l4, model: qwen3-4b"
        text = DISCOVER + f"backends: [{{name: a, url: 'http://{a.at}', {facts}}}]\n"
        async with router(tmp_path / "r.yaml", text, ready=False) as it:
            await up(it, "a")
            shown = await it.get("/readyz")
            assert (shown.status_code, shown.json()["sources_unanswered"]) == (503, ["file:targets.yaml"])
            it.gateway.sources._first_sets_until_s = 0.001
            assert (await it.get("/readyz")).status_code == 200
            targets(tmp_path, {"targets": [b.at], "labels": {"name": "b"}})
            await up(it, "a", "b")
            assert "sources_unanswered" not in (await it.get("/readyz")).json()


def test_what_ends_by_one_source_does_not_come_back_by_another(tmp_path: Path) -> None:
    """An engine that announces its end is listed for a moment still; an address that is used again is a new engine."""
    plan = plan_of(tmp_path, HEAD + "discover: [{file: a.yaml}, {file: b.yaml}]\n")
    ends = Endpoint("x", "http://h:1/", {}, terminating=True)
    late, again = Endpoint("x-by-dns", "http://h:1"), Endpoint("y", "http://h:1")

    def skipped(*sources: tuple[Endpoint, ...]) -> list[list[str]]:
        pairs = zip(plan.settings.discover, plan.accesses, sources, strict=True)
        return [
            [each.skipped for each in found] for found in Merging().merged(plan, [Given(*p) for p in pairs]).outcomes
        ]

    assert skipped((ends,), (late,)) == [["terminating"], ["terminating, by file"]]
    assert skipped((late,), (ends,)) == [["terminating, by file"], ["terminating"]]
    assert skipped((ends, again), ()) == [["terminating", ""], []]


class Written(FileTargets):
    """A file that is being written: each reading finds the next of these texts, and then the last one."""

    def __init__(self, *texts: bytes) -> None:
        super().__init__(Path("t.yaml"))
        self.texts = list(texts)

    async def _looks(self) -> AsyncGenerator[None, None]:
        while self.texts:
            yield None

    def _texts(self) -> list[tuple[Path, bytes]]:
        return [(self._path, self.texts.pop(0) if len(self.texts) > 1 else self.texts[0])]


async def test_the_first_half_of_a_list_that_is_being_written_is_no_list(tmp_path: Path) -> None:
    """It may be valid by itself, and would take the other half away."""
    group = b"- {targets: ['%b:1']}\n"
    whole = [group % b"a", group % b"a" + group % b"b", group % b"a" + group % b"b" + group % b"c"]
    source = Written(*whole)
    sets = source.sets()
    assert [each.name for each in await anext(sets)] == ["a-1", "b-1", "c-1"]
    source.texts.append(b"[]")
    assert await anext(sets) == ()
    await sets.aclose()


async def test_before_a_source_has_answered_no_model_is_said_not_to_exist(tmp_path: Path) -> None:
    """503 and a retry, not 404: what there will be is not known yet."""
    async with router(tmp_path / "r.yaml", DISCOVER, ready=False) as it:
        answer = await it.chat()
        assert (answer.status_code, answer.headers["x-headroom-dropped-reason"]) == (503, "no-backend")
        assert not it.gateway.ready


class Reported(MemoryStore):
    """Names the backends that were reported."""

    def __init__(self) -> None:
        super().__init__("sidecar")
        self.names: set[str] = set()

    async def report(self, reports: Mapping[str, EngineReport], now_s: float, adapters: Any = None) -> None:
        self.names |= reports.keys()


async def test_a_sidecar_reads_the_engines_that_are_found(tmp_path: Path) -> None:
    """It publishes the metrics of one that comes, and of one that leaves no more."""
    async with WholeEngine() as a, WholeEngine() as b:
        targets(tmp_path, {"targets": [a.at], "labels": {"name": "a"}})
        store = Reported()
        running = asyncio.create_task(Sidecar(plan_of(tmp_path, DISCOVER), tmp_path / "r.yaml", store).run())
        await until(lambda: store.names == {"a"})
        targets(tmp_path, {"targets": [b.at], "labels": {"name": "b"}})
        await until(lambda: "b" in store.names)
        store.names.clear()
        await until(lambda: store.names)
        assert store.names == {"b"}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
