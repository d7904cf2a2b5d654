"""SLO headers: the allowed ranges, values outside them, and infeasible bounds."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

import policies
from router.core import Choice, Dispatch, Fleet, Forecast, Reason, Request, Rng, Shed
from router.core.errors import Rejected
from router.core.slo_metrics import INDEX, SLO_METRICS
from router.core.types import Slo
from router.gateway.protocols.ingress import ANONYMOUS, Ingress, SloClass, SloLimits, SloRange
from tests.commands import router_command
from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import Gateway, Reply, ScriptedEngine, pair, reply, stream
from tests.pages import Pages

RANGES = (SloRange(200, 10_000), SloRange(15, 500), *(SloRange() for _ in SLO_METRICS[2:]))
CHAT = Slo(ttft_s=1.0, tpot_s=0.06)


def ingress(**limits: Any) -> Ingress:
    """One class of 1 s and 60 ms whose headers may be 0.2 to 10 s and 15 to 500 ms."""
    return Ingress({"chat": SloClass(CHAT, limits=SloLimits(RANGES, **limits))}, "chat")


async def asked(gate: Gateway, *headers: str) -> Reply:
    """One completion with these headers."""
    return await gate.chat(stream=False, more="".join(f"{header}\r\n" for header in headers))


@pytest.mark.parametrize(
    ("headers", "slo"),
    [
        ((), CHAT),
        (("x-slo-ttft-ms: 200", "x-slo-tpot-ms: 500"), Slo(ttft_s=0.2, tpot_s=0.5)),
        (("x-llm-d-slo-tpot-ms: 15",), Slo(ttft_s=1.0, tpot_s=0.015)),
        (("x-llm-d-slo-tpot-ms: 1", "x-slo-tpot-ms: 20"), Slo(ttft_s=1.0, tpot_s=0.02)),  # the shorter name counts
        (("x-slo-e2e-ms: 86400000",), Slo(ttft_s=1.0, tpot_s=0.06, e2e_s=86400.0)),
    ],
)
async def test_a_header_inside_its_range_holds(headers: tuple[str, ...], slo: Slo) -> None:
    """Both ends belong to the range; nothing is said of clamping."""
    async with pair([reply(b"{}")], ingress=ingress()) as (gate, _):
        got = await asked(gate, *headers)
        assert (got.status, "x-headroom-slo-clamped" in got.headers) == (200, False)
        assert gate.seen.outcomes[0].record.request.slo == slo


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("x-slo-ttft-ms: 199.9", "x-slo-ttft-ms: 199.9 is outside 200 to 10000 ms, the limits of class 'chat'"),
        ("x-slo-ttft-ms: 10000000", "x-slo-ttft-ms: 10000000 is outside 200 to 10000 ms, the limits of class 'chat'"),
        ("x-slo-tpot-ms: 1", "x-slo-tpot-ms: 1 is outside 15 to 500 ms, the limits of class 'chat'"),
        ("x-llm-d-slo-tpot-ms: 1", "x-llm-d-slo-tpot-ms: 1 is outside 15 to 500 ms, the limits of class 'chat'"),
        ("x-slo-e2e-ms: 0.5", "x-slo-e2e-ms: 0.5 is outside 1 to 86400000 ms, the limits of class 'chat'"),
    ],
)
async def test_a_header_outside_its_range_is_400_with_the_range(header: str, said: str) -> None:
    """Header, value and range are named, and nothing reaches the core or an engine."""
    async with pair([reply(b"{}")], ingress=ingress()) as (gate, engine):
        got = await asked(gate, header)
        error = got.json()["error"]
        assert (got.status, error["message"], error["param"]) == (400, said, header.partition(":")[0])
        assert (engine.requests, gate.seen.outcomes) == ([], [])


async def test_a_class_that_clamps_serves_and_says_what_holds() -> None:
    """The nearest value allowed, in the request and in every answer; what is no number is still refused."""
    async with pair([reply(b"{}")], ingress=ingress(clamp=True)) as (gate, _):
        got = await asked(gate, "x-slo-tpot-ms: 1", "x-slo-ttft-ms: 10000000", "x-slo-e2e-ms: 5000")
        assert got.status == 200
        assert sorted(got.headers["x-headroom-slo-clamped"].split(", ")) == ["x-slo-tpot-ms=15", "x-slo-ttft-ms=10000"]
        assert gate.seen.outcomes[0].record.request.slo == Slo(ttft_s=10.0, tpot_s=0.015, e2e_s=5.0)
        gate.driver.perform(gate.core.backend_health("a", False, gate.driver.clock()))
        refused = await asked(gate, "x-slo-tpot-ms: 1")
        assert (refused.status, refused.headers["x-headroom-slo-clamped"]) == (503, "x-slo-tpot-ms=15")
        assert (await asked(gate, "x-slo-tpot-ms: 0")).status == 400
        assert (await asked(gate, "x-slo-tpot-ms: inf")).status == 400


@pytest.mark.parametrize("header", ["x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-e2e-ms"])
async def test_without_limits_a_header_may_ask_for_1_ms_to_a_day(header: str) -> None:
    """No header can put an absurd number into the core."""
    async with pair([reply(b"{}")]) as (gate, _):
        for ms, status in (("1", 200), ("86400000", 200), ("0.999", 400), ("1e300", 400), ("86400001", 400)):
            assert (await asked(gate, f"{header}: {ms}")).status == status


@given(st.floats(allow_nan=True, allow_infinity=True), st.booleans(), st.sampled_from(["ttft", "tpot", "e2e"]))
def test_whatever_a_header_says_the_slo_stays_inside_its_limits(ms: float, clamp: bool, bound: str) -> None:
    """Any number that Python writes: refused, or a bound inside the range."""
    it, headers = ingress(clamp=clamp), {f"x-slo-{bound}-ms".encode(): repr(ms).encode()}
    allowed = it.classes["chat"].limits.ranges[INDEX[bound]]
    inside = allowed.min_ms <= ms <= allowed.max_ms
    if inside or (clamp and 0 < ms < inf):
        applied = it.apply_slo(headers, ANONYMOUS)
        assert allowed.min_ms / 1e3 <= getattr(applied.slo, f"{bound}_s") <= allowed.max_ms / 1e3
        assert bool(applied.clamped) != inside
    else:
        with pytest.raises(Rejected) as caught:
            it.apply_slo(headers, ANONYMOUS)
        assert caught.value.status == 400


# -- bounds that no backend could keep even idle -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RefusesOnWish:
    """Takes every TPOT under 10 ms for infeasible, and refuses it where the request wishes so."""

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The first backend, or none."""
        if request.slo.tpot_s < 0.01 and request.slo.refuse_infeasible:
            return Shed(Reason.INFEASIBLE, "no backend makes a token in less than 10 ms")
        return Dispatch(int(fleet.slots[0]), "the first")


