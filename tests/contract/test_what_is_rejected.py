"""Each way of breaking the contract, and the words it is rejected with."""

import random
from dataclasses import replace

import pytest

import policies
from policies._contract import check_admission, check_routing
from router.core import ADMIT, Admit, Dispatch, Hold, Reason, Shed
from router.core.errors import PolicyRejected

CALLS = iter(range(10**9))


def first(fleet):
    """The first candidate."""
    return Dispatch(int(fleet.slots[0]), "the first")


def spoils_the_fleet(request, fleet, forecast, rng):
    """Writes into what it reads."""
    fleet.load[0] += 1.0
    return first(fleet)


def spoils_the_forecast(request, fleet, forecast, rng):
    """In place, as numpy makes easy."""
    ttft_s = forecast.ttft_s
    ttft_s += 1.0
    return first(fleet)


def frees_the_fleet(request, fleet, forecast, rng):
    """A price that is not that of the fleet."""
    fleet.price_per_s[:] = 0.0
    return first(fleet)


def spoils_a_row_of_the_forecast(request, fleet, forecast, rng):
    """In place, through the row."""
    forecast.rows[0, 0] = 0.0
    return first(fleet)


def makes_the_forecast_writable(request, fleet, forecast, rng):
    """What was made for this decision alone can be unlocked; what was changed is found."""
    rows = forecast.rows
    rows.setflags(write=True)
    rows[1] += 1.0
    return first(fleet)


def labels_a_backend(request, fleet, forecast, rng):
    """A backend is shown as it is, not as a copy."""
    fleet.backend(0).labels[request.id] = "seen"
    return first(fleet)


def moves_the_clock(request, fleet, forecast, rng):
    """What is no array can be set."""
    fleet.now_s += 1.0
    return first(fleet)


def raises_on_the_absurd(request, fleet, forecast, rng):
    """Fine until a prompt is empty."""
    return Dispatch(int(fleet.slots[1 // request.prompt_tokens]), "so")


ROUTING = [
    (lambda r, f, p, rng: 1 / 0, "raised ZeroDivisionError"),
    (raises_on_the_absurd, "raised"),
    (lambda r, f, p, rng: Shed(Reason.SATURATED, "no"), "every backend is idle"),
    (lambda r, f, p, rng: Hold(f.now_s + 1.0, "later"), "every backend is idle"),
    (lambda r, f, p, rng: Hold(f.now_s, "now"), "holds until"),
    (lambda r, f, p, rng: Dispatch(10_000, "far"), "chose slot 10000"),
    (
        lambda r, f, p, rng: Dispatch(f.slots[0], "numpy"),
        "plain ints|int object expected",
    ),  # compiled, it cannot even be made
    (lambda r, f, p, rng: Dispatch(0, "the first slot, candidate or not"), "chose slot 0|asked again"),
    (lambda r, f, p, rng: replace(first(f), why=""), "every answer says why"),
    (lambda r, f, p, rng: None, "expected Dispatch, Hold or Shed"),
    (lambda r, f, p, rng: Shed("busy", "no"), "expected one of saturated|Reason object expected"),  # the same
    (lambda r, f, p, rng: Shed(Reason.SATURATED, "no", float("inf")), "retry_after_s inf"),
    (lambda r, f, p, rng: Dispatch(int(f.slots[next(CALLS) % len(f)]), "counts"), "remembers or draws chance"),
    (spoils_the_fleet, r"test_what_is_rejected\.py:\d+: choose raised ValueError: .*read-only"),
    (spoils_the_forecast, r"test_what_is_rejected\.py:\d+: choose raised ValueError: .*read-only"),
    (frees_the_fleet, r"test_what_is_rejected\.py:\d+: choose raised ValueError: .*read-only"),
    (spoils_a_row_of_the_forecast, r"test_what_is_rejected\.py:\d+: choose raised ValueError: .*read-only"),
    (makes_the_forecast_writable, r"changed the forecast that it was shown: forecast\."),
    (labels_a_backend, "changed the request or a backend"),
    (moves_the_clock, r"changed the fleet that it was shown: fleet\.now_s"),
]


class Routes:
    """A routing policy of one function."""

    def __init__(self, choose):
        self.choose = choose


class Admits:
    """An admission policy of one function."""

    held_max = 8
    hold_s_max = 1.0

    def __init__(self, admit):
        self.admit = admit


def spoils_its_memory(request, fleet, forecast, memory):
    """A list that it appends to is one value for two calls."""
    memory = memory if memory is not None else []
    memory.append(request.id)
    return ADMIT, memory


ADMISSION = [
    (lambda r, f, p, m: 1 / 0, "raised ZeroDivisionError"),
    (lambda r, f, p, m: (Shed(Reason.SATURATED, "no"), m), "every backend is idle"),
    (lambda r, f, p, m: ADMIT, "expected an answer and the memory"),
    (lambda r, f, p, m: (None, m), "expected Admit or Shed"),
    (lambda r, f, p, m: (Admit((float("nan"),)), m), "none of them nan"),
    (lambda r, f, p, m: (Admit((1.0,) * (next(CALLS) % 2 + 1)), m), "two answers"),
    (lambda r, f, p, m: (Admit((1.0,) * (r.prompt_tokens % 3)), m), "rank of"),
    (spoils_its_memory, "changed its memory in place"),
]


@pytest.mark.parametrize(("choose", "words"), ROUTING)
def test_a_routing_policy_that_breaks_the_contract_is_rejected(choose, words):
    """With words that say what it did."""
    with pytest.raises(PolicyRejected, match=words):
        check_routing(Routes(choose), random.Random(1))


@pytest.mark.parametrize(("admit", "words"), ADMISSION)
def test_an_admission_policy_that_breaks_the_contract_is_rejected(admit, words):
    """The same for admission."""
    with pytest.raises(PolicyRejected, match=words):
        check_admission(Admits(admit), random.Random(1))


@pytest.mark.parametrize("facts", [{"held_max": -1}, {"held_max": 1.5}, {"hold_s_max": float("inf")}])
def test_bounds_that_bound_nothing_are_rejected(facts):
    """Every queue has a bound, in number and in time."""
    policy = Admits(policies.find("admission", "deadline").admit)
    vars(policy).update(facts)
    with pytest.raises(PolicyRejected, match="expected"):
        check_admission(policy, random.Random(1))
