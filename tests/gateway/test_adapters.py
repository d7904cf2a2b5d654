"""Adapters that engines load and unload while they run: routable where they are, and listed with what they adapt."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from router.core.types import Request
from router.engines import ListedModel, model_list
from router.gateway.app import Gateway
from router.gateway.config.plan import plan_file
from router.gateway.discovery.model_lists import ModelLists
from router.gateway.monitoring.probe import ProbeClient
from tests import fakes
from tests.fakes_router import HEALTHY, Router, backend, config, router
from tests.fakes_wire import ScriptedEngine, reply, stream
from tests.pages import Pages
from tests.waiting import until

BASE = {"id": "base", "object": "model", "owned_by": "vllm", "root": "/w/base", "parent": None, "max_model_len": 4096}


def adapter(name: str, parent: str = "base") -> dict[str, Any]:
    """As vLLM lists one: without a context of its own."""
    return {"id": name, "object": "model", "owned_by": "vllm", "root": f"/l/{name}", "parent": parent}


class ListingEngine(ScriptedEngine):
    """An engine that lists its models beside its streams."""

    def __init__(self, *models: dict[str, Any]) -> None:
        super().__init__([stream("a")])
        self.models = list(models)
        self.read = 0
        self.missing: set[str] = set()  # of those, what it answers with 404

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /v1/models "):
            self.read += 1
            writer.write(reply(json.dumps({"object": "list", "data": self.models}).encode()))
            return True
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        self.requests.append(await reader.readexactly(int(length.split(b":")[1])))
        missing = self.asked[-1] in self.missing
        writer.write(
            reply(b'{"error":{"message":"The model `lora` does not exist."}}', 404) if missing else stream("a")
        )
        return True

    @property
    def asked(self) -> list[str]:
        """The models of the requests that came."""
        return [json.loads(body)["model"] for body in self.requests]


def often(text: str) -> str:
    """The config, with lists read often."""
    return text.replace("models_s: null", "models_s: 0.02")


async def ids(it: Router) -> list[str]:
    """The models that a client sees."""
    return [each["id"] for each in (await it.get("/v1/models")).json()["data"]]


def serving(gateway: Gateway, name: str) -> tuple[str, ...]:
    """What the core has of a backend's models."""
    return next(each.models for each in gateway.plan.backends if each.name == name)


async def test_an_adapter_is_routed_to_where_it_is_loaded_and_no_longer_when_it_is_not(tmp_path: Path) -> None:
    """On one of two engines, by the list alone."""
    async with ListingEngine(BASE) as one, ListingEngine(BASE) as two, Pages(dict(HEALTHY)) as pages:
        text = config(*(backend(name, at, pages, models=["base"]) for name, at in (("a", one), ("b", two))))
        async with router(tmp_path / "r.yaml", often(text)) as it:
            await until(lambda: one.read and two.read)
            assert (await it.chat(body={"model": "lora"})).status_code == 404
            two.models.append(adapter("lora"))
            await until(lambda: serving(it.gateway, "b") == ("base", "lora"))
            for _ in range(4):
                assert (await it.chat(body={"model": "lora"})).status_code == 200
            assert (one.asked.count("lora"), two.asked.count("lora")) == (0, 4)
            entry = (await it.get("/v1/models/lora")).json()
            assert entry == {
                "id": "lora",
                "object": "model",
                "created": 0,
                "owned_by": "headroom",
                "root": "/l/lora",
                "parent": "base",
                "max_model_len": 4096,
                "backends": ["b"],
            }
            base = (await it.get("/v1/models/base")).json()
            assert (base["root"], base["parent"], base["max_model_len"]) == ("/w/base", None, 4096)
            two.models.pop()
            await until(lambda: serving(it.gateway, "b") == ("base",))
            missing = await it.chat(body={"model": "lora"})
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
            assert await ids(it) == ["base"]


