"""A new router starts with what the others learnt, and with nothing worse when that is of no use."""

import asyncio
from collections.abc import Iterable

import orjson
import pytest

from router.core.dispatcher import Dispatcher
from router.core.errors import StoreGone
from router.core.types import Usage
from router.gateway.state.beliefs import TRIES, Beliefs
from router.gateway.state.memory import MemoryStore
from tests import fakes
from tests.waiting import until


def beliefs(core: Dispatcher, store: MemoryStore) -> Beliefs:
    """Between this core and this store."""

    def teach(name: str, learnt: object) -> None:
        core.adopt_belief(name, learnt, 0.0)  # type: ignore[arg-type]

    return Beliefs(store, lambda: core.beliefs().keys(), core.belief_of, teach)


def taught_by_streams(streams: int = 60) -> Dispatcher:
    """A core whose backend a took four times as long as it believed at first."""
    core, now_s = fakes.core(fakes.backend("a")), 0.0
    for _ in range(streams):
        asked = fakes.request(arrived_s=now_s)
        core.arrived(asked, now_s)
        core.first_token(asked.id, 1, now_s + 0.12)
        core.ended(asked.id, 1, Usage(50, 100), now_s + 0.12 + 49 * 0.04)
        now_s += 5.0
    return core


def predicted_ttft_s(core: Dispatcher) -> float:
    """What an idle backend a is believed to take."""
    return fakes.sent(core.arrived(fakes.request(arrived_s=1e6), 1e6)).predicted_ttft_s


async def test_what_one_router_learnt_the_next_one_believes() -> None:
    """The same request is predicted alike by both, and not as the data sheet says."""
    store, old, new = MemoryStore("old"), taught_by_streams(), fakes.core(fakes.backend("a"), routing="slo_headroom")
    old.adopt(new.routing, new.admission)
    cold_s = predicted_ttft_s(fakes.core(fakes.backend("a"), routing="slo_headroom"))
    assert await beliefs(old, store).keep()
    assert await beliefs(new, store).warm(frozenset({"a", "b"})) == 1
    assert predicted_ttft_s(new) == pytest.approx(predicted_ttft_s(old), rel=0.01)
    assert predicted_ttft_s(new) != pytest.approx(cold_s, rel=0.1)


async def test_a_belief_of_other_physics_or_none_at_all_is_passed_over() -> None:
    """Another card under the same name, and bytes that are no belief."""
    store, other = MemoryStore("old"), fakes.core(fakes.backend("a", slower=3.0))
    await beliefs(taught_by_streams(), store).keep()
    assert await beliefs(other, store).warm(frozenset({"a"})) == 0
    for odd in (b"{}", b"[]", b"not json", b'{"version": 1}'):
        await store.keep_beliefs({"a": odd})
        assert await beliefs(other, store).warm(frozenset({"a"})) == 0


@pytest.mark.parametrize("part", ["hit", "state", "load_band_bias", "tails", "lengths", "regression", "prior"])
async def test_a_poisoned_belief_leaves_a_fresh_router_as_it_was(part: str) -> None:
    """One of another router whose engine counted wrongly, or any text at all: nothing of it is taken."""
    store, fresh = MemoryStore("old"), fakes.core(fakes.backend("a"), routing="slo_headroom")
    cold_s = predicted_ttft_s(fakes.core(fakes.backend("a"), routing="slo_headroom"))
    learnt = taught_by_streams().beliefs()["a"]
    for odd in (float("nan"), 48.0, -1, "text", [], {}, [[None]]):
        await store.keep_beliefs({"a": orjson.dumps({**learnt, part: odd})})
        taken = await beliefs(fresh, store).warm(frozenset({"a"}))
        assert taken == (part == "lengths" and odd == {})
    assert fresh.dropped_numbers.by_source["belief"] > 0 or part == "prior"
    if part != "lengths":
        assert predicted_ttft_s(fresh) == cold_s


class Gone(MemoryStore):
    """A store that does not answer."""

    async def beliefs(self, backends: Iterable[str]) -> dict[str, bytes]:
        raise StoreGone("gone")

    async def keep_beliefs(self, beliefs: object) -> None:
        raise StoreGone("gone")


async def test_without_the_store_a_router_starts_cold() -> None:
    """And says so, and serves."""
    between = beliefs(fakes.core(fakes.backend("a")), Gone("x"))
    assert await between.warm(frozenset({"a"})) == 0
    assert not await between.keep()


class Late(MemoryStore):
    """A store that does not answer at first."""

    gone = True

    async def beliefs(self, backends: Iterable[str]) -> dict[str, bytes]:
        if self.gone:
            raise StoreGone("gone")
        return dict(await super().beliefs(backends))


async def test_a_router_that_starts_before_its_store_warms_up_later_and_overwrites_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it has learnt by then is little; the beliefs of a day are in the store."""
    store, new = Late("x"), fakes.core(fakes.backend("a"), routing="slo_headroom")
    await beliefs(taught_by_streams(), store).keep()
    saved = dict(store._beliefs)
    cold_s, between = predicted_ttft_s(new), beliefs(new, store)
    assert await between.warm(frozenset({"a"})) == 0
    assert await between.keep()
    assert store._beliefs == saved
    monkeypatch.setattr("router.gateway.state.beliefs.RETRY_S", 0.001)
    running = asyncio.create_task(between.run())
    await asyncio.sleep(0)
    store.gone = False
    await until(lambda: not between._unread)
    running.cancel()
    assert predicted_ttft_s(new) != cold_s
    store._beliefs.clear()
    assert await between.keep()
    assert set(store._beliefs) == {"a"}


async def test_after_a_minute_what_was_learnt_here_counts() -> None:
    """Beliefs that were saved before are then replaced like others."""
    store, core = Late("x"), fakes.core(fakes.backend("a"))
    between = beliefs(core, store)
    for _ in range(TRIES):
        assert not store._beliefs
        await between.warm(frozenset({"a"}))
        await between.keep()
    assert set(store._beliefs) == {"a"}
