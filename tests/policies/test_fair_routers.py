"""A fair share is one of the pool, whichever routers a tenant's requests come to."""

import pytest

import policies
from policies._worlds import World, scene
from router.core.advances import ADVANCES_A_MESSAGE, GROWTH_S_MOST, LANES_MOST, Advance, Advances
from router.core.types import Load
from tests.fakes import backend, request

BUSY = Load(decoding=50.0, context_tokens=20_000.0)


class Router:
    """The policy's memory at one router, and what it shares of it."""

    def __init__(self, policy, name):
        self.policy, self.name, self.memory, self.exchange = policy, name, None, Advances()

    def admit(self, each):
        """The rank that a request has here."""
        fleet, forecast = scene(World(each, (backend("a"),), (BUSY,), (float("inf"),), now_s=each.arrived_s))
        answer, self.memory = self.policy.admit(each, fleet, forecast, self.memory)
        return answer.rank

    def send(self, routers, now_s, *, whole=False):
        """Its totals go to the others."""
        totals = self.exchange.to_send(self.policy.advances(self.memory), whole=whole)
        for other in routers:
            if other is not self:
                grown = other.exchange.grown(self.name, totals, whole=whole)
                if grown:
                    other.memory = other.policy.advanced(other.memory, grown, now_s)


def ranks(number, requests):
    """The ranks that requests have which come to so many routers in turn."""
    routers = [Router(policies.find("admission", "fair"), f"r{n}") for n in range(number)]
    for router in routers:
        router.send(routers, 0.0, whole=True)
    found = []
    for place, each in enumerate(requests):
        router = routers[place % number]
        found.append(router.admit(each))
        router.send(routers, each.arrived_s)
    return found


def burst(count):
    """Of a tenant that comes with two requests for each of another's."""
    names = ("greedy", "greedy", "modest")
    return [request(f"r{n}", arrived_s=n / 100, tenant=names[n % 3], prompt_tokens=2_000) for n in range(count)]


def test_routers_that_share_rank_as_one_router_does():
    """To rounding; without it four routers give a tenant that has more than its share four times as much."""
    requests = burst(60)
    alone = ranks(1, requests)
    for shared, single in zip(ranks(4, requests), alone, strict=True):
        assert shared == pytest.approx(single, rel=1e-6)


def test_totals_count_once_whatever_is_lost_or_comes_twice():
    """What counts is growth; a router that begins anew counts from there, and a stranger's past does not count."""
    it = Advances()
    assert it.grown("a", [Advance(1, 100.0, 1.0)], whole=True) == {}
    changed = [Advance(1, 103.0, 1.0), Advance(2, 4.0, 2.0)]
    assert it.grown("a", changed, whole=False) == {1: (3.0, 1.0), 2: (4.0, 2.0)}
    assert it.grown("a", [Advance(1, 103.0, 1.0)], whole=True) == {}
    assert it.grown("a", [Advance(1, 2.0, 1.0)], whole=False) == {1: (2.0, 1.0)}
    assert it.grown("a", [Advance(1, 1e9, 1.0)], whole=False) == {1: (GROWTH_S_MOST, 1.0)}
    it.keep(())
    assert it.grown("a", [Advance(1, 7.0, 1.0)], whole=True) == {}


def test_what_a_router_counted_before_it_was_known_counts_nowhere_else():
    """The first message that comes of a peer is seldom one of all its lanes, and that may have no room for all."""
    it = Advances()
    assert it.grown("a", [Advance(1, 900.0, 1.0)], whole=False) == {}
    assert it.grown("a", [Advance(1, 901.0, 1.0), Advance(2, 3_000.0, 1.0)], whole=False) == {1: (1.0, 1.0)}
    assert it.grown("a", [Advance(2, 3_001.0, 1.0), Advance(3, 50.0, 1.0)], whole=True) == {2: (1.0, 1.0)}
    assert it.grown("a", [Advance(3, 51.0, 1.0), Advance(4, 5.0, 1.0)], whole=False) == {3: (1.0, 1.0), 4: (5.0, 1.0)}
    full = [Advance(lane, 9.0, 1.0) for lane in range(ADVANCES_A_MESSAGE)]
    assert it.grown("b", full, whole=True) == {}
    assert it.grown("b", [Advance(ADVANCES_A_MESSAGE, 9.0, 1.0)], whole=False) == {}


def test_lanes_beyond_those_that_are_remembered_count_nothing():
    """They would count anew with each message."""
    it = Advances()
    it.grown("a", [Advance(lane, 1.0, 1.0) for lane in range(LANES_MOST)], whole=False)
    it.grown("a", [], whole=True)
    for total_s in (1.0, 2.0):
        assert it.grown("a", [Advance(LANES_MOST, total_s, 1.0)], whole=False) == {}


def test_a_message_has_a_bounded_number_of_lanes_and_the_rest_follows():
    """Lanes that did not change are not sent, but in a whole message."""
    it, now = Advances(), dict.fromkeys(range(ADVANCES_A_MESSAGE + 10), (1.0, 1.0))
    assert len(it.to_send(now, whole=False)) == ADVANCES_A_MESSAGE
    assert len(it.to_send(now, whole=False)) == 10
    assert it.to_send(now, whole=False) == ()
    assert len(it.to_send(now, whole=True)) == ADVANCES_A_MESSAGE
    assert it.to_send({}, whole=True) == ()