def both_wishes(gate: Gateway) -> None:
    """Give the core a policy that heeds the wish, the gateway a class of each."""
    gate.core.adopt(RefusesOnWish(), policies.find("admission", "deadline"))
    classes = {"serve": SloClass(CHAT), "refuse": SloClass(Slo(ttft_s=1.0, refuse_infeasible=True))}
    gate.driver.ingress = Ingress(classes, "serve")


async def test_an_infeasible_slo_is_refused_at_once_where_its_class_says_so() -> None:
    """429 with the reason, and no Retry-After: no load explains it, so time changes nothing."""
    async with pair([reply(b"{}")]) as (gate, engine):
        both_wishes(gate)
        assert (await asked(gate, "x-slo-tpot-ms: 1")).status == 200
        got = await asked(gate, "x-slo-tpot-ms: 1", "x-slo-class: refuse")
        assert (got.status, got.headers["x-headroom-dropped-reason"]) == (429, "infeasible")
        assert (got.headers["x-should-retry"], "retry-after" in got.headers) == ("false", False)
        assert got.json()["error"]["code"] == "infeasible"
        assert len(engine.requests) == 1


async def test_the_official_client_does_not_try_an_infeasible_slo_again() -> None:
    """It would, twice, after any other 429."""
    async with pair([reply(b"{}")]) as (gate, _):
        both_wishes(gate)
        headers = {"x-slo-tpot-ms": "1", "x-slo-class": "refuse"}
        url = f"http://127.0.0.1:{gate.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=2) as client:
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x"}], extra_headers=headers
                )
        assert len(gate.seen.outcomes) == 1


# -- headers and what is counted -----------------------------------------------------------------------------------


async def test_headers_of_one_client_make_no_new_statistics_of_lengths() -> None:
    """How long a reply is does not hang on its SLO: one distribution a class, whatever headers say."""
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    async with pair([stream("a", "b", usage=usage)]) as (gate, _):
        for ms in range(100, 120):
            await gate.chat(more=f"x-slo-ttft-ms: {ms}\r\n")
        assert list(gate.core.belief.lengths.export("m")) == ["default"]


