"""Adapters: where they are loaded, what loading costs in a forecast, and that requests go where they are."""

from math import inf
from typing import Any

import numpy as np
import pytest

from router.core.adapters import PLACES_MOST, Adapters
from router.core.decisions import Send
from router.core.dispatcher import Dispatcher
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.record import Event, Recording, replay
from router.core.types import Backend, Slo
from tests import fakes

LOAD_S = 0.5


def served(name: str, **facts: Any) -> Backend:
    """A backend with two adapters of its base model."""
    return fakes.backend(name, models=("m", "x", "y"), adapters=("x", "y"), adapter_load_s=LOAD_S, **facts)


def forecast(core: Dispatcher, model: str, slo: Slo | None = None) -> Forecast:
    """What is forecast now for a request of this model."""
    slots = core.ledger.roster.pool(model)
    request = fakes.request(model=model, slo=slo or Slo())
    return Forecast(request, Fleet(core.ledger, slots, 1.0), core.belief)


def sent(core: Dispatcher, now_s: float, model: str = "x", **facts: Any) -> str:
    """Where a request is sent."""
    (command,) = core.arrived(fakes.request(model=model, arrived_s=now_s, **facts), now_s)
    assert isinstance(command, Send)
    return command.backend


def test_an_engine_keeps_as_many_as_it_has_places_for() -> None:
    """The one used longest ago goes; one place until it says how many."""
    adapters = Adapters()
    adapters.use(0, "x")
    adapters.use(0, "y")
    assert (adapters.ready(0, "x"), adapters.ready(0, "y"), adapters.ready(1, "y")) == (False, True, False)
    adapters.reported(0, ["z", "w"], 3)
    assert [adapters.ready(0, name) for name in "yzw"] == [True, True, True]
    adapters.use(0, "y")
    adapters.use(0, "v")
    assert [adapters.ready(0, name) for name in "yzwv"] == [True, False, True, True]
    adapters.forget(0)
    assert not adapters.ready(0, "y")


@pytest.mark.parametrize("places", [-5, 0, 10**9])
def test_places_that_cannot_be_are_the_nearest_that_can(places: int) -> None:
    """Nothing that an engine says makes the memory of it grow without bound."""
    adapters = Adapters()
    adapters.reported(0, map(str, range(3_000)), places)
    assert sum(adapters.ready(0, str(number)) for number in range(3_000)) in {1, PLACES_MOST}


def test_loading_is_forecast_where_the_adapter_is_not_ready() -> None:
    """In the first token, the last, their tails at any quantile, and at rest; not in TPOT, nor for the base model."""
    core = fakes.core(served("a"), served("b"))
    core.adapters_reported("a", ("x",), 1, 0.5)
    plain, adapted = forecast(core, "m"), forecast(core, "x")
    more = np.array([0.0, LOAD_S])
    for violations in (False, True):
        if violations:
            adapted.with_tpot_violations()
        assert adapted.ttft_s == pytest.approx(plain.ttft_s + more)
        assert adapted.e2e_s == pytest.approx(plain.e2e_s + more)
        assert adapted.tpot_s == pytest.approx(plain.tpot_s)
    for quantile in (adapted._request.slo.quantile, 0.6):
        assert adapted.ttft_tail_s(quantile) == pytest.approx(plain.ttft_tail_s(quantile) + more)
        assert adapted.e2e_tail_s(quantile) == pytest.approx(plain.e2e_tail_s(quantile) + more)
        assert adapted.tpot_tail_s(quantile) == pytest.approx(plain.tpot_tail_s(quantile))
    assert adapted.rest[0] == pytest.approx(plain.rest[0] + more)
    assert adapted.at(1).ttft_s == pytest.approx(plain.at(1).ttft_s + LOAD_S)