async def test_an_adapter_that_was_gone_for_a_moment_is_routed_to_as_soon_as_it_is_listed(tmp_path: Path) -> None:
    """Its engine refused it between two lists that both have it."""
    async with ListingEngine(BASE, adapter("lora")) as one, ListingEngine(BASE) as two, Pages(dict(HEALTHY)) as pages:
        text = config(*(backend(name, at, pages, models=["base"]) for name, at in (("a", one), ("b", two))))
        async with router(tmp_path / "r.yaml", often(text)) as it:
            await until(lambda: serving(it.gateway, "a") == ("base", "lora"))
            one.missing = {"lora"}
            assert (await it.chat(body={"model": "lora"})).status_code == 404
            one.missing = set()
            await until(lambda: not it.gateway.core.refusals("a"))
            assert (await it.chat(body={"model": "lora"})).status_code == 200


async def test_adapters_outlive_a_reload_and_engines_that_do_not_answer(tmp_path: Path) -> None:
    """They are what the engine listed last; a list that is none changes nothing."""
    path = tmp_path / "r.yaml"
    async with ListingEngine(BASE, adapter("lora")) as engine, Pages(dict(HEALTHY)) as pages:
        text = often(config(backend("a", engine, pages, models=["base"])))
        async with router(path, text) as it:
            await until(lambda: serving(it.gateway, "a") == ("base", "lora"))
            path.write_text(text + "slo_classes: {default: {ttft_ms: 70000}}\n")
            assert (await it.client.post("/admin/reload")).json()["ok"]
            assert await ids(it) == ["base", "lora"]
            models, engine.models = engine.models, []
            seen = engine.read
            await until(lambda: engine.read > seen + 2)
            assert await ids(it) == ["base", "lora"]
            engine.models = [*models, adapter("second")]
            await until(lambda: serving(it.gateway, "a") == ("base", "lora", "second"))


async def test_an_adapter_of_a_model_that_is_not_routed_is_none_of_ours(tmp_path: Path) -> None:
    """Nor is one that the config names already; a parent is given by the name that clients use."""
    listed = [BASE, adapter("mine"), adapter("named"), adapter("other", parent="elsewhere"), {"id": "plain"}]
    async with ListingEngine(*listed) as engine, Pages(dict(HEALTHY)) as pages:
        text = often(config(backend("a", engine, pages))).replace("models: [m]", "models: {m: base, n: named}")
        async with router(tmp_path / "r.yaml", text) as it:
            await until(lambda: serving(it.gateway, "a") == ("m", "n", "mine"))
            assert (await it.get("/v1/models/mine")).json()["parent"] == "m"
            assert (await it.get("/v1/models/n")).json()["root"] == "/l/named"
            assert (await it.chat(body={"model": "mine"})).status_code == 200
            assert engine.asked == ["mine"]


async def test_a_list_whose_reading_ends_before_it_serves_is_taken_again(tmp_path: Path) -> None:
    """As where a reload, for which it waits, gives the backend another key: the next reading finds the same list."""
    path = tmp_path / "r.yaml"
    facts = "{name: a, url: 'http://127.0.0.1:9', models: [base], card: l4, model: qwen3-4b}"
    path.write_text(f"listen: {{port: 0}}\nbackends: [{facts}]\n", encoding="utf-8")
    given, waiting, swapped = plan_file(path).addresses[0], asyncio.Event(), asyncio.Event()

    async def changed() -> None:
        waiting.set()
        await swapped.wait()

    lists = ModelLists(changed, lambda *_: None, ProbeClient, lambda: 0.0)
    found = (ListedModel("base"), ListedModel("lora", parent="base"))
    reading = asyncio.create_task(lists._take(given, found))
    await waiting.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    waiting.clear()
    swapped.set()
    for served in (False, True):
        await lists._take(given, found)
        assert waiting.is_set() is not served
        waiting.clear()


