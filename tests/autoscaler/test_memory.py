"""What passes from one autoscaler to the next, and what of it is refused."""

import os
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from router.autoscaler.advice import advise
from router.autoscaler.keeping import HISTORY, MEMORY, FileKeeper, NoKeeper, StoreKeeper
from router.autoscaler.memory import Decided, Order, ScalingMemory, decided_from
from router.core.errors import StoreGone
from router.gateway.state.memory import MemoryStore
from router.targets import Advice
from tests.autoscaler.worlds import ASKED, plan

SMALL = ("m", "small")
ADVICE = Advice("m", "small", 3, 4, "because", ("a",))


def filled() -> ScalingMemory:
    """Of an autoscaler that has decided, ordered and learnt."""
    memory = ScalingMemory()
    advise(plan(), {"m": ASKED}, {}, memory)
    memory.ordered(SMALL, 4, 1, 100.0)
    memory.starts.adopt({"small": [95.0]})
    return memory


def test_the_next_autoscaler_goes_on_where_the_last_one_was() -> None:
    """Decisions, orders and start times are the same, and the advice can be read by those that stand by."""
    before, after = filled(), ScalingMemory()
    raw = before.written(Decided([ADVICE], 100.0))
    after.adopt(raw)
    assert after.orders == {SMALL: Order(4, 100.0)}
    assert after.starts.starts("small") == (95.0,)
    known, kept = before.decisions["m"], after.decisions["m"]
    assert (kept.mix, kept.correction, kept.reason) == (known.mix, known.correction, known.reason)
    assert decided_from(raw) == Decided([ADVICE], 100.0)


def test_an_order_of_a_clock_that_is_ahead_is_one_of_now() -> None:
    """Else what it ordered would count as starting for as long as that clock is ahead."""
    raw, after = filled().written(Decided([ADVICE], 3700.0)), ScalingMemory()
    after.adopt(raw, 60.0)
    assert after.orders == {SMALL: Order(4, 60.0)}


@pytest.mark.parametrize("raw", [b"", b"{", b"7", b"{}", b'{"version": 2, "orders": [["m", "small", 1, 1]]}'])
def test_what_cannot_be_read_is_learnt_again(raw: bytes) -> None:
    memory = ScalingMemory()
    memory.adopt(raw)
    assert (memory.orders, memory.decisions, decided_from(raw)) == ({}, {}, None)


def test_a_part_that_cannot_be_is_passed_over() -> None:
    """Anybody may write into the shared state."""
    plain = orjson.loads(filled().written(Decided([ADVICE], 100.0)))
    plain["orders"] += [
        ["m", "big", -1, 1],
        ["m", "big", True, 1],
        ["m", 7, 1, 1],
        ["m", "big", 1],
        "x",
        ["m", "big", 1, None],
    ]
    plain["decisions"] |= {"n": {**plain["decisions"]["m"], "mix": {"small": "x"}}, "o": {"reason": ""}, "p": 7}
    plain["advice"] += [7, {"model": "m"}, {**plain["advice"][0], "replicas": 1e400}, {**plain["advice"][0], "why": 1}]
    memory, raw = ScalingMemory(), orjson.dumps(plain)
    memory.adopt(raw)
    assert memory.orders.keys() == {SMALL}
    assert memory.decisions.keys() == {"m"}
    assert decided_from(raw) == Decided([ADVICE], 100.0)


async def test_it_is_kept_in_the_shared_state_in_a_file_or_nowhere(tmp_path: Path) -> None:
    """A file that is not there yet is an empty memory; one that cannot be written is a fault of the state."""
    store = MemoryStore("r1")
    for keeper in (StoreKeeper(store, shared=False), FileKeeper(tmp_path / "memory.json")):
        for name in (MEMORY, HISTORY):
            assert await keeper.kept(name) == b""
            await keeper.keep(name, name.encode())
        assert [await keeper.kept(name) for name in (MEMORY, HISTORY)] == [MEMORY.encode(), HISTORY.encode()]
    assert sorted(os.listdir(tmp_path)) == ["memory.json", "memory.json.history"]
    await NoKeeper().keep(MEMORY, b"learnt")
    assert await NoKeeper().kept(MEMORY) == b""
    with pytest.raises(StoreGone):
        await FileKeeper(tmp_path / "no" / "memory.json").keep(MEMORY, b"learnt")
    with pytest.raises(StoreGone):
        await FileKeeper(tmp_path).kept(MEMORY)


def test_a_learnt_start_time_is_planned_with() -> None:
    """The policy gets it in place of the stated one."""
    memory = ScalingMemory()
    memory.starts.adopt({"small": [600.0] * 20})
    asked = []

    class Seeing:
        def scale(self, demand: object) -> list[object]:
            asked.append(demand)
            return []

    advise(replace(plan(), scaling=Seeing()), {"m": ASKED}, {}, memory)
    assert asked[0].supply["small"].start_s > 500.0
    assert asked[0].supply["big"].start_s == 60.0
