"""The life of a request as a table: which events a state allows, and the state that each leads to.

The dispatcher moves requests by this table and by nothing else. A fact that comes late, such as the first token of a
request that streams already, is no event of the request's state and is dropped; a move that the dispatcher makes and
the table lacks is a fault and raises. ``README.md`` beside this file draws the table. Must not depend on what a move
does: reservations, timers and commands are the dispatcher's.
"""

from enum import StrEnum
from typing import Final

from router.core.decisions import EndState


class State(StrEnum):
    """Where a request is that is not over; ``EndState`` has the states in which it is."""

    DECIDING = "deciding"  # it has just come, or its last attempt has failed; left before the dispatcher answers
    HELD = "held"  # it waits at the gateway
    SENT = "sent"  # at least one attempt is open, and nothing of a reply was sent to the client
    COMMITTED = "committed"  # the client gets the reply of one attempt, the only open one; no token has come
    STREAMING = "streaming"  # its first token came


class Event(StrEnum):
    """What moves a request."""

    HOLD = "hold"
    SEND = "send"  # one more attempt
    REFUSE = "refuse"
    REJECT = "reject"  # for an error of the client's
    COMMIT = "commit"  # status and first bytes of a reply go to the client: no retry from here on
    FIRST_TOKEN = "first token"
    LOSE_ATTEMPT = "lose attempt"  # one failed while another is open
    FAIL = "fail"  # the only open attempt failed
    COMPLETE = "complete"
    LEAVE = "leave"  # the client did


NEXT: Final[dict[State, dict[Event, State | EndState]]] = {
    State.DECIDING: {
        Event.HOLD: State.HELD,
        Event.SEND: State.SENT,
        Event.REFUSE: EndState.REFUSED,
        Event.REJECT: EndState.CLIENT_ERROR,
    },
    State.HELD: {
        Event.SEND: State.SENT,
        Event.REFUSE: EndState.REFUSED,
        Event.REJECT: EndState.CLIENT_ERROR,
        Event.LEAVE: EndState.LEFT,
    },
    State.SENT: {
        Event.SEND: State.SENT,
        Event.LOSE_ATTEMPT: State.SENT,
        Event.FAIL: State.DECIDING,
        Event.COMMIT: State.COMMITTED,
        Event.LEAVE: EndState.LEFT,
    },
    State.COMMITTED: {
        Event.FIRST_TOKEN: State.STREAMING,
        Event.FAIL: EndState.BROKEN,
        Event.COMPLETE: EndState.SERVED,
        Event.LEAVE: EndState.LEFT,
    },
    State.STREAMING: {
        Event.FAIL: EndState.BROKEN,
        Event.COMPLETE: EndState.SERVED,
        Event.LEAVE: EndState.LEFT,
    },
}


def allows(state: State, event: Event) -> bool:
    """Whether the event can happen in this state."""
    return event in NEXT[state]


def after(state: State, event: Event) -> State | EndState:
    """The state that an event leads to; AssertionError where the table has none."""
    following = NEXT[state].get(event)
    assert following is not None, f"a request that is {state} cannot {event}"
    return following
