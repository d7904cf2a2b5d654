"""A user's own policy file at a real gateway: what it must show before it serves, and what never reaches traffic."""

import os
import re
from pathlib import Path

import httpx
import pytest

from router.core.errors import ConfigError
from router.gateway.config.plan import plan_file
from router.gateway.config.policy_spec import NOT_VALIDATED
from router.gateway.rollout.validation import validate
from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.gateway.test_main import answers, command
from tests.pages import Pages
from tests.policy_files import policy_file, policy_text
from tests.redis_server import free_port
from tests.waiting import until, until_async

MINE = "policy: {routing: {file: mine.py}}\n"
WORDS = {
    "slowest": "attainment drops by",
    "raises": "raised ZeroDivisionError",
    "overruns": "a decision took ",
    "sheds": "although every backend is idle",
}


def two(engine: ScriptedEngine, pages: Pages) -> str:
    """A config of two backends, one of them much slower."""
    return config(backend("fast", engine, pages, card="h20"), backend("slow", engine, pages))


@pytest.mark.parametrize("does", WORDS)
async def test_a_bad_policy_offered_to_a_serving_gateway_never_reaches_traffic(does: str, tmp_path: Path) -> None:
    """In its own process: refused with the reason, the old policy decides all the while."""
    path, port = tmp_path / "r.yaml", free_port()
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client,
    ):
        text = two(engine, pages).replace("port: 0", f"port: {port}")
        write(path, text + "policy: {routing: least_work}\n")
        async with command("serve", "--config", str(path)):
            await until_async(lambda: answers(client, "/readyz"))
            policy_file(tmp_path, does)
            write(path, text + MINE)
            refused = await client.post("/admin/reload")
            assert refused.status_code == 422
            assert WORDS[does] in refused.json()["error"]
            body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            told = (await client.get("/admin/policy")).json()
            assert told["routing"]["name"] == "least_work"
            assert [step["event"] for step in told["audit"]] == ["serves", "refused"]
            assert 'headroom_reload_validations_total{result="refused"}' in (await client.get("/metrics")).text


async def offer(it: Router, path: Path, text: str) -> dict[str, object]:
    """Write the config and request a reload."""
    write(path, text)
    told: dict[str, object] = (await it.client.post("/admin/reload", timeout=120)).json()
    return told


async def test_a_good_policy_file_serves_once_it_is_validated_and_again_when_it_changes(tmp_path: Path) -> None:
    """Also when the edit is of equal size and within the same second; its reasons are its own."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = two(engine, pages)
        async with router(path, text) as it:
            mine = policy_file(tmp_path, "good")
            outcome = await offer(it, path, text + MINE)
            assert outcome["ok"], outcome
            assert outcome["validation"]["result"] == "passed"  # type: ignore[index]
            assert outcome["validation"]["replays"][0]["requests"] >= 50  # type: ignore[index]
            await it.chat(headers={"x-request-id": "x"})
            assert "the fewest requests" in (await it.get("/explain/x")).text
            before, stamp = it.gateway.plan.version, mine.stat()
            mine.write_text(policy_text("good").replace("the fewest", "A FEWER of"), encoding="utf-8")
            os.utime(mine, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
            await until(lambda: it.gateway.plan.version != before)
            await it.chat(headers={"x-request-id": "y"})
            assert "A FEWER of requests" in (await it.get("/explain/y")).text


async def test_a_policy_file_that_is_mended_is_tried_again_by_itself(tmp_path: Path) -> None:
    """The config itself did not change."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = two(engine, pages)
        async with router(path, text) as it:
            mine = policy_file(tmp_path, "good")
            mine.write_text("def policy(:\n", encoding="utf-8")
            outcome = await offer(it, path, text + MINE)
            assert f"{mine}:1: not valid Python" in str(outcome["error"])
            mine.write_text(policy_text("good"), encoding="utf-8")
            await until(lambda: it.gateway.plan.chosen["routing"].name == "mine")


