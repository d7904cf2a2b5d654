"""The proof: the contract and the clock first, then attainment against who serves now, on traffic that can tell."""

import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from router.core.types import slo_from
from simulator.run.play import play
from simulator.traces.recent import recent
from simulator.validation.comparison import compared
from simulator.validation.validate import BackendPool, job_of, run, validate, workloads
from simulator.workload.arrivals import SloClass
from simulator.workload.for_pool import LOAD, capacity_of, workload_for
from tests import fakes
from tests.policy_files import policy_text

POOL = [fakes.backend("a"), fakes.backend("b", slower=2.0), fakes.backend("c", slower=0.7)]
DEADLINE = {"name": "deadline", "parameters": {}}


def decisions(routing: str | dict[str, Any]) -> dict[str, Any]:
    """A named routing, or one of a source, with the usual admission."""
    named = {"name": routing, "parameters": {}} if isinstance(routing, str) else routing
    return {"routing": named, "admission": DEADLINE, "limits": {}}


def own(does: str) -> dict[str, Any]:
    """A policy file's routing."""
    return decisions({"path": "mine.py", "text": policy_text(does), "parameters": {}})


def asked(candidate: dict[str, Any], **more: Any) -> Any:
    """A job about this pool, through JSON as the gateway asks it."""
    plain = {"candidate": candidate, "current": decisions("least_work"), "backends": [asdict(b) for b in POOL], **more}
    return job_of(json.loads(json.dumps(plain)))


def test_without_backends_there_is_nothing_to_validate_with() -> None:
    """A verdict that says so."""
    verdict = validate(asked(own("good"), backends=[]))
    assert (verdict.passed, verdict.why) == (False, "no backends to validate the policy with")


def test_a_policy_as_good_as_the_serving_one_passes() -> None:
    """With both attainments in the verdict, and how long a decision took."""
    verdict = validate(asked(own("good"), requests_max=800))
    assert verdict.passed, verdict.why
    (replay,) = verdict.replays
    assert replay["candidate"] > 0.9
    assert replay["drop"] <= 0.02
    assert set(verdict.decision_s) == {"mean", "p99", "max"}


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("slowest", "attainment drops by"),
        ("raises", "mine.py:11: choose raised ZeroDivisionError"),
        ("overruns", "mine.py: a decision took "),
        ("sheds", "although every backend is idle"),
        ("remembers", "mine.py: changes Mine.seen during a decision; a policy must not change between calls"),
    ],
)
def test_a_bad_policy_is_refused_and_the_verdict_says_why(does: str, words: str) -> None:
    """By how much, where it is a matter of how much."""
    verdict = validate(asked(own(does), requests_max=800))
    assert not verdict.passed
    assert words in verdict.why


def test_the_bound_on_the_drop_is_the_operators() -> None:
    """Round robin over unequal engines loses some; how much may be lost is a setting."""
    lax = validate(asked(decisions("round_robin"), requests_max=800, attainment_drop_max=1.0))
    assert lax.passed
    drop = lax.replays[0]["drop"]
    assert validate(asked(decisions("round_robin"), requests_max=800, attainment_drop_max=drop + 0.001)).passed
    assert not validate(asked(decisions("round_robin"), requests_max=800, attainment_drop_max=drop - 0.001)).passed


def test_a_serving_policy_that_fails_may_be_replaced_by_anything_sound() -> None:
    """It keeps nothing in the replay."""
    verdict = validate(asked(own("good"), requests_max=200, current=own("raises")))
    assert verdict.passed
    assert verdict.replays[0]["current"] == 0.0


def test_a_shadow_is_held_to_the_contract_alone() -> None:
    """It decides nothing, but it runs in the gateway."""
    slow, sound = own("overruns")["routing"], own("slowest")["routing"]
    assert validate(asked(decisions("least_work"), others=[sound], requests_max=100)).passed
    assert "a decision took" in validate(asked(decisions("least_work"), others=[slow])).why


def test_a_generated_workload_has_the_operators_classes_and_models() -> None:
    """With their bounds; one without a bound gets an SLO that the pool can meet. The tightest bound sets the rate."""
    bounds = {"tight": {"tpot_s": 0.03, "quantile": 0.9}, "loose": {"e2e_s": 60.0}, "open": {}}
    classes = [SloClass(name, slo_from(slo)) for name, slo in bounds.items()]
    pool = [replace(POOL[0], models=("m", "n")), POOL[1]]
    arrivals = workload_for(pool, 400, 1, classes)
    assert {a.request.slo_class: a.request.slo for a in arrivals} == {each.name: each.slo for each in classes}
    assert {a.request.model for a in arrivals} >= {"m", "n"}
    looser = workload_for(pool, 400, 1, classes[1:])
    assert looser[-1].request.arrived_s < arrivals[-1].request.arrived_s
    job = asked(decisions("least_work"), classes=[{"name": name, "slo": slo} for name, slo in bounds.items()])
    ((_, made),) = workloads(job)
    assert {a.request.slo_class for a in made} == set(bounds)
    assert all(a.request.slo.bounded for a in made)


