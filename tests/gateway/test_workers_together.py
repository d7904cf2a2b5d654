"""How several workers' answers become one, and how a change in one becomes all's; without processes."""

from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.columns import DRAINING
from router.core.quota import Quota, QuotaRules, Quotas
from router.core.types import EngineReport
from router.engines import RunningAdapters
from router.gateway.config.plan import plan_file
from router.gateway.protocols.target import Target
from router.gateway.rollout.reload import settled
from router.gateway.rollout.versions import Version
from router.gateway.worker_identity import WorkerIdentity
from router.gateway.workers import running, sums, views
from router.gateway.workers.member import Worker, worker
from router.gateway.workers.opening import until_informed
from router.gateway.workers.used import UsedFile, read
from tests.fakes import request
from tests.fakes_router import write

PAGE = b"""\
# HELP headroom_requests_total Requests
# TYPE headroom_requests_total counter
headroom_requests_total{model="a b",outcome="served"} %d
# HELP headroom_ttft_seconds Time
# TYPE headroom_ttft_seconds histogram
headroom_ttft_seconds_bucket{le="+Inf"} %d
headroom_ttft_seconds_count %d
# HELP headroom_requests_in_flight Now
# TYPE headroom_requests_in_flight gauge
headroom_requests_in_flight %d
# HELP headroom_state_up Up
# TYPE headroom_state_up gauge
headroom_state_up %d
# HELP headroom_backend_up Up
# TYPE headroom_backend_up gauge
headroom_backend_up{backend="x"} %d
"""
TRIAL = """
backends:
  - {name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}
policy:
  routing: round_robin
  canary: {routing: least_work}
reload: {validation: {enabled: false}}
"""


def value(page: bytes, name: bytes) -> float:
    """One sample."""
    return next(float(line.rpartition(b" ")[2]) for line in page.splitlines() if line.startswith(name))


@given(st.lists(st.tuples(*[st.integers(0, 10**6)] * 4), min_size=1, max_size=5))
def test_what_is_counted_adds_up_and_what_is_does_as_it_means(counts: list[tuple[int, int, int, int]]) -> None:
    """Counters, histograms and requests in flight are summed; one worker without state, or with a backend, shows."""
    pages = [PAGE % (a, b, b, c, i == 0, d % 2) for i, (a, b, c, d) in enumerate(counts)]
    page = sums.summed(pages)
    assert value(page, b"headroom_requests_total") == sum(a for a, _, _, _ in counts)
    assert value(page, b"headroom_ttft_seconds_bucket") == sum(b for _, b, _, _ in counts)
    assert value(page, b"headroom_ttft_seconds_count") == sum(b for _, b, _, _ in counts)
    assert value(page, b"headroom_requests_in_flight") == sum(c for _, _, c, _ in counts)
    assert value(page, b"headroom_state_up") == (len(counts) == 1)
    assert value(page, b"headroom_backend_up") == max(d % 2 for _, _, _, d in counts)
    assert sums.summed([page]) == page


def test_the_memory_of_workers_adds_up_and_the_oldest_start_is_the_routers() -> None:
    """Each reports its own process."""
    page = b"# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes %d\n"
    page += b"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %d\n"
    whole = sums.summed([page % (100, 7), page % (50, 5)])
    assert value(whole, b"process_resident_memory_bytes") == 150
    assert value(whole, b"process_start_time_seconds") == 5


def test_a_workers_counters_outlive_it_and_its_gauges_do_not() -> None:
    """A sum over workers must not fall when one is started again; what it had in flight is over."""
    left = sums.counters(PAGE % (5, 6, 6, 7, 1, 1))
    assert value(left, b"headroom_requests_total") == 5
    assert value(left, b"headroom_ttft_seconds_count") == 6
    assert b"gauge" not in left
    assert value(sums.summed([PAGE % (1, 1, 1, 0, 1, 1), left]), b"headroom_requests_total") == 6


