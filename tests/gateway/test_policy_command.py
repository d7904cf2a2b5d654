"""``headroom policy`` at a serving gateway: status, diff and a reload by force; and what watching a config survives."""

import asyncio
import json
import logging
from pathlib import Path

import pytest

from tests.commands import command
from tests.fakes_router import HEALTHY, backend, config, router, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.waiting import until


async def said(*words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    async with command("policy", *words) as process:
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()


async def test_status_and_diff_name_what_serves_and_what_was_changed(tmp_path: Path) -> None:
    """Keys with both values, no secret among them; the last refusal with its place."""
    path = tmp_path / "r.yaml"
    more = "policy: {routing: {name: slo_headroom}, limits: {attempts_max: 2}}\n"
    more += "api_keys: [{key: first-secret, tenant: t}]\n"
    changed = more.replace("first-secret", "other-secret").replace("routing: {name: slo_headroom}, ", "")
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        plain = config(backend("a", engine, pages), more="reload: {validation: {enabled: false}}\n")
        async with router(path, plain + more) as it:
            url = ["--url", f"http://127.0.0.1:{it.port}"]
            status, _, fault = await said("diff", *url)
            assert (status, fault) == (1, "no earlier version has served\n")
            write(path, plain + changed + "slo_classes: {default: {ttft_ms: 70}}\n")
            assert (await it.client.post("/admin/reload")).json()["ok"]
            found = (await it.get("/admin/policy/diff")).json()
            keys = {each["key"]: (each["from"], each["to"]) for each in found["keys"]}
            assert keys["slo_classes.default.ttft_ms"] == (None, 70)
            assert keys["policy.routing.name"] == ("slo_headroom", None)
            assert keys["api_keys[0].key"] == ("(a secret, not shown)",) * 2
            assert "secret" not in json.dumps(found).replace("(a secret, not shown)", "")
            assert "slo_classes.default.ttft_ms: (not set) -> 70" in (await said("diff", *url))[1]
            write(path, plain + "polcy: {}\n")
            assert (await said("reload", *url))[0] == 1
            status, out, _ = await said("status", *url)
            assert status == 0
            assert f"version {it.gateway.plan.version} serves: routing slo_headroom" in out
            assert "last change (admin call, " in out
            assert "refused" in out
            assert f"{path}:" in out
            assert (await said("diff", "nosuch", *url))[2].startswith("no version 'nosuch' in the history; stored: ")


@pytest.mark.parametrize("name", ["no/such.py", '"a\\0b.py"', "x" * 300 + ".py", ".", "r.yaml"])
async def test_no_name_of_a_policy_file_ends_the_watch(name: str, tmp_path: Path) -> None:
    """A misspelt name, one that no file can have, a folder, another kind of file: refused; the next edit is taken."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        good = config(backend("a", engine, pages), more="reload: {validation: {enabled: false}}\n")
        async with router(path, good) as it:
            write(path, good + f"policy: {{routing: {{file: {name}}}}}\n")
            await until(lambda: not it.gateway.reloader.last.ok)
            write(path, good + "policy: {routing: round_robin}\n")
            await until(lambda: it.gateway.plan.settings.policy.routing.name == "round_robin")


async def test_a_name_that_breaks_the_reading_of_a_config_does_not_end_the_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one longer than a file system allows, of a policy that is no file: refused, and in the log."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        good = config(backend("a", engine, pages), more="reload: {validation: {enabled: false}}\n")
        async with router(path, good) as it:
            with caplog.at_level(logging.CRITICAL):
                write(path, good + f"policy: {{routing: {'x' * 300}}}\n")
                await until(lambda: not it.gateway.reloader.last.ok)
            write(path, good + "policy: {routing: round_robin}\n")
            await until(lambda: it.gateway.plan.settings.policy.routing.name == "round_robin")


async def test_a_validation_reports_its_progress_and_a_forced_reload_is_in_the_audit_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log and at /admin/policy; a policy that loses attainment is taken by force, with its figures."""
    path = tmp_path / "r.yaml"
    worse = "policy: {routing: round_robin}\nreload: {validation: {attainment_drop_max: 0.0, requests_max: 50}}\n"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        backends = backend("slow", engine, pages), backend("fast", engine, pages, card="h20")
        good = config(*backends)
        async with router(path, good) as it:
            write(path, good + worse)
            with caplog.at_level(logging.INFO, "headroom"):
                reloading = asyncio.create_task(it.client.post("/admin/reload", params={"force": "true"}))
                await until(lambda: it.gateway.reloader.reloading is not None)
                shown = (await it.get("/admin/policy")).json()["reloading"]
                assert (shown["origin"], 0.0 <= shown["share"] <= 1.0) == ("admin call", True)
                outcome = (await reloading).json()
            assert outcome["ok"]
            assert outcome["validation"]["result"] == "passed"
            assert "the new policy on a workload made for this pool" in caplog.text
            assert "SLO attainment" in caplog.text
            assert it.gateway.reloader.reloading is None
            entry = next(each for each in it.gateway.audit.last if each["event"] == "forced")
            assert entry["version"] == it.gateway.plan.version
            assert entry["validation"]["replays"][0]["classes"][0]["slo_class"] == "default"