async def test_a_reload_refuses_what_a_policy_may_not_hold_by_its_line(tmp_path: Path) -> None:
    """A clock, module state; the old policy keeps serving, and no validation runs."""
    path, mine = tmp_path / "r.yaml", tmp_path / "mine.py"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = two(engine, pages)
        async with router(path, text) as it:
            mine.write_text("import time\n" + policy_text("good"), encoding="utf-8")
            outcome = await offer(it, path, text + MINE)
            assert f"{mine}:1: imports time; expected router.core" in str(outcome["error"])
            assert "the time is fleet.now_s" in str(outcome["error"])
            body = "SEEN.append(1); return Dispatch"
            mine.write_text("SEEN = [0]\n" + policy_text("good").replace("return Dispatch", body), encoding="utf-8")
            outcome = await offer(it, path, text + MINE)
            assert f"{mine}:12: calls SEEN.append(), which outlives the call" in str(outcome["error"])
            assert it.gateway.plan.chosen["routing"].name != "mine"


async def test_the_code_of_a_policy_file_does_not_run_here_before_it_is_validated(tmp_path: Path) -> None:
    """A config that is read executes nothing; a gateway without the validation does not start."""
    path = tmp_path / "r.yaml"
    policy_file(tmp_path, "dies")
    async with ScriptedEngine() as engine, Pages({}) as pages:
        write(path, two(engine, pages) + MINE)
        plan = plan_file(path)
        assert plan.routing is NOT_VALIDATED
        with pytest.raises(ConfigError, match="only after its validation"):
            async with router(path, two(engine, pages) + MINE, ready=False):
                raise AssertionError("it served")


@pytest.mark.parametrize(
    ("does", "seconds", "words"),
    [("spins", 3, "did not end within 3 s"), ("dies", 120, r"the validation ended with exit status 3")],
)
async def test_what_kills_the_validation_is_refused_and_hurts_nobody_else(
    does: str, seconds: int, words: str, tmp_path: Path
) -> None:
    """It runs in a process of its own with an end that is certain."""
    path = tmp_path / "r.yaml"
    policy_file(tmp_path, does)
    async with ScriptedEngine() as engine, Pages({}) as pages:
        write(path, two(engine, pages) + MINE + f"reload: {{validation: {{seconds_max: {seconds}}}}}\n")
        validation = validate(plan_file(path), None)
    assert validation.result == "refused"
    assert re.search(words, validation.why)


async def test_only_a_change_of_what_decides_is_validated(tmp_path: Path) -> None:
    """Keys, SLOs and backends change at once: a dead engine must be taken out without delay."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = two(engine, pages)
        async with router(path, text) as it:
            one = config(backend("fast", engine, pages, card="h20"))
            outcome = await offer(it, path, one + "slo_classes: {default: {ttft_ms: 70}}\n")
            assert outcome["validation"]["result"] == "unneeded"  # type: ignore[index]
            outcome = await offer(it, path, one + "policy: {limits: {attempts_max: 2}}\n")
            assert outcome["validation"]["result"] == "passed"  # type: ignore[index]


async def test_the_gateways_own_record_is_what_is_replayed(tmp_path: Path) -> None:
    """With enough requests in it; the verdict names the file."""
    path, record = tmp_path / "r.yaml", tmp_path / "run.jsonl"
    more = f"record: {{file: {record}}}\nreload: {{validation: {{requests_min: 20}}}}\n"
    usage = {"completion_tokens": 3, "prompt_tokens": 9}
    async with ScriptedEngine([stream("a", usage=usage)]) as engine, Pages(dict(HEALTHY)) as pages:
        text = two(engine, pages) + more
        async with router(path, text) as it:
            for _ in range(25):
                await it.chat()
            await until(lambda: record.read_bytes().count(b'"event":"ended"') >= 25)
            outcome = await offer(it, path, text + "policy: {routing: least_work}\n")
    (replay,) = outcome["validation"]["replays"]  # type: ignore[index]
    assert (replay["workload"], replay["requests"]) == (str(record), 25)
