"""What one entry for a toy metric, normalised latency (E2E over output tokens), changes everywhere.

``test_toy_slo_metric.py`` runs this in a copy of the sources that has the entry.
"""

import csv
import json
from math import inf, isnan, nan
from pathlib import Path

import pytest

from router.core.record import _plain_request, request_of
from router.core.slo_metrics import BASE, SLO_METRICS
from router.core.types import NO_SLO, Request, Slo, Usage, slo_from, slo_of
from simulator.traces.formats.own import FORMAT
from tests import fakes
from tests.commands import router_command, simulator_command
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, reply, stream
from tests.pages import Pages

NORM = Slo(ttft_s=1.0, derived_s=(0.05,))
GEN = "gen:poisson:rate=8,requests=300"


def test_the_toy_is_there() -> None:
    assert [metric.name for metric in SLO_METRICS[BASE:]] == ["norm"]


# -- the SLO -------------------------------------------------------------------------------------------------------


def test_the_value_of_a_request_is_compared_with_its_bound() -> None:
    """Beside all other bounds; a value that never came is within none."""
    assert NORM.met(0.5, 0.1, 5.0, 10, 100)
    assert not NORM.met(0.5, 0.1, 5.1, 10, 100)
    assert not NORM.met(2.0, 0.1, 5.0, 10, 100)
    assert not NORM.met(0.5, 0.1, nan, 10, 100)
    assert NORM.met_whole(5.0, 10, 100)
    assert not NORM.met_whole(5.1, 10, 100)


def test_policies_see_what_it_implies_for_the_bounds_that_are_forecast() -> None:
    """The tighter of both counts; an SLO without derived bounds is itself."""
    assert NORM.in_base(10, 1000).bounds_s() == pytest.approx((1.0, 0.04, inf, inf))
    assert NORM.in_base(10, 50).bounds_s() == pytest.approx((0.5, 0.04, inf, inf))
    plain = Slo(ttft_s=1.0)
    assert plain.in_base(10, 100) is plain


def test_an_slo_is_its_bounds_whatever_way_it_is_written() -> None:
    """In order, and as JSON holds it; without a derived bound it equals one that never had any."""
    assert NORM.bounds_s() == (1.0, inf, inf, 0.05)
    assert slo_of(NORM.bounds_s()) == slo_from(json.loads(json.dumps(NORM.plain()))) == NORM
    assert slo_of((inf, inf, inf, inf)) == NO_SLO
    assert (NORM.bounded, slo_of((inf, inf, inf, 1.0)).bounded, NO_SLO.bounded) == (True, True, False)


def test_the_core_s_record_keeps_it() -> None:
    request = Request("r", "m", 0.0, 10, slo=NORM)
    assert request_of(json.loads(json.dumps(_plain_request(request)))) == request


# -- the gateway ---------------------------------------------------------------------------------------------------

CLASSES = """slo_classes:
  default: {norm_ms: 50000, slo_limits: {norm_ms: {min: 200, max: 60000}}}
policy: {routing: round_robin}
"""


async def test_a_class_a_header_and_limits_bound_it_and_every_page_shows_it(tmp_path: Path) -> None:
    """The class's bound holds unless a header within the limits replaces it; /explain and /metrics have the value."""
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    broken = reply(b'{"error": {"message": "no"}}', 500)
    async with (
        ScriptedEngine([stream("a", "b", usage=usage)], [stream("a", "b", usage=usage)], [broken]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages), more=CLASSES)) as it,
    ):
        refused = await it.chat(headers={"x-slo-norm-ms": "100"})
        assert refused.status_code == 400
        assert "x-slo-norm-ms: 100 is outside 200 to 60000 ms" in refused.text
        assert (await it.chat(headers={"x-request-id": "class"})).status_code == 200
        assert (await it.chat(headers={"x-request-id": "alias", "x-normalised-latency-ms": "30000"})).status_code == 200
        await it.chat(headers={"x-request-id": "fails"})
        said = {name: (await it.get(f"/explain/{name}")).json() for name in ("class", "alias", "fails")}
        assert [each["slo"]["norm_ms"] for each in said.values()] == [50_000, 30_000, 50_000]
        assert [each["slo"]["source"] for each in said.values()] == ["class", "header", "class"]
        assert [each["slo"]["met"] for each in said.values()] == [True, True, False]
        actual = said["class"]["actual"]
        assert actual["norm_ms"] == pytest.approx(actual["e2e_ms"] / 2, abs=1e-3)
        fleet = (await it.get("/admin/fleet")).json()
        assert any(line["norm_ms"] == actual["norm_ms"] for line in fleet["recent"])
        page = (await it.get("/metrics")).text
        assert "# HELP headroom_norm_seconds Arrival to last byte over output tokens" in page
        assert 'headroom_norm_seconds_count{backend="a",model="m",slo_class="default"} 2.0' in page
        name = "headroom_slo_requests_total"
        assert f'{name}{{met="true",model="m",slo_class="default",source="class"}} 1.0' in page
        assert f'{name}{{met="true",model="m",slo_class="default",source="header"}} 1.0' in page
        assert f'{name}{{met="false",model="m",slo_class="default",source="class"}} 1.0' in page