async def test_attainment_of_a_class_and_of_headers_is_told_apart(tmp_path: Path) -> None:
    """A header that repeats the class's bound is the class's; one that cannot be met raises no alert."""
    good, bad = [stream("a", "b")], [reply(b'{"error": {"message": "no"}}', 500)]
    async with ScriptedEngine(good, good, bad) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages), more="slo_classes: {default: {ttft_ms: 60000}}\n")
        async with router(tmp_path / "r.yaml", text + "policy: {routing: round_robin}\n") as it:
            for headers in ({}, {"x-slo-ttft-ms": "60000"}, {"x-slo-ttft-ms": "1", "x-request-id": "mine"}):
                await it.chat(headers=headers)
            page = (await it.get("/metrics")).text
            name = "headroom_slo_requests_total"
            assert f'{name}{{met="true",model="m",slo_class="default",source="class"}} 2.0' in page
            assert f'{name}{{met="false",model="m",slo_class="default",source="header"}} 1.0' in page
            demand = it.gateway.demand.view(it.gateway.clock())["m"]
            assert (demand.ended, demand.attained, demand.slo_class) == (2, 2, "default")
            told = (await it.get("/explain/mine")).json()["slo"]
            assert (told["source"], told["infeasible"], told["met"]) == ("header", "best_effort", False)


# -- the config ----------------------------------------------------------------------------------------------------


async def reloaded(it: Router, path: Path, text: str) -> int:
    """The status of a reload of this text."""
    write(path, text)
    return (await it.client.post("/admin/reload")).status_code


async def test_limits_change_between_two_requests(tmp_path: Path) -> None:
    """From refused to clamped to allowed, and a bad one leaves the last good one; no restart."""
    path, header = tmp_path / "r.yaml", {"x-slo-tpot-ms": "5", "x-request-id": "x"}
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        base = config(backend("a", engine, pages)) + "policy: {routing: round_robin}\n"

        def limited(limits: str) -> str:
            return base + f"slo_classes: {{default: {{slo_limits: {limits}}}}}\n"

        async with router(path, limited("{tpot_ms: {min: 15}}")) as it:
            assert (await it.chat(headers=header)).status_code == 400
            assert await reloaded(it, path, limited("{tpot_ms: {min: 15}, outside: clamp, infeasible: refuse}")) == 200
            assert (await it.chat(headers=header)).headers["x-headroom-slo-clamped"] == "x-slo-tpot-ms=15"
            told = (await it.get("/explain/x")).json()["slo"]
            assert (told["tpot_ms"], told["infeasible"]) == (15, "refuse")
            assert await reloaded(it, path, limited("{tpot_ms: {min: 15, max: 3}}")) == 422
            assert (await it.chat(headers=header)).headers["x-headroom-slo-clamped"] == "x-slo-tpot-ms=15"
            assert await reloaded(it, path, limited("{tpot_ms: {min: 5}}")) == 200
            assert "x-headroom-slo-clamped" not in (await it.chat(headers=header)).headers


CHECKED = """backends:
  - {name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}
slo_classes:
  default: {}
  chat:
    ttft_ms: 100
    slo_limits:
      ttft_ms: {min: 200, max: 10000}
      tpot_ms: {min: 500, max: 20}
      e2e_ms: {mn: 3}
      outside: ignore
"""


def checked(tmp_path: Path, text: str) -> str:
    """What `check` says of this config."""
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    result = router_command(["check", str(path)])
    return result.output.replace(str(path), "r.yaml")


def test_check_names_line_and_key_of_every_bad_limit(tmp_path: Path) -> None:
    """A range upside down, an unknown key with the nearest there is, a word that is none."""
    said = checked(tmp_path, CHECKED)
    assert "r.yaml:9: slo_classes.chat.slo_limits.tpot_ms: min 500 exceeds max 20" in said
    assert "r.yaml:10: slo_classes.chat.slo_limits.e2e_ms.mn: unknown key; did you mean 'min'?" in said
    assert "r.yaml:11: slo_classes.chat.slo_limits.outside: input should be 'refuse' or 'clamp', not 'ignore'" in said


@pytest.mark.parametrize(
    ("ttft", "said"),
    [
        (
            "ttft_ms: 100",
            "r.yaml:6: slo_classes.chat.ttft_ms: 100 is outside 200 to 10000 ms, its own slo_limits.ttft_ms",
        ),
        ("ttft_ms: 200", "r.yaml: OK"),
        (
            "e2e_ms: 0.5",
            "r.yaml:6: slo_classes.chat.e2e_ms: 0.5 is outside 1 to 86400000 ms, its own slo_limits.e2e_ms",
        ),
    ],
)
def test_a_class_keeps_its_own_limits(tmp_path: Path, ttft: str, said: str) -> None:
    """The bound of the class is the fault's place."""
    text = CHECKED.partition("      tpot_ms")[0].replace("ttft_ms: 100", ttft)
    assert said in checked(tmp_path, text)
