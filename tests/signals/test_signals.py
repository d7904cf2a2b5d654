"""Signals: what is registered works live and simulated; a new one is one file."""

import json
import subprocess
import sys
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest

from router.core import signals
from router.core.columns import KV_USAGE, LEDGER, PREFIX_HIT_RATE
from router.core.record import report_of
from router.core.signals import Gauge, Share, Signal, value_since
from router.core.types import EngineReport
from router.engines import kinds

ROOT = Path(__file__).parents[2]
FACTS: dict[str, Any] = {"name": "toy", "metric": "headroom_engine_toy", "help": "Toys", "least": 0.0, "most": 1.0}


@pytest.mark.parametrize(
    ("readings", "missing"),
    [({"live": {"vllm": Gauge(("toy",))}}, "simulated"), ({"simulated": lambda _: 1.0}, "live"), ({}, "live")],
)
def test_a_signal_without_both_readings_cannot_be_made(readings: dict[str, Any], missing: str) -> None:
    """The import of its file fails: a policy must not read in production what no simulation has, or the reverse."""
    with pytest.raises(ValueError, match=f"signal 'toy' has no {missing} reading"):
        Signal(**FACTS, **readings)


def test_the_rows_that_compiled_loops_read_stay() -> None:
    """Further signals get rows after the named ones."""
    assert signals.names() == ("kv_usage", "prefix_hit_rate")
    assert signals.rows() == (KV_USAGE, PREFIX_HIT_RATE)
    assert signals.row_count() == LEDGER
    with pytest.raises(KeyError, match="unknown signal 'kv_use'; expected one of kv_usage, prefix_hit_rate"):
        signals.row_of("kv_use")


def test_a_live_reading_is_of_an_engine_kind_that_exists() -> None:
    """A mistyped kind would never be read."""
    known = {kind.name for kind in kinds()}
    assert all(set(signal.live) <= known for signal in signals.registered())


def test_a_report_takes_signals_by_name_and_no_other_names() -> None:
    """One that is not given is absent; a mistyped one is an error, and one of a record that is gone is left out."""
    report = EngineReport.by_name(1.0, kv_usage=0.5)
    assert report.signal("kv_usage") == report.kv_usage == 0.5
    assert isnan(report.signal("prefix_hit_rate"))
    with pytest.raises(TypeError, match="unknown signals"):
        EngineReport.by_name(1.0, kv_use=0.5)
    same = report_of({"asked_s": 1.0, "kv_usage": 0.5, "removed": 0.1})
    assert repr(same) == repr(report)  # nan is not equal to itself


def test_a_share_is_of_what_was_counted_since_the_last_page() -> None:
    """Nothing counted, a restart, or a first page give what the reading states otherwise."""
    assert value_since(Share(35, 120), Share(25, 100)) == 0.5
    for now, before in (
        (Share(25, 100, 0.0), Share(25, 100)),
        (Share(1, 10, 0.0), Share(25, 100)),
        (Share(1, 2, 0.0), None),
    ):
        assert value_since(now, before) == 0.0
    assert isnan(value_since(nan, 0.5))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenario printed."""
    folder = tmp_path_factory.mktemp("toy")
    command = [sys.executable, "-m", "tests.signals.scenario", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_new_signal_is_one_file(toy: dict[str, Any]) -> None:
    """It is registered, with a row after those that have numbers of their own."""
    assert toy["names"] == ["kv_usage", "prefix_hit_rate", "slots_busy"]
    assert toy["new_row"]


def test_its_policy_reads_the_engines_page_at_the_gateway_and_in_the_replay(toy: dict[str, Any]) -> None:
    """Over a real socket; the record of the run replays to the same commands; the gateway shows it as a gauge."""
    assert toy["gateway"] == {"reasons": ["busy 0.75"], "reported": [0.75], "differences": 0, "shown": True}


def test_its_policy_reads_what_a_sidecar_published(toy: dict[str, Any]) -> None:
    """Through the JSON that routers and sidecars exchange, and through Redis where there is one."""
    assert toy["wire"] == 0.75
    if toy["redis"] is None:
        pytest.skip("no Redis-compatible server binary installed")
    assert toy["redis"] == toy["gateway"]


def test_its_policy_reads_it_in_a_simulated_run(toy: dict[str, Any]) -> None:
    """The emulated engine's page and the simulator's report agree; the policy reads quarters of four slots."""
    assert toy["emulated"] == [[0.25, 0.25], [0.5, 0.5], [0.75, 0.75]]
    assert {"busy 0.25", "busy 0.75"} <= set(toy["simulated"]) <= {"busy nan", *(f"busy {n / 4}" for n in range(5))}