def view(slot: int, requests: int, ttft_ms: float | None) -> dict[str, Any]:
    """A worker's fleet: one backend, one stream on it, and the other worker seen as another router."""
    last = {"requests": requests, "slo_met": requests, "refused": 0}
    times = {"ttft_ms": ttft_ms, "ttft_predicted_ms": None, "tpot_ms": None, "tpot_predicted_ms": None}
    load = {"prefilling": 0, "decoding": 1, "kv_tokens": 10}
    backend = {
        "name": "a", "up": slot == 1, "load": load, "others": 3, "engine": {"age_s": 1.0 - slot},
        "last": last | times | {"output_tokens_per_s": 1.5},
    }  # fmt: skip
    own = {"router": f"h.w{slot}", "pid": slot, "version": "v", "ready": True, "draining": False, "held": 0}
    peers = {"h.w0": "v", "h.w1": "v", "else": "v"}
    taken = {
        "at_s": 10.0 + slot,
        "ok": True,
        "why": "",
        "validation": {"replays": [{"drop": 0.0}] if slot == 0 else []},
    }
    lines = {key: [{"age_s": 2 - slot}] for key in ("recent", "failed", "violated")}
    config = {"last": taken, "reloading": {"share": 0.5} if slot == 1 else None}
    more = {"failing_open": ["m"] if slot == 1 else [], "state_fault": None, "client_errors": 1}
    arms = {name: {"requests": 2 * slot, "met": slot} for name in ("serving", "canary")}
    more["trial"] = {"arms": arms, "verdict": None} if requests != 1 else None
    gains = {"gain_ms": {"ttft": 10.0 * slot}, "predicted_met": {"shadow": None}}
    more["shadow"] = {"decisions": 3 - 2 * slot, "agreement": 1.0 - slot} | gains
    own |= more | {"push": {"peers": ["h.w2", "h.w0"][slot:], "faults": {}}, "config": config}
    return own | {"in_flight": 1, "peers": peers, "last": last, "backends": [backend]} | lines


def test_a_fleet_by_two_workers_counts_each_stream_once() -> None:
    """Loads and counts add up, means are weighed, the other worker is no other router, the newest word is shown."""
    seen = views.fleet({0: view(0, 1, 10.0), 1: view(1, 3, 20.0)}, {0: "h.w0", 1: "h.w1", 2: "h.w2"})
    (backend,) = seen["backends"]
    assert seen["in_flight"] == 2
    assert seen["last"]["requests"] == 4
    assert seen["peers"] == {"else": "v"}
    assert seen["failing_open"] == ["m"]
    assert seen["client_errors"] == 2
    assert seen["push"]["peers"] == ["h.w0"]  # of the worker that receives the changes of the fewest
    assert [line["age_s"] for line in seen["recent"]] == [1, 2]
    assert seen["failed"] == seen["violated"] == seen["recent"]
    assert seen["trial"]["arms"]["canary"] == {"requests": 2, "met": 1, "attainment": 0.5}
    assert seen["trial"]["drop"] == {"mean": 0.0, "low": -0.5734, "high": 0.5734}
    assert seen["shadow"] == {
        "decisions": 4, "agreement": 0.75, "gain_ms": {"ttft": 2.5}, "predicted_met": {"shadow": None},
    }  # fmt: skip
    assert seen["config"]["reloading"] == {"share": 0.5}
    assert seen["config"]["last"]["at_s"] == 10.0  # of the worker that validated; the other one followed
    assert backend["load"] == {"prefilling": 0, "decoding": 2, "kv_tokens": 20}
    assert backend["others"] == 2
    assert backend["up"]
    assert backend["engine"]["age_s"] == 0.0
    assert backend["last"]["ttft_ms"] == 17.5
    assert backend["last"]["tpot_ms"] is None
    assert backend["last"]["output_tokens_per_s"] == 3.0
    assert [each["up"] for each in seen["workers"].values()] == [True, True, False]


def test_of_a_change_that_one_worker_made_by_itself_the_reason_is_shown() -> None:
    """The others followed it without one."""
    one, other = (view(slot, 2, None)["config"] for slot in (0, 1))
    for each in (one, other):
        each["last"]["validation"] = {"replays": []}
    other["last"]["why"] = "attainment is lower"
    assert [views.reloads(each)["last"]["why"] for each in ([one, other], [other, one])] == ["attainment is lower"] * 2


def test_a_fleet_has_the_backends_of_every_worker() -> None:
    """One that has been found by the other worker alone is shown too, whichever worker got the request."""
    one, other = view(0, 1, 10.0), view(1, 3, 20.0)
    other["backends"] = [*other["backends"], other["backends"][0] | {"name": "b"}]
    ids = {0: "h.w0", 1: "h.w1"}
    for seen in (views.fleet({0: one, 1: other}, ids), views.fleet({1: other, 0: one}, ids)):
        assert [(each["name"], each["load"]["decoding"]) for each in seen["backends"]] == [("a", 2), ("b", 1)]
        assert [each["backends"] for each in seen["workers"].values()] == [1, 2]


def source(up: bool, **states: str) -> dict[str, Any]:
    """A source at one worker, with its endpoints by state."""
    endpoints = [{"name": name, "state": state, "terminating": state == "draining"} for name, state in states.items()]
    why, since_s = ("", None) if up else ("away", 7.0)
    return {
        "source": "file:t", "up": up, "answered_s": 5.0, "failing_since_s": since_s, "why": why, "failures": 1,
        "endpoints": endpoints, "terminating": sum(each["terminating"] for each in endpoints),
    }  # fmt: skip