@pytest.mark.parametrize(("engine_kind", "warns"), [("vllm", True), ("llamacpp", False)])
async def test_a_name_that_the_engine_does_not_list_is_in_the_log(
    tmp_path: Path, engine_kind: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the engine refuses requests for it."""
    async with ListingEngine(BASE) as engine, Pages(dict(HEALTHY)) as pages:
        given = backend("a", engine, pages, models=["bass"]).replace("name: a,", f"name: a, engine: {engine_kind},")
        assert engine_kind in given
        text = often(config(given))
        async with router(tmp_path / "r.yaml", text) as it:
            await until(lambda: it.gateway.model_lists.lists)
            assert ("backend a: its engine lists base, but not bass" in caplog.text) == warns


def test_a_list_is_read_as_far_as_it_can_be() -> None:
    """What is missing or no name is not given; a model is not its own adapter."""
    page = {
        "data": [BASE, adapter("lora"), {"id": "self", "parent": "self"}, {"id": 7}, "x", {"id": "odd", "parent": 1}]
    }
    assert model_list(json.dumps(page).encode()) == (
        ListedModel("base", "/w/base", "", 4096),
        ListedModel("lora", "/l/lora", "base"),
        ListedModel("self"),
        ListedModel("odd"),
    )
    assert model_list(b"not json") == model_list(b'{"data": 1}') == ()


def test_what_was_learnt_of_an_engine_stays_when_it_loads_an_adapter() -> None:
    """And its work in flight; with other facts it begins anew."""
    known = fakes.backend("a", models=("base",))
    core = fakes.core(known)
    slot = core.ledger.roster.slot("a")
    assert slot is not None
    core.belief.hit[slot] = 0.5
    core.arrived(Request("r", "base", 1.0, 10), 1.0)
    core.backend_joined(fakes.backend("a", models=("base", "lora")), 2.0)
    assert core.belief.hit[slot] == 0.5
    assert core.ledger.roster.serves("lora")
    assert core.loads()["a"].prefilling == 1
    assert "lora" in core.belief.export(slot)["lengths"]
    core.backend_joined(fakes.backend("a", models=("base",), slower=2.0), 3.0)
    assert core.belief.hit[slot] == 0.0


async def test_what_an_engine_runs_for_its_adapters_is_known_to_the_core(tmp_path: Path) -> None:
    """By the newest of vLLM's lines, under the names that clients use; those decide where the next request goes."""
    page = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
    line = b'vllm:lora_requests_info{max_lora="%d",running_lora_adapters="%b",waiting_lora_adapters=""} %b\n'
    lines = line % (1, b"old", b"1.7e+09") + line % (2, b"named,lora", b"1.8e+09") + line % (1, b"", b"1.6e+09")
    listed = [BASE, adapter("named"), adapter("lora"), adapter("old")]
    async with (
        ListingEngine(*listed) as one,
        ListingEngine(*listed) as two,
        Pages(dict(HEALTHY)) as idle,
        Pages(HEALTHY | {"/metrics": (200, page + lines)}) as busy,
    ):
        text = often(config(backend("a", one, idle), backend("b", two, busy)))
        text = text.replace("models: [m]", "models: {m: base, n: named}")
        async with router(tmp_path / "r.yaml", text) as it:
            await until(lambda: all("old" in serving(it.gateway, name) for name in "ab"))
            ledger = it.gateway.core.ledger
            slot = ledger.roster.slot("b") or 0
            await until(lambda: ledger.adapters.ready(slot, "lora"))
            assert ledger.adapters.ready(slot, "n")
            assert not ledger.adapters.ready(slot, "old")
            assert ledger.roster.adapters == {"n", "lora", "old"}
            assert [each.adapter_load_s for each in it.gateway.plan.backends] == [0.2, 0.2]
            await until(lambda: all(watch.up for watch in it.gateway.engines.watches.values()))
            for name in ("lora", "n"):
                assert (await it.chat(body={"model": name})).status_code == 200
            assert (one.asked, two.asked) == ([], ["lora", "named"])
