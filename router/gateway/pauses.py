"""Pauses of this process itself: stopped by a signal, a machine that slept or moved, a call that blocked the loop.

What came during one lies unread in the sockets, while every timer is due at once. So a timer that fires far too late is
evidence of a pause, and what it would judge has to wait until the loop has read. Must not depend on what is judged.
"""

from typing import Final

PAUSE_S: Final = 1.0  # a loop under load is late by less
CATCH_UP_S: Final = 0.25  # after a pause, until judgement: several passes of the loop over all of its sockets


def paused_s(due_s: float, now_s: float) -> float:
    """How long the process stood still, where a timer that was due at *due_s* fires now; 0 where it did not."""
    late_s = now_s - due_s
    return late_s if late_s > PAUSE_S else 0.0