def test_a_refusal_names_the_class_that_loses_its_bound_both_figures_and_what_would_allow_it() -> None:
    """With the interval of the difference."""
    classes = [{"name": "chat", "slo": {"ttft_s": 0.4, "tpot_s": 0.05}}, {"name": "batch", "slo": {"e2e_s": 600.0}}]
    verdict = validate(asked(own("slowest"), requests_max=300, classes=classes))
    assert not verdict.passed
    assert re.search(r"SLO attainment drops by \d+\.\d% against the policy that serves: .* was .* ± \d", verdict.why)
    assert "Class chat (ttft_ms: 400, tpot_ms: 50) loses most" in verdict.why
    assert "reload.validation.attainment_drop_max" in verdict.why
    assert "--force" in verdict.why
    (replay,) = verdict.replays
    assert [each["slo_class"] for each in replay["classes"]] == ["chat", "batch"]
    assert replay["drop"] == pytest.approx(replay["current"] - replay["candidate"])


def test_the_interval_of_a_drop_is_over_batches_of_neighbouring_requests() -> None:
    """Nothing is said of the spread of one request; equal policies differ by nothing."""
    arrivals = workload_for(POOL, 100, seed=1)
    lost = {a.request.id for a in arrivals[:10]}
    whole, (only,) = compared(arrivals, lambda each: each not in lost, lambda each: True)
    assert whole.drop == pytest.approx(0.1)
    assert whole.drop_half_width is not None
    assert 0.1 < whole.drop_half_width < 0.2
    assert (only.slo_class, only.requests) == ("default", 100)
    assert compared(arrivals, lambda each: True, lambda each: True)[0].drop_half_width == 0.0
    assert compared(arrivals[:1], lambda each: False, lambda each: True)[0].drop_half_width is None


def test_what_is_generated_every_sensible_policy_keeps_and_one_place_does_not() -> None:
    """The rate is a share of what the pool could serve within the SLO."""
    arrivals = workload_for(POOL, 2_000, seed=1)
    told = capacity_of(POOL)
    rate = len(arrivals) / arrivals[-1].request.arrived_s
    assert rate == pytest.approx(LOAD * sum(told.rates), rel=0.1)
    assert {arrival.request.slo for arrival in arrivals} == {told.slo}
    assert workload_for(POOL, 2_000, seed=1) == arrivals

    def kept(name: str, pool: list[Any]) -> float:
        core = fakes.core(routing=name)
        return float(play(arrivals, BackendPool(pool), core.routing, core.admission, 1).table.met().mean())

    assert kept("least_work", POOL) > 0.95
    assert kept("least_work", POOL[1:2]) < 0.3


def record(path: Path, requests: int, slo: dict[str, float]) -> str:
    """A record of so many requests a tenth of a second apart, every other one ended."""
    lines = [{"record": 2, "continues": False}]
    for n in range(requests):
        asked_for = {"id": f"r{n}", "model": "m", "arrived_s": n / 10, "prompt_tokens": 50, "slo": slo}
        lines.append({"at_s": n / 10, "event": "arrived", "request": asked_for, "answer": []})
        if n % 2:
            usage = {"output_tokens": 9}
            lines.append({"at_s": n / 10 + 0.05, "event": "ended", "id": f"r{n}", "usage": usage, "answer": []})
    path.write_text(
        "".join(json.dumps(x, separators=(",", ":")) + "\n" for x in lines) + '{"at_s": 1', encoding="utf-8"
    )
    return str(path)


def test_the_end_of_a_record_is_read_and_what_never_ended_counts_too(tmp_path: Path) -> None:
    """As long as the others' median; a half written last line is no fault."""
    path = tmp_path / "run.jsonl"
    record(path, 200, {"ttft_s": 1.0})
    entries = recent(path, 10.0, 1_000)
    assert len(entries) == pytest.approx(100, abs=2)
    assert {entry.output_tokens for entry in entries} == {9}
    assert len(recent(path, 1e9, 30)) == 30


def test_a_record_of_requests_without_slo_is_played_with_one_that_the_pool_could_keep(tmp_path: Path) -> None:
    """Without a bound any policy would do."""
    name = record(tmp_path / "run.jsonl", 300, {"quantile": 0.9})
    verdict = validate(asked(decisions("least_work"), trace=name))
    assert verdict.replays[0]["workload"] == name
    assert validate(asked(decisions("least_work"), trace=name, requests_min=301)).replays[0]["workload"] != name


def test_the_command_answers_in_json_and_keeps_what_policies_print_out_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One object on stdout."""
    text = policy_text("good").replace(
        "import numpy as np", "import re\nimport numpy as np\nre.compile('hello', re.DEBUG)"
    )
    candidate = decisions({"path": "p.py", "text": text, "parameters": {}})
    plain = {"candidate": candidate, "backends": [asdict(b) for b in POOL], "replay": False}
    answered = io.StringIO()
    assert run(io.StringIO(json.dumps(plain)), answered)
    *reported, verdict = map(json.loads, answered.getvalue().splitlines())
    assert reported == [{"doing": "the policy contract", "share": 0.0}]
    assert verdict["passed"] is True
    captured = capsys.readouterr()
    assert "LITERAL" in captured.err
    assert captured.out == ""