def test_sources_are_those_of_every_worker() -> None:
    """An endpoint serves where it does for all; where workers differ, each is listed, and so is a failure of one."""
    ids = {0: "h.w0", 1: "h.w1"}
    one = {"configured": ["x"], "sources": [source(True, a="serving", b="serving", c="reading")]}
    other = {"configured": ["x"], "sources": [source(False, a="serving", c="serving", d="draining")]}
    seen = views.discovery({0: one, 1: other}, ids)
    (found,) = seen["sources"]
    assert seen["configured"] == ["x"]
    assert (found["up"], found["why"], found["failing_since_s"]) == (False, "away", 7.0)
    assert (found["failures"], found["terminating"]) == (2, 1)
    states = {each["name"]: each["state"] for each in found["endpoints"]}
    assert states == {"a": "serving", "b": "unseen", "c": "reading", "d": "unseen"}
    workers = {each["name"]: each.get("workers") for each in found["endpoints"]}
    assert workers["a"] is None
    assert workers["b"] == {"h.w0": "serving", "h.w1": "unseen"}
    assert [(name, each["up"], each["endpoints"]) for name, each in found["workers"].items()] == [
        ("h.w0", True, 3), ("h.w1", False, 3),
    ]  # fmt: skip


def account(requests: float, left: float | None) -> dict[str, Any]:
    used = {"requests": requests, "prompt_tokens": 10 * requests, "usd": requests / 2}
    return {"limits": {}, "requests_left": left, "tokens_left": None, "running": 1, "used": used}


def test_the_use_of_accounts_adds_up_unless_the_shared_state_has_done_so() -> None:
    """What is left and what runs is counted by each worker for all of them."""
    one, other = {"a": account(2, 5.0), "b": account(1, None)}, {"a": account(3, 4.0), "c": account(1, 1.0)}
    seen = views.usage([{"month": None, "accounts": one}, {"month": None, "accounts": other}])["accounts"]
    assert {name: each["used"]["requests"] for name, each in seen.items()} == {"a": 5, "b": 1, "c": 1}
    assert seen["a"]["used"] == {"requests": 5, "prompt_tokens": 50, "usd": 2.5}
    assert (seen["a"]["requests_left"], seen["a"]["running"], seen["b"]["requests_left"]) == (4.0, 1, None)
    summed = views.usage([{"month": "2026-11", "accounts": one}, {"month": "2026-11", "accounts": other}])
    assert summed["accounts"]["a"]["used"]["requests"] == 3


def used_by(quotas: Quotas) -> dict[str, float]:
    """By account, the tokens that it has used."""
    return {state.name: state.used.tokens for state in quotas.states(0.0)}


def test_what_a_worker_has_used_outlives_its_process(tmp_path: Path) -> None:
    """A second process adds to what the first one wrote; what a config no longer limits is no account."""
    file, rules = tmp_path / "w0.used", QuotaRules({"t": Quota(), "u": Quota()})
    first = Quotas(rules)
    written = UsedFile(file, first)
    for name, now_s in (("t", 5.0), ("u", 5.5), ("u", 6.5)):
        first.admit(request(f"{name}{now_s}", tenant=name), "", False, now_s)
        first.settle(f"{name}{now_s}", 10, 0, 1, now_s)
        written.write(now_s)
        assert sum(each["used"]["requests"] for each in read(file)["accounts"].values()) == (3 if now_s > 6 else 1)
    second = Quotas(rules)
    UsedFile(file, second).resume(0.0)
    assert used_by(second) == used_by(first) == {"tenant:t": 11.0, "tenant:u": 22.0}
    third = Quotas(QuotaRules({"t": Quota()}))
    UsedFile(file, third).resume(0.0)
    assert used_by(third) == {"tenant:t": 11.0}


