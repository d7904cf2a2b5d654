"""The life of a request is the table of ``router/core/lifecycle.py``: drawn as it is, walked whole, never left."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import compiled
from router.core import Dispatch, Hold, Reason, Shed, Slo
from router.core.decisions import EndState
from router.core.flight import DispatchLimits, Failure, Flight
from router.core.lifecycle import NEXT, Event, State
from router.core.types import Usage
from tests.fakes import backend, core, request

README = Path(__file__).parents[2] / "router" / "core" / "README.md"
TABLE = {(state, event) for state, events in NEXT.items() for event in events}
HEDGED = DispatchLimits(hedge_slo_share=0.5, hedges_max_share=1.0)


class Seen(dict):
    """The events of one state; which of them happened is noted."""

    def __init__(self, state, following, seen):
        super().__init__(following)
        self.state, self.seen = state, seen

    def get(self, event, default=None):
        """What an event leads to."""
        self.seen.append((self.state, event))
        return super().get(event, default)


@pytest.fixture
def walked(monkeypatch):
    """The moves that were made, in order."""
    if compiled.state() == "compiled":
        pytest.skip("compiled code looks into a dict past what a subclass does; .ci/run has the sources walk as well")
    seen = []
    for state, following in dict(NEXT).items():
        monkeypatch.setitem(NEXT, state, Seen(state, following, seen))
    return seen


class Scripted:
    """A policy that sends, holds and sheds as its script says; once that is over, it sends."""

    def __init__(self, script):
        self.script = list(script)

    def choose(self, request, fleet, forecast, rng):
        """The next word of the script."""
        match self.script.pop(0) if self.script else "send":
            case "hold":
                return Hold(fleet.now_s + 0.1, "not yet")
            case "shed":
                return Shed(Reason.SATURATED, "no")
            case "reject":
                return Shed(Reason.TOO_LONG, "never")
            case _:
                return Dispatch(int(fleet.slots[0]), "yes")


def moves_of(walked, script, *acts):
    """The moves of request r: it comes at 0 s, then each act is made at its time."""
    it = core(backend("a"), backend("b"), limits=HEDGED)
    it.adopt(Scripted(script.split()), it.admission)
    it.arrived(request("r", slo=Slo(ttft_s=1.0)), 0.0)
    for name, at_s, *arguments in acts:
        getattr(it, name)(*arguments, at_s)
    return walked


@pytest.mark.parametrize(
    ("script", "acts", "last"),
    [
        ("send", (), (State.DECIDING, Event.SEND)),
        ("hold", (), (State.DECIDING, Event.HOLD)),
        ("shed", (), (State.DECIDING, Event.REFUSE)),
        ("reject", (), (State.DECIDING, Event.REJECT)),
        ("hold send", [("ticked", 0.1)], (State.HELD, Event.SEND)),
        ("hold shed", [("ticked", 0.1)], (State.HELD, Event.REFUSE)),
        ("hold reject", [("ticked", 0.1)], (State.HELD, Event.REJECT)),
        ("hold", [("client_left", 0.05, "r")], (State.HELD, Event.LEAVE)),
        ("send send", [("ticked", 0.5)], (State.SENT, Event.SEND)),
        ("send send", [("ticked", 0.5), ("failed", 0.6, "r", 1, Failure("x"))], (State.SENT, Event.LOSE_ATTEMPT)),
        ("send", [("committed", 0.1, "r", 1)], (State.SENT, Event.COMMIT)),
        ("send", [("first_token", 0.1, "r", 1)], (State.COMMITTED, Event.FIRST_TOKEN)),
        ("send", [("committed", 0.1, "r", 1), ("failed", 0.2, "r", 1, Failure("x"))], (State.COMMITTED, Event.FAIL)),
        ("send", [("committed", 0.1, "r", 1), ("client_left", 0.2, "r")], (State.COMMITTED, Event.LEAVE)),
        ("send", [("ended", 0.2, "r", 1, Usage(3))], (State.COMMITTED, Event.COMPLETE)),
        ("send", [("client_left", 0.1, "r")], (State.SENT, Event.LEAVE)),
        ("send", [("first_token", 0.1, "r", 1), ("failed", 0.2, "r", 1, Failure("x"))], (State.STREAMING, Event.FAIL)),
        (
            "send",
            [("first_token", 0.1, "r", 1), ("ended", 0.2, "r", 1, Usage(3))],
            (State.STREAMING, Event.COMPLETE),
        ),
        ("send", [("first_token", 0.1, "r", 1), ("client_left", 0.2, "r")], (State.STREAMING, Event.LEAVE)),
    ],
    ids=lambda value: "-".join(value).replace(" ", "_") if isinstance(value, tuple) and value else None,
)
def test_each_event_moves_a_request_as_the_table_says(walked, script, acts, last):
    """The last move of each script is that of the table."""
    assert moves_of(walked, script, *acts)[-1] == last


def test_a_request_whose_only_attempt_fails_is_decided_anew(walked):
    """Failure leads back to the decision, which may hold it."""
    moves = moves_of(walked, "send hold hold", ("failed", 0.1, "r", 1, Failure("x")))
    assert moves[-2:] == [(State.SENT, Event.FAIL), (State.DECIDING, Event.HOLD)]


ATTEMPTS = st.sampled_from([1, 1, 1, 2, 3])
FAILURES = st.sampled_from([Failure("reset"), Failure("400", backend_fault=False, retryable=False)])
ACTS = st.one_of(
    st.tuples(st.just("committed"), st.just("r"), ATTEMPTS),
    st.tuples(st.just("first_token"), st.just("r"), ATTEMPTS),
    st.tuples(st.just("ended"), st.just("r"), ATTEMPTS, st.just(Usage(3))),
    st.tuples(st.just("failed"), st.just("r"), ATTEMPTS, FAILURES),
    st.tuples(st.just("client_left"), st.just("r")),
    st.tuples(st.just("ticked")),
)


def test_any_order_of_events_walks_the_whole_table_and_never_leaves_it(walked):
    """Whatever the policy answers and the shell reports, twice or late: each move is one of the table's."""

    @settings(max_examples=400, derandomize=True, deadline=None)
    @given(
        script=st.lists(st.sampled_from(["send", "hold", "shed", "reject"]), max_size=6),
        acts=st.lists(st.tuples(ACTS, st.sampled_from([0.0, 0.1, 0.6])), min_size=5, max_size=12),
    )
    def walk(script, acts):
        it, now_s = core(backend("a"), backend("b"), limits=HEDGED), 0.0
        it.adopt(Scripted(script), it.admission)
        for (name, *arguments), passed_s in acts:
            if not it.in_flight:  # over: another one comes, under the same name
                it.arrived(request("r", slo=Slo(ttft_s=1.0), arrived_s=now_s), now_s)
            now_s += passed_s
            getattr(it, name)(*arguments, now_s)

    walk()
    assert set(walked) == TABLE


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_a_move_that_the_table_lacks_raises(state, event):
    """And one that it has leads where it says, to a request that goes on or is over."""
    it = Flight(request())
    it.state = state
    after = NEXT[state].get(event)
    if isinstance(after, EndState):
        assert it.end(event) is after
    elif after is not None:
        it.move(event)
        assert it.state is after
    else:
        with pytest.raises(AssertionError, match=f"a request that is {state} cannot {event}"):
            it.move(event)


def drawn():
    """The table as mermaid draws it."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.DECIDING}"]
    lines += [f"    {state} --> {after}: {event}" for state, events in NEXT.items() for event, after in events.items()]
    lines += [f"    {end} --> [*]" for end in EndState]
    return "\n".join(lines)


def test_the_readme_draws_the_table():
    """Paste what this expects where it fails."""
    assert f"```mermaid\n{drawn()}\n```" in README.read_text(encoding="utf-8")
