"""Shadow, canary, faults and rollback at a serving gateway: each step is taken, reported and undone."""

import json
from pathlib import Path
from typing import Any

import pytest

from router.core.errors import ConfigError
from router.gateway.rollout.versions import Version, Versions
from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.gateway.test_own_policy import MINE, offer, two
from tests.pages import Pages
from tests.policy_files import policy_file
from tests.waiting import until

NO_VALIDATION = "reload: {validation: {enabled: false}}\n"


async def policy(it: Router) -> dict[str, Any]:
    """The response of /admin/policy."""
    told: dict[str, Any] = (await it.get("/admin/policy")).json()
    return told


async def test_a_live_policy_that_fails_is_replaced_and_rolled_back(tmp_path: Path) -> None:
    """Every request is served; the faults are counted; the failed version is not loaded again without a request."""
    path, audit = tmp_path / "r.yaml", tmp_path / "audit.jsonl"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = two(engine, pages) + f"reload: {{audit_file: {audit}}}\n"
        async with router(path, text) as it:
            first = it.gateway.plan.version
            policy_file(tmp_path, "raises on long prompts")
            outcome = await offer(it, path, text + MINE)
            assert outcome["ok"], outcome
            odd = {"prompt": [7] * 4242, "model": "m", "stream": True}
            for _ in range(3):
                answer = await it.client.post("/v1/completions", json=odd)
                assert answer.status_code == 200
            await until(lambda: it.gateway.plan.version == first)
            told = await policy(it)
            assert told["live"]["roles"]["serving"]["faults"]["raised"] == 3
            bad = next(v for v in told["history"] if v["version"] == outcome["version"])
            assert "KeyError" in bad["bad"]
            page = (await it.get("/metrics")).text
            assert 'headroom_policy_faults_total{kind="raised",role="serving"} 3.0' in page
            assert 'headroom_policy_changes_total{verdict="dropped"} 1.0' in page
    events = [json.loads(line)["event"] for line in audit.read_text(encoding="utf-8").splitlines()]
    assert events == ["serves", "serves", "fault", "fault", "fault", "dropped", "serves"]


async def test_a_rollback_goes_back_one_version_and_by_name_to_any(tmp_path: Path) -> None:
    """It needs no new validation; an unknown version is refused with the known ones; the file stays as it is."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages)) + NO_VALIDATION
        async with router(path, text + "policy: {routing: least_work}\n") as it:
            names = ["least_request", "round_robin"]
            for name in names:
                assert (await offer(it, path, text + f"policy: {{routing: {name}}}\n"))["ok"]
            back = (await it.client.post("/admin/rollback")).json()
            assert back["ok"]
            assert (await policy(it))["routing"]["name"] == "least_request"
            await it.client.post("/admin/rollback")
            assert (await policy(it))["routing"]["name"] == "least_work"
            newest = next(v for v in (await policy(it))["history"] if "rolled back" in v["bad"])
            await it.client.post("/admin/rollback", params={"to": newest["version"]})
            assert it.gateway.plan.version == newest["version"]
            wrong = await it.client.post("/admin/rollback", params={"to": "nosuch"})
            assert wrong.status_code == 422
            assert "no version 'nosuch' in the history" in wrong.json()["error"]
            assert "round_robin" in path.read_text(encoding="utf-8")


async def test_nothing_to_go_back_to_is_said(tmp_path: Path) -> None:
    """The request is refused, and the first version keeps serving."""
    path = tmp_path / "r.yaml"
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(path, config(backend("a", engine, pages))) as it,
    ):
        answer = await it.client.post("/admin/rollback")
        assert answer.status_code == 422
        assert "no earlier good version" in answer.json()["error"]


async def test_a_shadow_decides_and_changes_nothing(tmp_path: Path) -> None:
    """A shadow that would pick the slowest backend shows in the metrics and not in the traffic."""
    path = tmp_path / "r.yaml"
    policy_file(tmp_path, "slowest")
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = two(engine, pages)
        shadow = "policy: {routing: least_work, shadow: {routing: {file: mine.py}, share: 1.0}}\n"
        async with router(path, text + "policy: {routing: least_work}\n") as it:
            outcome = await offer(it, path, text + shadow)
            assert outcome["ok"], outcome
            for _ in range(10):
                await it.chat()
            told = (await policy(it))["live"]["shadow"]
            assert told["decisions"] == 10
            assert told["agreement"] < 1.0
            assert told["gain_ms"]["e2e"] < 0.0
            page = (await it.get("/metrics")).text
            assert 'headroom_policy_decisions_total{role="shadow"} 10.0' in page
            assert 'headroom_policy_shadow_gain_seconds{bound="e2e"} -' in page
            assert not it.gateway.journal.recent().__next__().record.predicted_ttft_s > 0  # nobody forecast


CANARY = "policy: {routing: round_robin, canary: {routing: least_request, share: 0.5, sample_min: 25"


async def test_a_canary_that_does_as_well_gets_all_the_traffic(tmp_path: Path) -> None:
    """The test promotes it; the same canary configured again is already decided."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages)) + NO_VALIDATION
        trial = text + CANARY + ", attainment_drop_max: 0.6}}\n"
        async with router(path, text + "policy: {routing: round_robin}\n") as it:
            assert (await offer(it, path, trial))["ok"]
            for _ in range(200):
                await it.chat()
                if it.gateway.plan.version.endswith("-promoted"):
                    break
            told = await policy(it)
            assert told["routing"]["name"] == "least_request"
            assert "promoted" in [step["event"] for step in told["audit"]]
            again = await offer(it, path, trial + "slo_classes: {default: {ttft_ms: 900000}}\n")
            assert str(again["version"]).endswith("-promoted")
            assert (await policy(it))["routing"]["name"] == "least_request"


