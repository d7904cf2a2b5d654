"""The queue of those who wait, and who has to go when it is full."""

from hypothesis import given
from hypothesis import strategies as st

from router.core.decisions import Refuse
from router.core.errors import Reason
from router.core.held_queue import HeldQueue
from router.core.types import Slo
from tests.fakes import account, busy_core, refused, request

MOVES = st.lists(st.tuples(st.sampled_from("pd"), st.integers(0, 5), st.integers(0, 3)), max_size=40)


@given(MOVES)
def test_the_queue_is_what_a_stable_sort_of_it_would_be(moves):
    """Whatever was pushed, pushed again and discarded: first, last and order are those of a sorted list."""
    queue, plain = HeldQueue(), {}
    for move, name, rank in moves:
        plain.pop(f"r{name}", None)
        if move == "p":
            queue.push((float(rank),), f"r{name}")
            plain[f"r{name}"] = rank
        else:
            queue.discard(f"r{name}")
    expected = sorted(plain, key=plain.__getitem__)  # stable: equal ranks in the order they came
    assert list(queue) == expected
    assert len(queue) == len(expected)
    if expected:
        assert queue.last == expected[-1]
        assert (queue.first_rank, queue.last_rank) == ((plain[expected[0]],), (plain[expected[-1]],))


def full_queue():
    """A core that holds one request at most, and holds it."""
    it = busy_core(admission={"held_max": 1, "hold_s_max": 5.0})
    held(it, "patient", priority=1)
    return it


def held(it, request_id, priority):
    """A request that has to wait."""
    slo = Slo(ttft_s=10.0, tpot_s=0.06)
    return it.arrived(request(request_id, slo=slo, priority=priority), 0.0)


def test_a_full_queue_gives_up_its_last_for_a_more_urgent_request():
    """The request of the higher rank is refused and recorded; the urgent one is held in its place."""
    it = full_queue()
    commands = held(it, "urgent", priority=0)
    assert refused(commands) == Refuse("patient", Reason.EVICTED, refused(commands).why, 1.0)
    assert account(commands).request.id == "patient"
    assert (it.held, it.in_flight) == (1, 1)


def test_a_full_queue_refuses_a_request_that_is_no_more_urgent():
    """Between equals the earlier arrival stays."""
    it = full_queue()
    answer = refused(held(it, "also patient", priority=1))
    assert (answer.request_id, answer.reason) == ("also patient", Reason.QUEUE_FULL)
    assert it.held == 1


def test_a_queue_of_no_room_evicts_nobody():
    """With held_max 0 no request is held, so none can be displaced."""
    it = busy_core(admission={"held_max": 0})
    assert refused(held(it, "r", priority=0)).reason is Reason.QUEUE_FULL
