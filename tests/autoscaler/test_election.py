"""One autoscaler at a time applies advice, whatever happens to the others and to what keeps the lease."""

import pytest

from router.autoscaler.election import Election
from router.core.errors import LeaseGone


class World:
    """A clock, and a lease that ends by it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.holder, self.until_s = "", 0.0
        self.gone = False
        self.delay_s = 0.0


class FakeLease:
    """One candidate's view of the world's lease."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name

    async def take(self, lease_s: float) -> bool:
        world = self._world
        world.now_s += world.delay_s
        if world.gone:
            raise LeaseGone("no answer")
        if world.holder not in {"", self._name} and world.now_s < world.until_s:
            return False
        world.holder, world.until_s = self._name, world.now_s + lease_s
        world.now_s += world.delay_s
        return True

    async def release(self) -> None:
        if self._world.holder == self._name:
            self._world.holder = ""

    async def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def world() -> World:
    return World()


def candidate(world: World, name: str) -> Election:
    return Election(FakeLease(world, name), 15.0, lambda: world.now_s)


def test_an_autoscaler_without_a_lease_is_the_only_one_or_the_first_of_the_workers() -> None:
    """Which worker is the first changes when one ends."""
    assert Election().holds()
    first = [False]
    worker = Election(alone=lambda: first[0])
    assert not worker.holds()
    first[0] = True
    assert worker.holds()


async def test_a_leader_that_is_gone_is_replaced_when_its_lease_ends(world: World) -> None:
    """Not earlier: it may only be slow."""
    first, second = candidate(world, "a"), candidate(world, "b")
    await first.renew()
    await second.renew()
    assert (first.holds(), second.holds()) == (True, False)
    world.now_s = 14.9
    await second.renew()
    assert (first.holds(), second.holds()) == (True, False)
    world.now_s = 15.1
    await second.renew()
    assert (first.holds(), second.holds()) == (False, True)


async def test_two_never_hold_it_at_once_though_answers_are_late(world: World) -> None:
    """The lease counts from when it was requested."""
    world.delay_s = 2.0
    first, second = candidate(world, "a"), candidate(world, "b")
    await first.renew()
    for _ in range(10):
        world.now_s += 1.0
        await second.renew()
        assert not (first.holds() and second.holds())
    assert second.holds()


async def test_without_an_answer_a_lease_ends_and_is_not_held_for_longer(world: World) -> None:
    first = candidate(world, "a")
    await first.renew()
    world.gone = True
    world.now_s = 10.0
    await first.renew()
    assert first.holds()
    world.now_s = 15.0
    assert not first.holds()
    world.gone = False
    await first.renew()
    assert first.holds()


async def test_a_leader_that_ends_gives_the_lease_back(world: World) -> None:
    """The next need not wait; one that lost it meanwhile gives nothing back."""
    first, second = candidate(world, "a"), candidate(world, "b")
    await first.renew()
    await first.close()
    assert not first.holds()
    await second.renew()
    assert second.holds()
    await first.close()
    assert world.holder == "b"


async def test_each_time_that_the_lease_comes_to_it_is_a_term_of_its_own(world: World) -> None:
    """Another may have had it between two of them, however short that was; a renewal begins none."""
    first, second = candidate(world, "a"), candidate(world, "b")
    await first.renew()
    await first.renew()
    assert (first.terms, second.terms) == (1, 0)
    world.now_s = 15.1
    await second.renew()
    await second.close()
    await first.renew()
    assert (first.holds(), first.terms, second.terms) == (True, 2, 1)