async def test_a_canary_that_fails_is_withdrawn_and_hurts_few(tmp_path: Path) -> None:
    """The old policy serves its requests while it fails; then it gets none."""
    path = tmp_path / "r.yaml"
    policy_file(tmp_path, "raises on long prompts")
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages))
        trial = CANARY.replace("least_request", "{file: mine.py}") + "}}\n"
        async with router(path, text + "policy: {routing: round_robin}\n") as it:
            outcome = await offer(it, path, text + trial)
            assert outcome["ok"], outcome
            odd = {"prompt": [7] * 4242, "model": "m", "stream": True}
            for _ in range(40):
                assert (await it.client.post("/v1/completions", json=odd)).status_code == 200
                if it.gateway.plan.version.endswith("-returned"):
                    break
            told = await policy(it)
            assert told["version"].endswith("-returned")
            assert told["routing"]["name"] == "round_robin"
            assert told["live"]["canary"] is None
            assert told["live"]["roles"]["canary"]["faults"]["raised"] == 3


def version(name: str, **facts: Any) -> Version:
    """A version of no plan."""
    return Version(name, 1.0, "test", "text", **facts)


def test_the_history_is_bounded_in_memory_and_on_disk(tmp_path: Path) -> None:
    """The oldest version is dropped; the next process reads the others; an unreadable file is skipped."""
    kept = Versions(3, tmp_path / "history")
    for name in "abcde":
        kept.add(version(name))
    kept.blame("e", "it failed")
    assert sorted(path.name for path in (tmp_path / "history").iterdir()) == ["c.json", "d.json", "e.json"]
    assert oct((tmp_path / "history" / "c.json").stat().st_mode)[-3:] == "600"
    write(tmp_path / "history" / "x.json", "{")
    again = Versions(3, tmp_path / "history")
    assert {each.version for each in again} == set("cde")
    assert again.find("e").bad == "it failed"
    before = again.before("d")
    assert before is not None
    assert before.version == "c"
    with pytest.raises(ConfigError, match="no version 'a'"):
        again.find("a")


async def test_a_version_on_disk_serves_again_after_a_restart_with_the_code_it_had(tmp_path: Path) -> None:
    """The policy file has changed since; the text that was validated is what comes back."""
    path = tmp_path / "r.yaml"
    policy_file(tmp_path, "good")
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages)) + f"reload: {{history_dir: {tmp_path / 'kept'}}}\n"
        async with router(path, text) as it:
            mine = str((await offer(it, path, text + MINE))["version"])
        policy_file(tmp_path, "dies")
        async with router(path, text) as it:
            assert (await it.client.post("/admin/rollback", params={"to": mine})).json()["ok"]
            await it.chat(headers={"x-request-id": "x"})
            assert "the fewest requests" in (await it.get("/explain/x")).text
