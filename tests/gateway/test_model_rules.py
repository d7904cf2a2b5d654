"""Models that serve others' requests, over real sockets: names, headers, prices, reloads, adapters, canaries."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from router.core.model_rules import ModelRule, ModelRules
from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import LAST, STREAM_HEAD, ScriptedEngine, chunked, event, reply
from tests.gateway.test_settings import BACKENDS, plan, refused
from tests.pages import Pages
from tests.waiting import until

MODELS = "models: {big: {fallback: [small]}}\n"
SPLIT = "models: {big: {split: {big-a: 1, big-b: 1}}}\n"


def streamed(model: str) -> bytes:
    """A stream of an engine that calls its model so."""
    token = {"id": "c", "model": model, "choices": [{"delta": {"content": "x"}}]}
    usage = {"id": "c", "model": model, "choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 2}}
    return STREAM_HEAD + chunked(event(token), event(usage), event("[DONE]")) + LAST


class Two:
    """A router in front of an engine of one model and an engine of another."""

    def __init__(self, it: Router, engines: tuple[ScriptedEngine, ScriptedEngine]) -> None:
        self.it = it
        self.engines = engines

    async def chat(self, model: str = "big", **headers: str) -> Any:
        """One streamed completion, with these headers."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.it.chat(body={"model": model}, headers=given)

    def asked(self, engine: int) -> list[str]:
        """The models of the requests that an engine got."""
        return [json.loads(each.partition(b"\r\n\r\n")[2])["model"] for each in self.engines[engine].requests]


@asynccontextmanager
async def two(tmp_path: Path, more: str, first: str, second: str) -> AsyncIterator[Two]:
    """Engines x and y, which serve *first* and *second* under names of their own."""
    async with (
        ScriptedEngine([streamed("/w/x")]) as x,
        ScriptedEngine([streamed("/w/y")]) as y,
        Pages(HEALTHY) as pages,
    ):
        lines = [
            backend(name, engine, pages).replace("models: [m]", f"models: {{{model}: /w/{name}}}")
            for name, engine, model in (("x", x, first), ("y", y, second))
        ]
        async with router(tmp_path / "r.yaml", config(*lines, more=more)) as it:
            await until(lambda: all(watch.up for watch in it.gateway.engines.watches.values()))
            yield Two(it, (x, y))


def down(it: Router, name: str) -> None:
    """A health check of this backend has failed, as the core has it."""
    core = it.gateway.driver.core
    it.gateway.driver.perform(core.backend_draining(name, True, it.gateway.clock()))


async def test_a_fallback_is_said_in_headers_reply_explanation_log_and_metrics(tmp_path: Path) -> None:
    """The reply names the model that served it, for the client allowed another and has to see that it got one."""
    log = tmp_path / "access.log"
    more = MODELS + f"log: {{access: json, access_file: {log}}}\n"
    async with two(tmp_path, more, "big", "small") as both:
        own = await both.chat(x_headroom_fallback="allow")
        assert ("x-headroom-model" in own.headers, "x-headroom-fallback" in own.headers) == (False, False)
        assert '"model": "big"' in own.text.replace('":"', '": "')
        down(both.it, "x")
        assert (await both.chat()).status_code == 503
        got = await both.chat(x_headroom_fallback="allow", x_request_id="q")
        assert (got.status_code, got.headers["x-headroom-model"]) == (200, "small")
        assert got.headers["x-headroom-fallback"] == "no backend of 'big' that takes it is up and awake"
        assert '"model": "small"' in got.text.replace('":"', '": "')
        assert "/w/y" not in got.text
        assert both.asked(1) == ["/w/y"]
        explained = (await both.it.get("/explain/q")).json()
        assert (explained["model"], explained["served_model"]) == ("big", "small")
        assert explained["fallback_why"] == got.headers["x-headroom-fallback"]
        page = (await both.it.get("/metrics")).text
        assert 'headroom_model_substituted_requests_total{model="big",served_model="small",why="fallback"} 1.0' in page
        await until(lambda: log.read_bytes().count(b"\n") == 3)
        line = json.loads(log.read_text().splitlines()[2])
        assert (line["model"], line["served_model"], line["backend"]) == ("big", "small", "y")


async def test_a_prompt_that_no_model_takes_is_refused_with_the_answer_of_the_one_that_was_named(
    tmp_path: Path,
) -> None:
    """A fallback has another context, of which the client knows nothing."""
    said = "This model's maximum context length is %d tokens. However, you requested 9000 tokens."
    errors = [
        {"object": "error", "message": said % tokens, "type": "BadRequestError", "code": 400} for tokens in (4096, 8192)
    ]
    answers = [reply(json.dumps(each).encode(), 400) for each in errors]
    async with ScriptedEngine([answers[0]]) as x, ScriptedEngine([answers[1]]) as y, Pages(HEALTHY) as pages:
        lines = [backend(name, engine, pages) for name, engine in (("x", x), ("y", y))]
        models = ("big", "small")
        named = [line.replace("[m]", f"[{model}]") for line, model in zip(lines, models, strict=True)]
        async with router(tmp_path / "r.yaml", config(*named, more=MODELS)) as it:
            await until(lambda: all(watch.up for watch in it.gateway.engines.watches.values()))
            got = await it.chat(body={"model": "big"}, headers={"x-headroom-fallback": "allow"})
        assert (len(x.requests), len(y.requests)) == (1, 1)
        assert (got.status_code, got.json()) == (400, errors[0])


