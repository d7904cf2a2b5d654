"""The history of the last hour and day: what is counted where, its quantiles, its bounds, and several workers' sums."""

import json
import shutil
import subprocess
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.core.decisions import EndState, RequestRecord
from router.core.errors import Reason
from router.core.types import Load, Request, Slo, Usage
from router.gateway.telemetry.history import (
    ALL,
    BACKENDS_MAX,
    BUCKETS,
    DAY_S,
    NAMES_MAX,
    SAMPLE_S,
    SAMPLED_AT_ONCE,
    History,
    Series,
)
from router.gateway.telemetry.history_view import merged, view
from router.gateway.traffic.request_log import RequestLog
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages

NOON_S = 1_800_000_000.0
BYTES_MAX = 30e6


def log(ttft_s: float = 0.2, **more: Any) -> RequestLog:
    """A request that was served by backend a in twice its forecast, unless *more* says otherwise."""
    request = Request("r", "m", 100.0, 50, slo=Slo(ttft_s=0.5), slo_class=more.pop("slo_class", "chat"), tenant="t")
    facts: dict[str, Any] = {
        "outcome": EndState.SERVED, "backend": "a", "attempts": 1, "sent_s": 100.0, "first_token_s": 100.0 + ttft_s,
        "ended_s": 100.0 + ttft_s + 1.0, "usage": Usage(prompt_tokens=50, output_tokens=11), "reason": None,
        "predicted_ttft_s": ttft_s / 2, "predicted_tpot_s": nan, "predicted_e2e_s": nan,
        "predicted_ttft_tail_s": ttft_s * 2,
    }  # fmt: skip
    return RequestLog(RequestRecord(request, **facts | more), "/v1/chat/completions", "w", True, 200, 0, 0.0, 0.0)


class Wall:
    """A clock that is set."""

    now_s = NOON_S

    def __call__(self) -> float:
        return self.now_s


def refused(reason: Reason) -> RequestLog:
    """A request that was refused."""
    return log(
        nan,
        outcome=EndState.REFUSED,
        backend="",
        sent_s=nan,
        ended_s=100.0,
        usage=Usage(prompt_tokens=50, output_tokens=0),
        reason=reason,
    )