def test_a_class_outside_its_own_limits_is_a_fault_of_the_config(tmp_path: Path) -> None:
    """By key, like the bounds that were always there."""
    path = tmp_path / "r.yaml"
    head = 'backends:\n  - {name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}\n'
    path.write_text(head + "slo_classes:\n  default: {norm_ms: 100, slo_limits: {norm_ms: {min: 200}}}\n")
    result = router_command(["check", str(path)])
    assert result.exit_code != 0
    assert "100 is outside 200 to 86400000 ms, its own slo_limits.norm_ms" in result.output


# -- the simulator -------------------------------------------------------------------------------------------------


def test_a_trace_says_it_by_a_key() -> None:
    """As seconds; one that is misspelt is refused with the key that is meant."""
    parse = FORMAT.parser("").read
    line = {"arrived_s": 0, "prompt_tokens": 5, "output_tokens": 5}
    entry = parse(json.dumps(line | {"norm_slo_s": 0.05, "ttft_slo_s": 1}))
    assert entry is not None
    assert entry.slo == NORM
    with pytest.raises(ValueError, match="did you mean 'norm_slo_s'"):
        parse(json.dumps(line | {"nrom_slo_s": 0.05}))


def test_a_replay_judges_by_it_and_shows_it(tmp_path: Path) -> None:
    """In --json, CSV, the page and the terminal: met are those whose value is within the bound."""
    files = {kind: tmp_path / f"it.{kind}" for kind in ("json", "html", "csv")}
    result = simulator_command([
        "replay", GEN, "--slo", "norm=35ms", "--policy", "least_work", "--seeds", "2", "--jobs", "1",
        "--json", str(files["json"]), "--html", str(files["html"]), "--requests", str(files["csv"]),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    with files["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert all((float(row["norm_s"]) <= 0.035) == (row["met"] == "1") for row in rows)
    said = json.loads(files["json"].read_text())
    run = said["runs"]["least_work"]
    assert run["attainment"] == sum(row["met"] == "1" for row in rows) / len(rows)
    assert 0.0 < run["attainment"] < 1.0
    assert run["norm_s"]["mean"] == pytest.approx(sum(float(row["norm_s"]) for row in rows) / len(rows))
    assert "norm_p99_s" in said["intervals"]["least_work"]
    assert "NORM within 35 ms" in files["html"].read_text()
    assert "Normalised latency" in files["html"].read_text()
    assert "NORM p99" in result.output


def attainment(policy: str) -> float:
    result = simulator_command(["replay", GEN, "--slo", "norm=35ms", "--policy", policy, "--json", "-"])
    assert result.exit_code == 0, result.output
    return float(json.loads(result.stdout)["runs"][policy]["attainment"])


def test_a_policy_that_was_written_before_it_keeps_it() -> None:
    """Its bound reaches slo_headroom as TTFT and TPOT: the slow cards get what they can serve in time."""
    assert attainment("slo_headroom") >= 0.99
    assert attainment("least_work") < 0.9


def test_it_is_not_judged_by_tokens_that_are_estimated() -> None:
    """0.5 s a token by the estimate is no measurement; the bound is named as one that was not judged."""
    for usage, met, unjudged in ((Usage(8), False, ()), (Usage(8, estimated=True), True, ("norm",))):
        core = fakes.core(fakes.backend())
        core.arrived(fakes.request("r", slo=NORM), 0.0)
        core.first_token("r", 1, 0.5)
        record = fakes.account(core.ended("r", 1, usage, 4.0, 4.0))
        assert (record.slo_met, record.unjudged()) == (met, unjudged)
        assert isnan(record.latencies_s()[BASE]) == usage.estimated