async def test_the_use_of_a_worker_that_does_not_answer_is_what_it_wrote_last(tmp_path: Path) -> None:
    """A total must not fall while a worker is started again."""
    path, one, other = pair(tmp_path)
    write(path, TRIAL + "quotas: {t: {requests_per_minute: 9}}\n")
    here = worker_of(path, one.identity)
    await here.start()
    gone = Quotas(here.gateway.plan.quotas)
    for quotas, name in ((gone, "x"), (here.gateway.quotas, "y")):
        quotas.admit(request(name, tenant="t"), "", False, 1.0)
        quotas.settle(name, 10, 0, 1, 1.0)
    UsedFile(other.identity.used(1), gone).write(1.0)
    wire = httpx.ASGITransport(here._control.outside, client=("127.0.0.1", 1))  # type: ignore[arg-type] - its own alias
    async with httpx.AsyncClient(transport=wire, base_url="http://one") as client:
        (account,) = (await client.get("/admin/usage")).json()["accounts"].values()
    assert (account["used"]["requests"], account["running"], account["requests_left"] > 7) == (2, 0, True)
    await here.close()
    again = worker_of(path, one.identity)
    await again.start()
    assert used_by(again.gateway.quotas) == {"tenant:t": 11.0}
    await again.close()
    for each in (one, other):
        await each.gateway.engines.close()


def pair(tmp_path: Path) -> tuple[Path, Worker, Worker]:
    """A config with a trial, and two workers of it without a request yet."""
    path = tmp_path / "r.yaml"
    write(path, TRIAL)
    places = [WorkerIdentity(tmp_path, slot, 2, "h") for slot in range(2)]
    plan = plan_file(path)
    running.publish(places[0].running, Version(plan.version, time(), "start", plan.text), {})
    return path, worker(path, places[0]), worker(path, places[1])


async def test_the_verdict_on_a_trial_in_one_worker_is_that_of_all(tmp_path: Path) -> None:
    """The other one follows, does not put it to the test again, and one that is started later begins there."""
    path, one, other = pair(tmp_path)
    await one.gateway.reloader.judged(one.gateway.plan, "promoted", "canary", "as good")
    assert one.gateway.plan.version.endswith("-promoted")
    for each in (one, other):
        await each._agree()
    later = worker(path, other.identity)
    for each in (other, later):
        assert each.gateway.plan.version == one.gateway.plan.version
        assert each.gateway.plan.settings.policy.canary is None
        assert each.gateway.plan.settings.policy.routing.name == "least_work"
    assert (await other.gateway.reloader.reload("test")).version == one.gateway.plan.version
    for each in (one, other, later):
        await each.gateway.engines.close()


async def test_a_version_that_failed_in_one_worker_is_bad_in_all(tmp_path: Path) -> None:
    """No worker goes back to it by itself."""
    path, one, other = pair(tmp_path)
    first = one.gateway.plan.version
    write(path, TRIAL.replace("round_robin", "least_request"))
    assert (await one.gateway.reloader.reload("test")).ok
    await one._agree()
    await other._agree()
    second = other.gateway.plan.version
    assert second != first
    assert (await one.gateway.reloader.rollback(None, "test")).version == f"{first}-returned"
    await one._agree()
    await other._agree()
    assert other.gateway.plan.version == one.gateway.plan.version
    assert other.gateway.reloader.versions.find(second).bad
    for each in (one, other):
        await each.gateway.engines.close()


async def test_of_two_changes_at_once_the_later_one_stands_in_both(tmp_path: Path) -> None:
    """Whoever looks first."""
    path, one, other = pair(tmp_path)
    for each, name in ((one, "least_request"), (other, "least_kv")):
        write(path, TRIAL.replace("round_robin", name))
        assert (await each.gateway.reloader.reload("test")).ok
    for each in (one, other, one):
        await each._agree()
    assert one.gateway.plan.version == other.gateway.plan.version
    assert one.gateway.plan.settings.policy.routing.name == "least_kv"
    for each in (one, other):
        await each.gateway.engines.close()


async def joined(one: Worker) -> None:
    """Its backends are there, without anything that runs beside them."""
    gateway = one.gateway
    pairs = zip(gateway.plan.addresses, gateway.plan.backends, strict=True)
    await gateway.backends.update((Target.of_url(given.name, given.url), backend) for given, backend in pairs)


def gets_nothing(one: Worker, name: str) -> bool:
    """Whether that backend of it drains."""
    ledger = one.gateway.core.ledger
    return bool(ledger.table.cells[DRAINING][ledger.roster.slot(name)])


async def test_a_drain_at_one_worker_is_that_of_all_and_of_one_that_starts_later(tmp_path: Path) -> None:
    """Until it is undrained, wherever; a backend that has left at one worker goes on draining at another."""
    path, one, other = pair(tmp_path)
    for each in (one, other):
        await joined(each)
    one.gateway.backends.drain("a", 5.0)
    for each in (one, other):
        each._agree_on_drains()
    later = worker(path, other.identity)
    later._agree_on_drains()
    await joined(later)
    for each in (one, other, later):
        assert each.gateway.backends.drained == {"a": 5.0}
        assert gets_nothing(each, "a")
    await one.gateway.backends.update([])
    for each in (one, other, later):
        each._agree_on_drains()
    assert [sorted(each.gateway.backends.drained) for each in (one, other)] == [[], ["a"]]
    await joined(one)
    one.gateway.backends.drain("a", 6.0)
    one._agree_on_drains()
    other.gateway.backends.undrain("a")
    for each in (other, one, later):
        each._agree_on_drains()
        assert not each.gateway.backends.drained
        assert not gets_nothing(each, "a")
    for each in (one, other, later):
        await each.gateway.engines.close()