def test_counts_quantiles_reasons_and_the_forecast_are_by_slot_and_by_dimension() -> None:
    """Of all, of a class, of a backend; what happened in the last minute is in the last slot."""
    wall = Wall()
    history = History(wall=wall)
    for _ in range(90):
        history.ended(log(0.1))
    for _ in range(10):
        history.ended(log(2.0, slo_class="batch"))
    history.ended(refused(Reason.SATURATED))
    history.ended(log(outcome=EndState.LEFT))
    wall.now_s += 60.0
    found = view(history, "hour", ALL)
    assert (found["slot_s"], found["slots"], found["first"]) == (60.0, 60, int(wall.now_s // 60) - 59)
    counters = {name: values[-2] for name, values in found["counters"].items() if values[-2]}
    assert counters == {
        "requests": 101.0, "met": 90.0, "refused": 1.0, "left": 1.0, "saturated": 1.0, "output_tokens": 1111.0,
        "error": pytest.approx(100 * np.log(2), rel=1e-3), "predicted": 100.0, "covered": 100.0,
        "quantile": pytest.approx(90.0, rel=1e-3),
    }  # fmt: skip
    latency = found["latency_ms"]["ttft"]
    assert latency["p50"][-2] == pytest.approx(100, rel=0.45)
    assert latency["p99"][-2] == pytest.approx(2_000, rel=0.45)
    assert latency["p50"][-1] is None
    chat = view(history, "hour", ("class", "chat"))
    assert chat["counters"]["requests"][-2] == 91.0  # the one that was refused among them
    assert set(chat["groups"]) == {"chat", "batch"}
    assert view(history, "day", ("backend", "a"))["counters"]["requests"][-1] == 100.0
    assert view(history, "day", ("model", "nosuch"))["counters"] == {}


def test_load_and_cost_are_means_of_samples() -> None:
    """Sampled every five seconds, however often it is called."""
    wall = Wall()
    history = History(wall=wall)
    for second in range(20):
        wall.now_s = NOON_S + second
        history.sample({"a": Load(prefilling=1.0, decoding=second // 5 * 2.0)}, 3, 7.5)
    found = view(history, "hour", ALL)["counters"]
    assert (found["load"][-1], found["queue"][-1], found["usd_per_hour"][-1], found["samples"][-1]) == (
        4.0,
        3.0,
        7.5,
        4.0,
    )
    assert view(history, "hour", ("backend", "a"))["counters"]["load"][-1] == 4.0


def test_several_workers_add_up_slot_by_slot() -> None:
    """Counts, cells and load are summed, the price of the fleet is not; a slot's difference between them is aligned."""
    early, late = Wall(), Wall()
    late.now_s += 60.0
    one, two = History(wall=early), History(wall=late)
    one.ended(log(0.1))
    one.sample({"a": Load(decoding=2.0)}, 1, 7.5)
    two.ended(log(3.0))
    two.sample({"a": Load(decoding=3.0)}, 1, 7.5)
    both = merged([view(two, "hour", ALL), view(one, "hour", ALL)])
    assert both["counters"]["requests"][-2:] == [1.0, 1.0]
    assert both["latency_ms"]["ttft"]["p99"][-1] == pytest.approx(3_000, rel=0.45)
    assert both["latency_ms"]["ttft"]["p99"][-2] == pytest.approx(100, rel=0.45)
    early.now_s += 60.0
    one.sample({"a": Load(decoding=2.0)}, 1, 7.5)
    both = merged([view(two, "hour", ALL), view(one, "hour", ALL)])
    assert (both["counters"]["load"][-1], both["counters"]["usd_per_hour"][-1]) == (5.0, 7.5)


def test_slots_are_forgotten_after_a_day_and_a_name_makes_room_for_another() -> None:
    """So nothing grows: neither with time nor with names."""
    wall = Wall()
    history = History(wall=wall)
    for number in range(NAMES_MAX + 5):
        history.ended(log(slo_class=f"c{number}"))
    assert len(history.names("class")) == NAMES_MAX + 1
    assert view(history, "day", ("class", "other"))["counters"]["requests"][-1] == 5.0
    wall.now_s += DAY_S + 3600
    assert view(history, "day", ALL)["counters"] == {}
    history.ended(log(slo_class="new"))
    assert history.names("class") == ["new"]


def test_a_cell_that_is_full_halves_its_row() -> None:
    """The quantiles stay."""
    series = Series((2, 60.0), (2, 600.0))
    for _ in range(70_000):
        series.add(NOON_S, (), (3,))
    series.add(NOON_S, ((0, 1.0),))
    series.close()
    cells = series.hour.read(int(NOON_S // 60))[1][-1]
    assert (cells[3], cells.sum()) == (35_000, 35_000)
    assert len(cells) % BUCKETS == 0


def test_a_thousand_backends_and_a_day_fit_into_thirty_megabytes(measured: Callable[[], int]) -> None:
    """With every series there can be, and every slot filled at least once."""
    wall = Wall()
    history = History(wall=wall)
    loads = {f"b{number}": Load(decoding=1.0) for number in range(BACKENDS_MAX)}
    for hour in range(24):
        wall.now_s = NOON_S + 3_600.0 * hour
        for _ in range(BACKENDS_MAX // SAMPLED_AT_ONCE + 1):
            history.sample(loads, 0, 1.0)
        for number in range(NAMES_MAX + 1):
            history.ended(log(slo_class=f"c{number}", backend=f"b{number}"))
    assert measured() < BYTES_MAX


def test_many_backends_are_sampled_in_parts_and_each_once_in_a_period() -> None:
    """A thousand slots that end at once would be closed in one piece."""
    wall = Wall()
    history = History(wall=wall)
    loads = {f"b{number}": Load(decoding=2.0) for number in range(BACKENDS_MAX)}
    calls = BACKENDS_MAX // SAMPLED_AT_ONCE + 1
    for call in range(calls):
        history.sample(loads, 0, 1.0)
        assert len(history.names("backend")) == min(BACKENDS_MAX, (call + 1) * SAMPLED_AT_ONCE)
        wall.now_s += SAMPLE_S / 10
    history.sample(loads, 0, 1.0)
    for name in ("b0", f"b{BACKENDS_MAX - 1}"):
        assert view(history, "hour", ("backend", name))["counters"]["samples"][-1] == 1.0
    assert view(history, "hour", ALL)["counters"]["load"][-1] == 2.0 * BACKENDS_MAX


@pytest.fixture
def measured() -> Any:
    """How many bytes were allocated since the start of the test."""
    import tracemalloc  # noqa: PLC0415 - for this test alone

    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()


async def test_a_gateway_serves_its_history_and_refuses_what_is_no_dimension(tmp_path: Path) -> None:
    """With the bounds of the classes, for the lines in a plot."""
    more = "slo_classes: {default: {ttft_ms: 5000, tpot_ms: 100}}\n"
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages), more=more)) as it,
    ):
        await it.chat()
        found = (await it.get("/admin/history", params={"by": "class", "name": "default"})).json()
        assert sum(found["counters"]["requests"]) == 1.0
        assert found["slos"] == {"default": {"ttft_ms": 5000, "tpot_ms": 100}}
        assert found["names"]["backend"] == ["a"]
        assert (await it.get("/admin/history", params={"by": "nosuch"})).status_code == 422
        assert (await it.get("/admin/history", params={"window": "week"})).status_code == 422


def test_models_that_clients_make_up_are_no_series() -> None:
    """They would take the places of those that come to be served."""
    history = History(wall=Wall())
    history.ended(refused(Reason.UNKNOWN_MODEL))
    assert list(history.all_of("model")) == []
    history.ended(log())
    assert [name for name, _ in history.all_of("model")] == ["m"]


def test_groups_of_longer_slots_are_drawn_at_their_times() -> None:
    """Backends have slots of two minutes where all requests have slots of one: the page draws both on one axis."""
    text = PLOTS.read_text(encoding="utf-8")
    onto = text[text.index("function onto(") :].partition("\n}\n")[0] + "\n}\n"
    call = """
    const whole = {first: 97, slot_s: 60, slots: 6};
    const view = {first: 49, slot_s: 120, groups: {a: {load: [1, 2, 3]}}};
    console.log(JSON.stringify(onto(view, whole)));
    """
    assert printed(onto + call) == {"a": {"load": [0, 1, 1, 2, 2, 3]}}


def test_a_slot_that_has_begun_has_its_rate_and_one_without_a_sample_has_no_mean() -> None:
    """Else each line would end in a drop, and cost would be 0 before the router began."""
    text = PLOTS.read_text(encoding="utf-8")
    parts = text[text.index("const none =") : text.index("/** Lines of one latency")]
    call = """
    const view = {slots: 3, slot_s: 60, first: 10, now_s: 12 * 60 + 6};
    const early = {...view, now_s: 12 * 60 + 1};
    const rates = [per_s([60, 120, 12], view), per_s([60, 120, 10], early), per_s(undefined, view)];
    const loads = [sampled({samples: [0, 2], load: [0, 3]}, "load"), sampled({}, "load") ?? "none"];
    console.log(JSON.stringify([rates, ...loads]));
    """
    rates, load, nothing = printed(parts + call)
    assert rates == [[1, 2, 2], [1, 2, 2], [0, 0, 0]]
    assert (load, nothing) == ([None, 3], "none")
    wall = Wall()
    assert view(History(wall=wall), "hour", ALL)["now_s"] == wall.now_s


PLOTS = Path(__file__).parents[2] / "router/gateway/control/page/plots.js"


def printed(script: str) -> Any:
    """What a script prints as JSON, by Node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    return json.loads(subprocess.run([node, "-e", script], capture_output=True, text=True, check=True).stdout)
