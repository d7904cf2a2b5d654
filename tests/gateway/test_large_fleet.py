"""What a router does for all of many backends is done in parts, and begins spread: laws of turns and counts, not of
time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import trustme
from prometheus_client import generate_latest

from router.core.errors import ConfigError
from router.core.types import EngineReport
from router.gateway.app import Gateway
from router.gateway.config.plan import Plan, plan_file
from router.gateway.control import fleet_view
from router.gateway.monitoring.health import Engines
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.monitoring.repeating import A_TURN, STARTS_A_S, Places, Repeated, start_s
from router.gateway.protocols.target import Target
from router.gateway.serving import control_parts
from router.gateway.state.beliefs import Beliefs
from router.gateway.state.memory import MemoryStore
from router.gateway.telemetry.exposition import PART_LINES, HistogramFamily, parts
from router.gateway.telemetry.histogram import Histogram
from router.gateway.telemetry.metrics import Metrics
from router.gateway.traffic.upstream import Upstream
from router.gateway.turns import PART, in_turns
from tests import fakes
from tests.gateway.test_health import Listener, at
from tests.gateway.test_history import log
from tests.pages import Pages
from tests.waiting import until

MANY = 5 * PART
Result = TypeVar("Result")


class Turns:
    """Counts turns of the event loop."""

    count = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.count += 1
            await asyncio.sleep(0)


async def turns_of(work: Awaitable[Result]) -> tuple[Result, int]:
    """What *work* gives, and how many turns others had meanwhile."""
    turns = Turns()
    counting = asyncio.create_task(turns.run())
    try:
        return await work, turns.count
    finally:
        counting.cancel()


def text(count: int) -> str:
    """A config of so many backends, none of which is there."""
    facts = 'url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b'
    return "listen: {port: 0}\nbackends:\n" + "".join(f"  - {{name: b{n}, {facts}}}\n" for n in range(count))


def made(tmp_path: Path, count: int) -> Gateway:
    """A gateway that does not run."""
    path = tmp_path / "r.yaml"
    path.write_text(text(count), encoding="utf-8")
    return Gateway(plan_file(path), path)


async def update(gateway: Gateway, plan: Plan) -> frozenset[str]:
    """Make the backends of *plan* those of the gateway."""
    pairs = zip(plan.addresses, plan.backends, strict=True)
    return await gateway.backends.update((Target.of_url(given.name, given.url), backend) for given, backend in pairs)


async def test_work_in_turns_reads_its_items_as_they_are_needed() -> None:
    """After each part the event loop has a turn; none is left out."""
    read: list[int] = []

    async def work() -> list[int]:
        return [item async for item in in_turns((read.append(n) or n for n in range(MANY)), PART)]

    found, turns = await turns_of(work())
    assert found == read == list(range(MANY))
    assert turns >= MANY // PART


async def test_backends_come_and_go_in_parts(tmp_path: Path) -> None:
    """A config of a thousand backends stops no stream for as long as all of them take."""
    gateway = made(tmp_path, MANY)
    for plan, new in ((gateway.plan, MANY), (replace(gateway.plan, backends=(), addresses=()), 0)):
        found, turns = await turns_of(update(gateway, plan))
        assert len(found) == new
        assert turns >= MANY // PART
    assert not gateway.backends.known


async def test_a_backend_that_is_wanted_again_is_not_removed_between_two_parts(tmp_path: Path) -> None:
    """It drains until the new config; the sweep, which removes what has drained, runs while the others join."""
    gateway = made(tmp_path, MANY)
    core, whole = gateway.core, gateway.plan
    await update(gateway, whole)
    core.backend_health("b0", True, gateway.clock())
    core.arrived(fakes.request("r", arrived_s=gateway.clock()), gateway.clock())
    assert core.loads()["b0"].prefilling == 1
    await update(gateway, replace(whole, backends=whole.backends[1:], addresses=whole.addresses[1:]))
    assert "b0" in gateway.backends.known
    core.client_left("r", gateway.clock())

    async def sweep() -> None:
        while True:
            gateway.backends.sweep(gateway.clock())
            await asyncio.sleep(0)

    sweeping = asyncio.create_task(sweep())
    await update(gateway, whole)
    sweeping.cancel()
    assert "b0" in gateway.backends.known
    assert core.ledger.roster.pool("m").tolist() == [core.ledger.roster.slot("b0")]


async def test_engines_that_are_found_at_once_are_taken_in_few_swaps(tmp_path: Path) -> None:
    """Each finder goes on only once what it has found serves."""
    reloader = made(tmp_path, 1).reloader
    found: list[int] = []
    swapped: list[int] = [0]
    reloader.complete = lambda plan: replace(plan, version=str(len(found)))

    async def swap(plan: Plan) -> None:
        await asyncio.sleep(0)
        swapped.append(int(plan.version))

    async def find(number: int) -> None:
        found.append(number)
        own = len(found)
        await reloader.completed(swap)
        assert swapped[-1] >= own

    await asyncio.gather(*map(find, range(50)))
    assert len(swapped) - 1 <= 3


async def test_what_a_swap_begins_ends_with_the_gateway(tmp_path: Path) -> None:
    """A swap of many backends has many parts, and a stop may come between two of them; none begins after it."""
    gateway, begun, go_on = made(tmp_path, 2), asyncio.Event(), asyncio.Event()
    await gateway.start()
    gateway.reloader.complete = lambda plan: replace(plan, version="found")

    async def swap(plan: Plan) -> None:
        begun.set()
        await go_on.wait()
        await gateway._adopt_backends(plan)

    swapping = asyncio.create_task(gateway.reloader.completed(swap))
    await begun.wait()
    closing = asyncio.create_task(gateway.close())
    await until(lambda: all(task.done() for task in gateway._tasks))
    late = asyncio.create_task(gateway.reloader.completed(swap))
    for _ in range(50):  # turns, in which a close that did not wait would be over
        await asyncio.sleep(0)
    go_on.set()
    await closing
    assert swapping.done()
    assert gateway.plan.version == "found"
    assert not gateway.engines.watches
    assert not gateway.model_lists._reading
    gateway.reloader.complete = lambda plan: replace(plan, version="late")
    await gateway.close()
    assert gateway.plan.version == "found"
    late.cancel()


async def test_beliefs_are_kept_and_restored_in_parts() -> None:
    """What a thousand backends have taught is megabytes; one may leave meanwhile."""
    backends = [fakes.backend(f"b{n}") for n in range(MANY)]
    old, new, store = fakes.core(*backends), fakes.core(*backends), MemoryStore("old")
    taken: list[str] = []
    names = list(old.beliefs())
    saving = Beliefs(store, lambda: names, old.belief_of, lambda *_: None)
    old.backend_left("b7", 0.0)
    kept, turns = await turns_of(saving.keep())
    assert kept
    assert turns >= MANY // PART
    restoring = Beliefs(store, lambda: names, new.belief_of, lambda name, _: taken.append(name))
    count, turns = await turns_of(restoring.warm(frozenset(names)))
    assert count == len(taken) == MANY - 1
    assert turns >= (MANY - 1) // PART


# -- probes ------------------------------------------------------------------------------------------------------------


def test_acts_that_are_started_together_begin_one_after_another() -> None:
    """The first at once; a thousand within a second."""
    assert start_s(0) == 0.0
    assert start_s(STARTS_A_S) == pytest.approx(1.0)


async def test_no_more_acts_run_at_once_than_there_are_places() -> None:
    """The others wait, and have their turn."""
    places, go_on, running, seen = Places(3), asyncio.Event(), 0, []

    async def act() -> None:
        nonlocal running
        running += 1
        seen.append(running)
        await go_on.wait()
        running -= 1

    acts = [Repeated(act, 60.0, f"act {n}", places) for n in range(10)]
    for each in acts:
        each.start(0.0)
    await until(lambda: len(seen) == 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(seen) == 3
    go_on.set()
    await until(lambda: len(seen) == 10)
    assert max(seen) <= 3
    for each in acts:
        await each.stop()


async def test_acts_that_are_due_at_once_begin_a_few_in_each_turn() -> None:
    """As after a pause of the process, which has every timer due."""
    places, begun, turns = Places(), [0], Turns()
    for _ in range(5 * A_TURN):
        places.begin(lambda: begun.append(turns.count))
    counting = asyncio.create_task(turns.run())
    await until(lambda: len(begun) > 5 * A_TURN)
    counting.cancel()
    assert max(begun.count(turn) for turn in set(begun[1:])) <= A_TURN + 1


async def test_an_act_that_is_stopped_while_it_is_due_is_not_done() -> None:
    """Its backend has left."""
    done: list[int] = []

    async def act() -> None:
        done.append(1)

    one = Repeated(act, 60.0, "act", Places())
    one.start(0.0)
    await one.stop()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not done


async def test_an_act_that_fails_by_a_fault_is_logged_and_done_again(caplog: pytest.LogCaptureFixture) -> None:
    """An engine whose check met a fault once would otherwise never be checked again."""
    done = 0

    async def act() -> None:
        nonlocal done
        done += 1
        if done == 1:
            raise ZeroDivisionError

    one = Repeated(act, 0.001, "check of a", Places(1))
    with caplog.at_level(logging.ERROR, "headroom"):
        one.start(0.0)
        await until(lambda: done >= 3)
        await one.stop()
    assert [record.message.partition(":")[0] for record in caplog.records] == ["check of a"]


async def test_an_act_may_end_its_own_repetition() -> None:
    """As a list of models does whose change removes its backend."""
    done = 0

    async def act() -> None:
        nonlocal done
        done += 1
        await one.stop()

    one = Repeated(act, 0.001, "act", Places(1))
    one.start(0.0)
    await until(lambda: done)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert done == 1


async def test_an_engine_under_watch_has_no_task_between_its_probes() -> None:
    """Each would hold kilobytes: a thousand engines, two probes of each."""
    async with Pages({"/health": (200, b""), "/metrics": (200, b"")}) as pages:
        listener = Listener()
        engines = Engines(listener, listener, ProbeClient, lambda: 0.0)
        watched = tuple(replace(at(pages.url), name=f"e{n}") for n in range(MANY))
        _, turns = await turns_of(engines.watch(watched, 60.0, 2.0, 1))
        assert turns >= MANY // PART
        await until(lambda: len(listener.changes) == MANY and len(listener.failures) == MANY)
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert not [name for name in names if name.startswith(("health check of", "scrape of"))]
        await engines.close()


@asynccontextmanager
async def upstreams(count: int) -> AsyncIterator[list[Upstream]]:
    """Of backends over TLS that name no certificates."""
    yield [Upstream(Target.of_url(f"b{n}", f"https://127.0.0.1:{n + 1}"), lambda: 0.0) for n in range(count)]


async def test_backends_over_tls_without_certificates_of_their_own_share_one_context() -> None:
    """What the machine trusts is read once, not for each of a thousand backends, and again for its checks."""
    async with upstreams(3) as made_for:
        assert len({id(each._tls) for each in made_for}) == 1
        assert made_for[0]._tls is not None


# -- pages -------------------------------------------------------------------------------------------------------------


def counted() -> Metrics:
    """Metrics with something in every family of backends, and names that have to be escaped."""
    metrics = Metrics(lambda: 10.0)
    for number, name in enumerate(("b0", 'q"uote', "back\\slash", "new\nline")):
        for slo_class in ("chat", "batch"):
            metrics.recorded(log(0.1 * number, backend=name, slo_class=slo_class).record)
        metrics.scraped(name, EngineReport(9.0, 1.0, 2.0), 0.1)
        metrics.reported(name, EngineReport(9.0, 1.0, 2.0))
    return metrics


def test_the_page_is_that_of_prometheus_own_client() -> None:
    """Line by line, with counts beyond a million and without a value."""
    metrics = counted()
    row = next(iter(metrics._rows.values()))
    row.ttft.counts[3], row.ttft.total = 12_345_678, 1.5e9
    theirs = generate_latest(metrics.registry).decode().split("\n")
    ours = metrics.text().decode().split("\n")
    process = [line for line in theirs if "process_" in line]
    assert [line for line in ours if "process_" not in line] == [line for line in theirs if "process_" not in line]
    assert len([line for line in ours if "process_" in line]) == len(process)


def test_the_page_of_many_backends_comes_in_parts() -> None:
    """None much longer than a part, and all together the page."""
    metrics = Metrics(lambda: 10.0)
    for number in range(200):
        metrics.recorded(log(0.1, backend=f"b{number}").record)
    found = list(metrics.parts())
    assert len(found) >= 5
    assert max(part.count(b"\n") for part in found) < PART_LINES + 100
    families = {part.split(b" ")[2] for part in b"".join(found).split(b"\n") if part.startswith(b"# TYPE ")}
    assert b"headroom_ttft_seconds" in families


def test_a_histogram_without_labels_is_written_too() -> None:
    """As that of syncs with the shared state."""
    family, one = HistogramFamily("h", "text", labels=[]), Histogram((1, 2))
    one.add(1.5)
    family.add([], one.edges, one.counts, one.total)
    assert b"".join(parts([family])).decode().split("\n")[2:] == [
        'h_bucket{le="1.0"} 0.0',
        'h_bucket{le="2.0"} 1.0',
        'h_bucket{le="+Inf"} 1.0',
        "h_count 1.0",
        "h_sum 1.5",
        "",
    ]


def test_histograms_of_many_backends_share_their_edges() -> None:
    """The numbers of one are hundreds of bytes."""
    one, other = Histogram((1, 2, 5)), Histogram((1, 2, 5))
    assert one.edges is other.edges
    assert all(isinstance(edge, float) for edge in one.edges)


async def test_the_fleet_view_of_many_backends_is_made_in_parts(tmp_path: Path) -> None:
    """The page reads it every second."""
    gateway = made(tmp_path, MANY)
    await update(gateway, gateway.plan)
    view, turns = await turns_of(fleet_view.fleet(control_parts(gateway)))
    assert [each["name"] for each in view["backends"]] == [f"b{n}" for n in range(MANY)]
    assert turns >= MANY // PART


def test_versions_of_a_config_share_the_backends_that_did_not_change(tmp_path: Path) -> None:
    """Twenty are kept for a rollback; of a thousand backends each would else be there twenty times."""
    old = made(tmp_path, 4).plan
    path = tmp_path / "new.yaml"
    path.write_text(text(4).replace("name: b2, ", "name: b2, price_per_hour: 9.0, "), encoding="utf-8")
    new = plan_file(path)
    shared = new.sharing(old)
    assert (shared.backends, shared.addresses, shared.settings) == (new.backends, new.addresses, new.settings)
    for number in range(4):
        same = number != 2
        assert (shared.backends[number] is old.backends[number]) is same
        assert (shared.addresses[number] is old.addresses[number]) is same
        assert (shared.settings.backends[number] is old.addresses[number]) is same


async def test_a_reload_keeps_what_it_shares_with_the_config_before(tmp_path: Path) -> None:
    """As it serves, and in the history."""
    gateway = made(tmp_path, 4)
    before = gateway.plan
    gateway.path.write_text(text(5), encoding="utf-8")

    async def swap(*_: object) -> None:
        """Nothing runs."""

    gateway.reloader._swap = swap
    assert (await gateway.reloader.reload("test")).ok
    assert all(now is then for now, then in zip(gateway.plan.backends, before.backends, strict=False))
    assert len(gateway.plan.backends) == 5


def test_backends_with_the_same_certificates_share_one_context(tmp_path: Path) -> None:
    """And a missing file is a fault of each that names it."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    path = tmp_path / "r.yaml"
    path.write_text(text(3).replace("http:", "https:").replace("models:", "ca: ca.pem, models:"), encoding="utf-8")
    found = plan_file(path).engine_tls
    assert len(found) == 3
    assert len({id(each.context) for each in found.values()}) == 1
    path.write_text(path.read_text(encoding="utf-8").replace("ca.pem", "none.pem"), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        plan_file(path)
    assert str(refused.value).count("cannot read") == 3