async def test_a_split_is_served_under_the_name_that_the_client_used(tmp_path: Path) -> None:
    """A session by one model; a header states which; ``/v1/models`` has the name; demand is of the models."""
    async with two(tmp_path, SPLIT, "big-a", "big-b") as both:
        seen = set()
        for n in range(12):
            got = [await both.chat(x_session_id=str(n)) for _ in range(2)]
            served = {each.headers["x-headroom-model"] for each in got}
            assert len(served) == 1
            assert all("x-headroom-fallback" not in each.headers for each in got)
            assert all('"model": "big"' in each.text.replace('":"', '": "') for each in got)
            seen |= served
        assert seen == {"big-a", "big-b"}
        assert {*both.asked(0), *both.asked(1)} == {"/w/x", "/w/y"}
        listed = {each["id"]: each for each in (await both.it.get("/v1/models")).json()["data"]}
        assert listed.keys() == {"big", "big-a", "big-b"}
        assert (listed["big"]["split"], listed["big"]["backends"]) == ({"big-a": 1.0, "big-b": 1.0}, ["x", "y"])
        assert (await both.it.get("/v1/models/big")).json() == listed["big"]
        assert set(both.it.gateway.demand.view(both.it.gateway.clock())) == {"big-a", "big-b"}
        down(both.it, "x")
        assert {(await both.chat(x_session_id=str(n))).headers["x-headroom-model"] for n in range(6)} == {"big-b"}


async def test_weights_change_with_a_reload_and_streams_go_on(tmp_path: Path) -> None:
    """A rule that is gone leaves the name unknown; a refused one leaves the old in force."""
    async with two(tmp_path, SPLIT, "big-a", "big-b") as both:
        it = both.it
        text = it.gateway.plan.text
        write(it.gateway.path, text.replace("big-a: 1,", "big-a: 1e9,"))
        assert (await it.gateway.reloader.reload("test")).ok
        assert {(await both.chat(x_session_id=str(n))).headers["x-headroom-model"] for n in range(8)} == {"big-a"}
        write(it.gateway.path, text.replace("big-a: 1,", "big-a: 0,"))
        refusal = await it.gateway.reloader.reload("test")
        assert "models.big.split.big-a: input should be greater than 0" in refusal.error
        assert (await both.chat()).status_code == 200
        write(it.gateway.path, text.replace(SPLIT, ""))
        assert (await it.gateway.reloader.reload("test")).ok
        assert (await both.chat()).status_code == 404


async def test_what_a_fallback_used_has_the_price_of_the_model_that_served_it(tmp_path: Path) -> None:
    """The tokens are the tenant's as ever."""
    more = MODELS + "prices: {big: {input: 100, output: 0}, small: {input: 1, output: 0}}\nquotas: {t: {}}\n"
    async with two(tmp_path, more, "big", "small") as both:
        down(both.it, "x")
        got = await both.chat(x_headroom_fallback="allow", x_llm_d_inference_fairness_id="t")
        assert got.status_code == 200
        assert both.it.gateway.quotas.counted["tenant:t"].usd == pytest.approx(1000 * 1 / 1e6)


async def test_keys_classes_and_headers_decide_who_falls_back(tmp_path: Path) -> None:
    """A header before the key, the key before the rule; another word than allow and deny is an error."""
    more = (
        "models: {big: {fallback: [small], fallback_for: {classes: [batch]}}}\nslo_classes: {default: {}, batch: {}}\n"
        "api_keys:\n  - {key: allowed-key, tenant: t, fallback: allow}\n"
        "  - {key: denied-key, tenant: t, fallback: deny}\n  - {key: silent-key, tenant: t}\n"
    )
    async with two(tmp_path, more, "big", "small") as both:
        down(both.it, "x")

        async def status(key: str, **headers: str) -> int:
            return int((await both.chat(authorization=f"Bearer {key}-key", **headers)).status_code)

        assert [await status(key) for key in ("allowed", "denied", "silent")] == [200, 503, 503]
        assert await status("allowed", x_headroom_fallback="deny") == 503
        assert await status("denied", x_headroom_fallback="Allow") == 200
        assert await status("silent", x_slo_class="batch") == 200
        assert await status("denied", x_slo_class="batch") == 503
        wrong = await both.chat(authorization="Bearer silent-key", x_headroom_fallback="yes")
        assert (wrong.status_code, "expected allow or deny, not 'yes'" in wrong.text) == (400, True)


