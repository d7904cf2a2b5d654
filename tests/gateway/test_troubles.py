"""Why a backend is late, ejected or not chosen is in the log, the metrics, /admin/fleet and on the page."""

import logging
from pathlib import Path

import pytest

from router.core.flight import DispatchLimits, Failure, FailureKind
from router.gateway.monitoring.troubles import AGAIN_S, TroubleLog, troubles
from router.gateway.traffic import faults
from tests.fakes import backend, core, request
from tests.fakes_router import HEALTHY, config, router
from tests.fakes_router import backend as given
from tests.fakes_wire import ScriptedEngine, reply, stream
from tests.pages import Pages

FAULT = Failure("a answered 500: out of memory")
MISSING = Failure("a answered 404: no m", backend_fault=False, kind=FailureKind.MODEL_MISSING)


class Log:
    """A core with one backend, and what is logged of its troubles."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "headroom")
        self.caplog, self.now_s = caplog, 0.0
        self.core = core(backend("a"), limits=DispatchLimits(failures_max=2, eject_s=5.0))
        self.log = TroubleLog(lambda: troubles(self.core, self.now_s, lambda: 1e9), lambda: self.now_s)

    def fail(self, failure: Failure) -> None:
        """One request that fails so."""
        self.core.arrived(request("r", arrived_s=self.now_s), self.now_s)
        self.core.failed("r", 1, failure, self.now_s)

    def lines(self, at_s: float) -> list[str]:
        """What a sweep at this time logs."""
        self.now_s = at_s
        self.core.ticked(at_s)
        self.caplog.clear()
        self.log.sweep(at_s)
        return [record.getMessage() for record in self.caplog.records]


def test_a_failure_is_logged_once_and_what_goes_on_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand failures a second must not fill a disk."""
    it = Log(caplog)
    busy = Failure("a answered 503: busy", backend_fault=False, kind=FailureKind.BUSY)
    it.fail(busy)
    assert it.lines(1.0) == ["backend a: busy: a answered 503: busy (1 of the kind since the last line)"]
    for _ in range(1000):
        it.fail(busy)
    assert it.lines(2.0) == []
    assert it.lines(2.0 + AGAIN_S) == ["backend a: busy: a answered 503: busy (1000 of the kind since the last line)"]
    assert it.lines(3.0 + 2 * AGAIN_S) == []


def test_an_ejection_and_its_end_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Even one that is over before anybody looks."""
    it = Log(caplog)
    it.fail(FAULT)
    it.fail(FAULT)
    failure, ejected = it.lines(1.0)
    assert failure.startswith("backend a: fault: a answered 500: out of memory (2 ")
    assert ejected.startswith("backend a: ejected until ")
    assert ejected.endswith(" after 2 faults in a row")
    assert it.lines(2.0) == []
    assert it.lines(5.0) == ["backend a: no longer ejected"]
    it.fail(FAULT)
    assert it.lines(100.0)[-1] == "backend a: ejected, and back by now after 3 faults in a row"


def test_a_refusal_is_logged_once_though_it_is_tried_again_every_few_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """With what is refused."""
    it = Log(caplog)
    it.fail(MISSING)
    lines = it.lines(1.0)
    assert lines[0].startswith("backend a: model-missing: a answered 404: no m")
    assert lines[1].startswith("backend a: not chosen for m until ")
    assert it.lines(11.0) == []
    it.fail(MISSING)
    assert it.lines(12.0) == []


def test_a_backend_that_left_is_logged_anew_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is kept of it."""
    it = Log(caplog)
    it.fail(FAULT)
    it.lines(1.0)
    it.core.backend_left("a", 2.0)
    assert it.lines(2.0) == []
    it.core.backend_joined(backend("a"), 3.0)
    it.fail(FAULT)
    assert len(it.lines(4.0)) == 1


async def test_why_a_backend_is_not_chosen_is_shown_everywhere(tmp_path: Path) -> None:
    """By kind, with since when; the other one has nothing to show."""
    missing = b'{"error":{"message":"The model `m` does not exist.","type":"NotFoundError","param":"model","code":404}}'
    async with (
        ScriptedEngine([reply(b'{"error":"out of memory"}', 500)], [reply(missing, 404)]) as bad,
        ScriptedEngine([stream("ok")]) as good,
        Pages(dict(HEALTHY)) as pages,
        router(
            tmp_path / "r.yaml",
            config(given("a", bad, pages) + given("b", good, pages))
            + "policy: {routing: round_robin, limits: {failures_max: 1, eject_s: 0.001, refused_s: 1000}}\n",
        ) as it,
    ):
        for number in range(6):
            assert (await it.chat(headers={"x-request-id": f"r{number}"})).status_code == 200
        tries = [(await it.get(f"/explain/r{number}")).json()["decisions"] for number in range(6)]
        retried = [decisions[1]["why"] for decisions in tries if len(decisions) > 1]
        assert [why.partition(", after ")[2].split(":")[0] for why in retried] == ["a answered 500", "a answered 404"]
        fleet = (await it.get("/admin/fleet")).json()
        a, b = (each["failures"] for each in fleet["backends"])
        assert a["by_kind"] == {"fault": 1, "model-missing": 1}
        assert (a["ejections"], a["last"]["kind"]) == (1, "model-missing")
        assert a["last"]["why"] == "a answered 404: The model `m` does not exist."
        (refusal,) = a["refuses"]
        assert (refusal["what"], round(refusal["until_s"] - refusal["since_s"])) == ("m", 1000)
        assert b == {"by_kind": {}, "in_a_row": 0, "ejections": 0, "last": None, "ejected": None, "refuses": []}
        metrics = (await it.get("/metrics")).text
        assert 'headroom_backend_failures_total{backend="a",kind="model-missing"} 1.0' in metrics
        assert 'headroom_backend_ejections_total{backend="a"} 1.0' in metrics
        assert 'headroom_backend_refuses_since_timestamp_seconds{backend="a",what="m"}' in metrics
        assert 'headroom_backend_last_failure_timestamp_seconds{backend="a",kind="model-missing"}' in metrics


async def test_a_refused_key_is_shown_and_never_what_was_said_of_it(tmp_path: Path) -> None:
    """Neither the log nor the page nor the client gets the engine's words."""
    body = b'{"error":{"message":"Incorrect API key provided: sk-ours"}}'
    async with (
        ScriptedEngine([reply(body, 401)]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(given("a", engine, pages))) as it,
    ):
        assert (await it.chat(headers={"x-request-id": "mine"})).status_code == 502
        fleet, told = (await it.get("/admin/fleet")).text, (await it.get("/explain/mine")).text
        assert "a refused the key that the gateway has for it (401)" in fleet
        assert "sk-ours" not in fleet + told


def test_the_text_of_a_failure_is_one_line() -> None:
    """It goes into the log and onto the page."""
    error = faults.engine_error(500, b'{"error":"a\\nbackend b: up"}', b"", faults.ErrorDialect())
    assert faults.failure("a", error).why == "a answered 500: a backend b: up"