def test_what_a_load_takes_is_not_learnt_as_what_the_engine_takes() -> None:
    """A first token that comes as late as the load explains teaches nothing new of its steps."""
    core = fakes.core(served("a"), routing="slo_headroom")
    plain_s = float(forecast(core, "m").ttft_s[0])
    for index in range(8):
        now_s = 10.0 * index + 1.0
        core.ledger.adapters.forget(0)
        request = fakes.request(f"r{index}", model="x", arrived_s=now_s)
        core.arrived(request, now_s)
        core.first_token(request.id, 1, now_s + plain_s + LOAD_S)
        core.client_left(request.id, now_s + 1.0)
    assert float(forecast(core, "m").ttft_s[0]) == pytest.approx(plain_s, rel=0.05)


@pytest.mark.parametrize("routing", ["slo_headroom", "least_request", "random", "round_robin"])
def test_a_request_goes_where_its_adapter_is_ready(routing: str) -> None:
    """Whatever the policy prefers otherwise; each adapter has its backend."""
    core = fakes.core(served("a"), served("b"), routing=routing)
    core.adapters_reported("a", ("x",), 1, 0.5)
    core.adapters_reported("b", ("y",), 1, 0.5)
    slo = Slo(ttft_s=2.0)
    for index in range(6):
        assert sent(core, 1.0 + index, "x", slo=slo) == "a"
        assert sent(core, 1.1 + index, "y", slo=slo) == "b"


def test_it_goes_elsewhere_where_waiting_for_it_would_cost_its_slo() -> None:
    """Prompts are queued there; to load it on the idle one is sooner."""
    core = fakes.core(served("a"), served("b"), routing="slo_headroom")
    core.adapters_reported("a", ("x",), 1, 0.5)
    slo = Slo(ttft_s=1.5)
    places = [sent(core, 1.0, prompt_tokens=4_000, slo=slo) for _ in range(6)]
    assert places[0] == "a"
    assert "b" in places


def test_without_an_slo_requests_do_not_queue_where_it_is_ready() -> None:
    """They go there while that answers first."""
    core = fakes.core(served("a"), served("b"))
    core.adapters_reported("a", ("x",), 1, 0.5)
    places = [sent(core, 1.0, prompt_tokens=8_000) for _ in range(8)]
    assert places[0] == "a"
    assert "b" in places


def test_an_engine_that_was_down_has_none_ready() -> None:
    """It may have been restarted; a backend that leaves takes what is known of it with it."""
    core = fakes.core(served("a"), served("b"))
    core.adapters_reported("a", ("x",), 1, 0.5)
    core.backend_health("a", False, 1.0)
    core.backend_health("a", True, 2.0)
    assert not core.ledger.adapters.ready(0, "x")
    core.adapters_reported("a", ("x",), 1, 2.5)
    core.backend_left("a", 3.0)
    assert not core.ledger.adapters.ready(0, "x")


def test_names_that_are_no_adapters_of_it_are_not_taken() -> None:
    """Nor is what is said of a backend that is not there."""
    core = fakes.core(served("a"))
    core.adapters_reported("a", ("other", "m"), 4, 0.5)
    core.adapters_reported("nobody", ("x",), 4, 0.5)
    assert not core.ledger.adapters.ready(0, "other")
    assert not core.ledger.adapters.ready(0, "m")


def test_a_load_time_that_cannot_be_is_none() -> None:
    """The backend joins without it."""
    for wrong in (-1.0, inf, float("nan")):
        core = fakes.core(fakes.backend("a", models=("m", "x"), adapters=("x",), adapter_load_s=wrong))
        assert forecast(core, "x").ttft_s == pytest.approx(forecast(core, "m").ttft_s)


def test_a_record_replays_with_adapters() -> None:
    """The events and the facts of the backends are in it."""
    events: list[Event] = []
    recording = Recording(fakes.core(routing="random"), events.append)
    for name in ("a", "b"):
        recording.backend_joined(served(name), 0.0)
    recording.adapters_reported("b", ("x",), 2, 0.5)
    for index in range(4):
        recording.arrived(fakes.request(f"r{index}", model="x", arrived_s=1.0, slo=Slo(ttft_s=2.0)), 1.0)
    answers = [answer for _, answer in replay(events, fakes.core(routing="random"))]
    assert answers == [event["answer"] for event in events]
    assert [answer[0]["backend"] for answer in answers if answer] == ["b"] * 4