async def test_an_adapter_may_be_split_and_fallen_back_on(tmp_path: Path) -> None:
    """By its name, as any model: the engine gets its own name for it."""
    more = "models: {lora: {split: {tuned: 1}, fallback: [base]}}\n"
    async with two(tmp_path, more, "tuned", "base") as both:
        assert (await both.chat("lora")).headers["x-headroom-model"] == "tuned"
        assert both.asked(0) == ["/w/x"]
        down(both.it, "x")
        assert (await both.chat("lora", x_headroom_fallback="allow")).headers["x-headroom-model"] == "base"


async def test_a_canary_and_a_shadow_decide_about_the_model_that_serves(tmp_path: Path) -> None:
    """Their shares are of requests, whichever model serves them."""
    more = (
        MODELS + "policy:\n  shadow: {routing: round_robin, share: 1}\n  canary: {routing: least_request, share: 0.5}\n"
        "  guard: {budget_ms: 10000}\n"
    )
    async with two(tmp_path, more, "big", "small") as both:
        down(both.it, "x")
        for _ in range(8):
            assert (await both.chat(x_headroom_fallback="allow")).headers["x-headroom-model"] == "small"
        trial = (await both.it.get("/admin/policy")).json()
        assert sum(arm["requests"] for arm in trial["live"]["canary"]["arms"].values()) == 8
        assert trial["live"]["shadow"]["decisions"] >= 8


async def test_a_whole_reply_and_an_engines_failure_fall_back_too(tmp_path: Path) -> None:
    """The failed engine's words, made fit for a header, say why."""
    body = b'{"id":"c","model":"/w/y","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    async with two(tmp_path, MODELS, "big", "small") as both:
        both.engines[0].scripts = [[reply(b'{"error": {"message": "CUDA\\nfault \xc3\xa9"}}', 500)]]
        both.engines[1].scripts = [[reply(body)]]
        got = await both.it.chat(
            body={"model": "big", "stream": False}, headers={"x-headroom-fallback": "allow", "x-request-id": "w"}
        )
        assert (got.status_code, got.json()["model"]) == (200, "small")
        assert got.headers["content-length"] == str(len(got.content))
        assert "x answered 500: CUDA fault ?" in got.headers["x-headroom-fallback"]


def test_wrong_rules_are_refused_with_their_place() -> None:
    """Each names line, key and what was expected."""

    def of(rule: str, more: str = "") -> str:
        return "\n".join(refused(f"{BACKENDS}models: {{tiny: {rule}}}\n{more}"))

    assert "models.tiny: needs split or fallback" in of("{}")
    assert "models.tiny.fallback: needs at least one entry" in of("{fallback: []}")
    assert "models.tiny.fallback[0]: is the model itself" in of("{fallback: [tiny]}")
    assert "models.tiny: fallback names 'x' twice" in of("{fallback: [x, x]}")
    assert "models.tiny.fallback[0]: no backend serves 'tny': unknown model; did you mean 'tiny'?" in of(
        "{fallback: [tny]}"
    )
    assert "models.tiny.split.a: no backend serves 'a'" in of("{split: {a: 1}}")
    assert "models.tiny.split: needs at least one entry" in of("{split: {}}")
    assert "models.tiny.split.tiny: input should be greater than 0, not -1" in of("{split: {tiny: -1}}")
    assert "models.tiny.split.tiny: input should be a finite number" in of("{split: {tiny: .inf}}")
    assert "fallback_for has no use without fallback" in of("{split: {tiny: 1}, fallback_for: everyone}")
    classes = of("{fallback: [tiny], fallback_for: {classes: [defult]}}")
    assert "models.tiny.fallback_for.classes: unknown class; did you mean 'default'?" in classes
    tenants = of(
        "{fallback: [tiny], fallback_for: {tenants: [taem-a]}}", "api_keys: [{key: long-enough, tenant: team-a}]\n"
    )
    assert "fallback_for.tenants: unknown tenant; did you mean 'team-a'?" in tenants
    assert "models.tiny.split.tiny" in of("{split: {tiny: 1.0e+308}}")
    nested = "models: {a: {split: {b: 1}}, b: {split: {tiny: 1}}}\n"
    assert "models.a.split.b: is split itself" in refused(BACKENDS + nested)[0]
    assert "did you mean 'fallback'?" in of("{falback: [tiny]}")


def test_rules_are_what_the_core_gets() -> None:
    """Names of models that engines have yet to state are taken as they are."""
    text = BACKENDS + "models: {tiny: {split: {tiny: 9, t2: 1}, fallback: [t3], fallback_for: {tenants: [t]}}}\n"
    made = plan(text.replace("models: [tiny], ", ""))
    assert made.ingress.models == ModelRules(
        {"tiny": ModelRule((("tiny", 9.0), ("t2", 1.0)), ("t3",), False, frozenset({"t"}))}
    )