async def test_a_drain_of_what_only_another_worker_has_found_is_carried_out_there(tmp_path: Path) -> None:
    """And here once it is found here too; a name that no worker has is not found."""
    _, one, other = pair(tmp_path)
    await joined(other)
    await other._control.start()
    wire = httpx.ASGITransport(one._control.outside, client=("127.0.0.1", 1))  # type: ignore[arg-type] - its own alias
    async with httpx.AsyncClient(transport=wire, base_url="http://one") as client:
        assert (await client.post("/admin/backends/nobody/drain")).status_code == 404
        answer = await client.post("/admin/backends/a/drain")
    assert (answer.status_code, answer.json()) == (200, {"backend": "a", "drained": True})
    assert gets_nothing(other, "a")
    other._agree_on_drains()
    one._agree_on_drains()
    await joined(one)
    assert gets_nothing(one, "a")
    for each in (one, other):
        await each._control.close()
        await each.gateway.engines.close()


async def test_a_worker_waits_for_its_first_set_so_long_and_says_that_it_serves_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A source that fails keeps no worker away for ever."""
    path, one, other = pair(tmp_path)
    write(path, TRIAL + "discover: [{file: missing.yaml}]\n")
    late = worker_of(path, one.identity)
    await late.start()
    await until_informed(late.gateway, 0.05)
    assert "no first set of backends from file:missing.yaml within 0.05 s" in caplog.text
    caplog.clear()
    (tmp_path / "missing.yaml").write_text("[]")
    await until_informed(late.gateway, 600.0)
    assert "no first set" not in caplog.text
    await late.close()
    for each in (one, other):
        await each.gateway.engines.close()


def worker_of(path: Path, identity: WorkerIdentity) -> Worker:
    """With the config as it is now."""
    plan = plan_file(path)
    running.publish(identity.running, Version(plan.version, time(), "start", plan.text), {})
    return worker(path, identity)


def test_a_plan_without_an_outcome_is_as_it_was(tmp_path: Path) -> None:
    """Its trial goes on."""
    path = tmp_path / "r.yaml"
    write(path, TRIAL)
    plan = plan_file(path)
    assert settled(plan, "") is plan


async def test_each_engine_is_read_by_exactly_one_of_the_workers_alive(tmp_path: Path) -> None:
    """The remaining worker takes the change when one is gone; one worker takes a changed file for all."""
    _, one, other = pair(tmp_path)
    names = [f"engine-{number}" for number in range(50)]
    for each in (one, other, one):
        await each.gateway.sync.once(each.gateway.clock)
    mine = [{name for name in names if each.gateway.scrapes(name)} for each in (one, other)]
    assert mine[0] | mine[1] == set(names)
    assert not mine[0] & mine[1]
    assert all(mine)
    assert [each.gateway.leads() for each in (one, other)] == [True, False]
    await one.gateway.store.close()
    await other.gateway.sync.once(lambda: other.gateway.clock() + 10.0)
    assert all(other.gateway.scrapes(name) for name in names)
    assert other.gateway.leads()


async def test_what_one_worker_reads_of_adapters_the_other_knows_too(tmp_path: Path) -> None:
    """Each engine is read by one of them; what it publishes is not published anew by the other."""
    _, one, other = pair(tmp_path)
    gateways = one.gateway, other.gateway
    for gateway in gateways * 2:
        gateway.core.backend_joined(gateway.plan.backends[0], gateway.clock())
        await gateway.sync.once(gateway.clock)
    reads, follows = gateways if gateways[0].scrapes("a") else gateways[::-1]
    assert not follows.scrapes("a")
    asked_s = reads.clock()
    reads.adapters_reported("a", RunningAdapters((), 7))
    assert reads.publisher is not None
    assert follows.publisher is not None
    reads.publisher.scraped("a", EngineReport(asked_s), 0.0)
    await reads.publisher.publish()
    for gateway in gateways:
        await gateway.sync.once(gateway.clock)
    ledger = follows.core.ledger
    assert ledger.adapters._places == {ledger.roster.slot("a"): 7}
    assert not follows.publisher._adapters
    for gateway in gateways:
        await gateway.engines.close()
