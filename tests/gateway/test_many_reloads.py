"""A thousand reloads in a row: each whole or not at all, and nothing of them stays behind."""

import gc
import logging
import sys
from pathlib import Path

import pytest

from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.policy_files import policy_file

RELOADS = 1_000
GROWTH_MAX_BYTES = 4 * 2**20  # of some 90 MB; a plan kept for each of the 350 good ones would be more


def numbered(text: str, number: int) -> str:
    """A config whose number stands in every part that takes effect on its own."""
    names = ("round_robin", "least_request", "least_work")
    return (
        text
        + f"slo_classes: {{default: {{ttft_ms: {1_000 + number}}}}}\n"
        + f"policy:\n  routing: {names[number % 3]}\n  limits: {{attempts_max: {1 + number}}}\n"
        + f"  admission: {{name: deadline, parameters: {{held_max: {1 + number}}}}}\n"
        + f"api_keys: [{{key: client-key-{number}, tenant: t{number}}}]\n"
        + "reload: {validation: {enabled: false}}\n"
    )


def numbers(it: Router) -> set[int]:
    """Which configs the running gateway is made of."""
    core, plan = it.gateway.core, it.gateway.plan
    ingress = it.gateway.driver.ingress
    return {
        round(ingress.classes["default"].slo.ttft_s * 1e3) - 1_000,
        core.limits.attempts_max - 1,
        core.admission.held_max - 1,
        plan.limits.attempts_max - 1,
        *(int(caller.tenant[1:]) for caller in ingress.keys.values()),
    }


def resident_bytes() -> int:
    """What this process holds, after a collection."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


async def test_a_thousand_reloads_half_of_them_bad_leave_nothing_half_applied_and_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At every moment all parts are of one config; memory is flat after the first three hundred."""
    caplog.set_level(logging.CRITICAL, "headroom")  # captured records hold what the errors held
    path, settled_bytes = tmp_path / "r.yaml", 0
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages), backend("b", engine, pages))
        faults = ("polcy: {}\n", "backends: [\n", "state: {sync_s: 3}\n")
        async with router(path, numbered(text, 0)) as it:
            for number in range(1, RELOADS + 1):
                good = number % 2 == 0
                write(path, numbered(text, number) + ("" if good else faults[number % 3]))
                outcome = await it.gateway.reloader.reload("test")
                assert outcome.ok is good
                assert numbers(it) == {number if good else number - 1}
                if number == 300:
                    settled_bytes = resident_bytes()
            grown = resident_bytes() - settled_bytes
            assert grown < GROWTH_MAX_BYTES
            assert len(list(it.gateway.reloader.versions)) == 20
            assert len(it.gateway.audit.last) == 200
            answer = await it.chat(headers={"authorization": f"Bearer client-key-{RELOADS}"})
            assert answer.status_code == 200


async def test_modules_of_policy_files_do_not_pile_up(tmp_path: Path) -> None:
    """A file that is edited all day."""
    from router import loading  # noqa: PLC0415 - its module table is the subject

    source = loading.read(policy_file(tmp_path, "good"))
    made = [loading.load("routing", source, {"among": n}) for n in range(200)]
    assert [each.among for each in made] == list(range(200))
    assert len({type(each) for each in made}) == 200
    assert sum(name.startswith("_policy_mine_") for name in sys.modules) <= 64
