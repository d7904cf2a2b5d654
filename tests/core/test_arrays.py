"""What a policy is shown cannot be written: every array, whatever the candidates, also after the columns have grown."""

import numpy as np
import pytest

from router.core.arrays import frozen, view_of
from router.core.belief import Belief
from router.core.columns import PRICE_PER_S
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.ledger import Ledger
from router.core.types import Slo
from tests.fakes import backend, request

METHODS = {
    "cached_tokens": lambda fleet, forecast, asked: fleet.cached_tokens(asked),
    "tails_s": lambda fleet, forecast, asked: forecast.tails_s(0.5),
    "ttft_tail_s": lambda fleet, forecast, asked: forecast.ttft_tail_s(0.9),
    "in_time": lambda fleet, forecast, asked: forecast.in_time(np.full(len(fleet), 10.0)),
    "with_tpot_violations": lambda fleet, forecast, asked: forecast.with_tpot_violations(),
}


def scene(count, *, apart=False, prefix=()):
    """A pool of so many, of which every second is down where they are to lie apart; a peer has spoken."""
    ledger, belief = Ledger(), Belief()
    for n in range(count):
        belief.joined(ledger.join(backend(f"b{n}"), 0.0), backend(f"b{n}"))
    for n in range(1, count, 2):
        ledger.mark_state(n, up=not apart)
    ledger.peers.on_peer_load("peer", {"b0": next(iter(ledger.peers.own_loads().values()))}, 0.0)
    asked = request(prompt_tokens=100, slo=Slo(ttft_s=1.0, quantile=0.9), prefix=prefix, prefix_block_tokens=16)
    fleet = Fleet(ledger, ledger.roster.pool("m"), 1.0)
    return ledger, belief, asked, fleet, Forecast(asked, fleet, belief)


def arrays(of):
    """Each public attribute that is an array, by name."""
    names = [name for name in dir(of) if not name.startswith("_")]
    return {name: value for name in names if isinstance(value := getattr(of, name), np.ndarray)}


@pytest.mark.parametrize("prefix", [(), (1, 2, 3)], ids=["no prefix", "a prefix"])
@pytest.mark.parametrize("apart", [False, True], ids=["neighbours", "apart"])
@pytest.mark.parametrize("count", [4, 40], ids=["few", "grown"])
def test_no_array_that_a_policy_can_reach_can_be_written(count, apart, prefix):
    """ValueError where it is tried; what shares the ledger's memory cannot be made writable again."""
    ledger, belief, asked, fleet, forecast = scene(count, apart=apart, prefix=prefix)
    shown = {**arrays(fleet), **{f"forecast.{name}": array for name, array in arrays(forecast).items()}}
    shown |= {name: method(fleet, forecast, asked) for name, method in METHODS.items()}
    assert {
        "price_per_s",
        "columns",
        "load",
        "requests",
        "slots",
        "unreported_peer_load",
        "name_hashes",
        "kv_usage",
    } <= set(shown)
    assert {
        "forecast.rows",
        "forecast.state",
        "forecast.cached_tokens",
        "forecast.rest",
        "forecast.imposed_delay_s",
    } <= set(shown)
    for name, array in shown.items():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        if any(np.shares_memory(array, own) for own in (ledger.table.columns, ledger.roster.name_hashes, belief.state)):
            with pytest.raises(ValueError, match="cannot set WRITEABLE"):
                array.setflags(write=True)
        assert not array.flags.writeable, name


def test_a_view_follows_what_the_ledger_writes_and_costs_no_copy():
    """The same memory."""
    ledger, belief, _, fleet, forecast = scene(40)
    ledger.table.columns[PRICE_PER_S, 3], belief.state[3] = 7.0, 2
    assert fleet.price_per_s[3] == 7.0
    assert forecast.state[3] == 2
    assert np.shares_memory(fleet.price_per_s, ledger.table.columns[PRICE_PER_S])


def test_a_view_stays_read_only_and_a_frozen_array_is_itself():
    """The first for good."""
    numbers = np.ones(3)
    assert np.shares_memory(view_of(numbers), numbers)
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        view_of(numbers).setflags(write=True)
    assert frozen(numbers) is numbers
    assert not numbers.flags.writeable
