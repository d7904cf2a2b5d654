"""A change in parts: whatever their order, and whichever is lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core import border
from router.core.ledger import Ledger
from router.core.outbox import Outbox
from router.core.peer_change import PARTS_MOST, PeerChange, SentPrompt, Work, in_parts, part_of
from router.core.types import Load
from tests.fakes import backend

NAMES = tuple(f"backend-{number}" for number in range(40))
PROMPTS = (SentPrompt("backend-1", tuple(range(5_000)), 16), SentPrompt("backend-2", (7, 8), 32))


def ledger():
    made = Ledger(2)
    for name in NAMES:
        made.join(backend(name), 0.0)
    return made


def work(count):
    return {name: Work(Load(1.0, 10.0 * number), 5.0, 1.0) for number, name in enumerate(NAMES[:count])}


def peers_of(it):
    return it.table.peers[:, : len(NAMES)].tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(1, 12), st.booleans(), st.randoms(use_true_random=False))
def test_parts_in_any_order_are_the_change_itself(count, rows_most, whole, draw):
    """Work and hints; of a whole one also that what is not named is idle."""
    change = PeerChange(work(count), whole, PROMPTS, ("backend-3",))
    parts = list(in_parts(change, rows_most, 100))
    draw.shuffle(parts)
    here, there = ledger(), ledger()
    for it in (here, there):
        it.peers.on_peer_change("peer", PeerChange(work(40)), 0.0)
    here.peers.on_peer_change("peer", change, 1.0)
    for part in parts:
        assert sum(len(each.blocks) for each in part.prompts) <= 100
        assert border.peer_change(part, "peer", border.DroppedNumbers()) == part
        there.peers.on_peer_change("peer", part, 1.0)
    assert peers_of(here) == peers_of(there)
    assert [name for part in parts for name in part.ejected] == ["backend-3"]
    named = sorted((block, each.backend) for part in parts for each in part.prompts for block in each.blocks)
    assert named == sorted((block, each.backend) for each in PROMPTS for block in each.blocks)


def test_a_part_that_is_lost_leaves_its_own_backends_as_they_were():
    """All others are right; the next time that part comes, its own are too."""
    it = ledger()
    it.peers.on_peer_change("peer", PeerChange(work(40)), 0.0)
    parts = list(in_parts(PeerChange({}, whole=True, part=1, parts=2), 5, 100))
    assert len(parts) == 1  # nothing is in flight: one message states it
    it.peers.on_peer_change("peer", parts[0], 1.0)
    for slot, name in enumerate(NAMES):
        assert (it.table.peers[0, slot] == 0.0) == (part_of(name, 2) == 1)


@given(st.integers(1, 6), st.integers(1, 9))
def test_a_part_that_is_divided_again_names_the_same_backends(parts, rows_most):
    """Part i of n is parts i, i + n, ... of a multiple of n."""
    for part in range(parts):
        own = {name: each for name, each in work(40).items() if part_of(name, parts) == part}
        divided = list(in_parts(PeerChange(own, True, part=part, parts=parts), rows_most, 100))
        for each in divided:
            assert all(part_of(name, each.parts) == each.part for name in each.work)
        assert {name for each in divided for name in each.work} == set(own)
        assert len({(each.part, each.parts) for each in divided}) == len(divided)


def test_an_outbox_states_everything_in_parts_as_it_is_by_then():
    """All parts together are the whole; a change after its part was sent is one, before that it is in the part."""
    here, there = ledger(), ledger()
    outbox = Outbox(here.table, here.roster)
    for slot in range(len(NAMES)):
        here.load.reserve(slot, 10.0, 20.0, float("inf"), 0.0)
    parts = [outbox.whole(part, 3) for part in range(3)]
    assert sorted(name for part in parts for name in part.work) == sorted(NAMES)
    assert outbox.changes() is None
    for part in parts:
        there.peers.on_peer_change("peer", part, 0.0)
    assert there.table.peers[0, : len(NAMES)].tolist() == [1.0] * len(NAMES)


def test_a_part_that_cannot_be_one_is_no_whole_message():
    """What it names is taken; nothing else is forgotten by it."""
    dropped = border.DroppedNumbers()
    for part, parts in ((1, 1), (2, 2), (-1, 2), (0, PARTS_MOST + 1), (0, 0)):
        taken = border.peer_change(PeerChange(work(1), True, part=part, parts=parts), "peer", dropped)
        assert (taken.whole, taken.part, taken.parts, taken.work) == (False, 0, 1, work(1))
    assert dropped.by_source[border.PEER] == 5
