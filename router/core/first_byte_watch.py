"""How long an attempt may send nothing, and what follows: a hedge, or its end as a failure.

The deadline of a stream is fixed, or a multiple of what is left of the TTFT SLO, whichever is sooner. A whole reply
sends nothing until it has been generated: it has a limit of its own, and is not started a second time, since its
silence says nothing of the engine. Second attempts that no fault calls for have a budget, as a share of all: a pool
that is slow as a whole must not get all its work twice. The dispatcher acts on the timers that are set here. Must not
depend on backends, forecasts or policies.
"""

from math import inf
from typing import Final

from router.core.flight import Attempt, DispatchLimits, Failure, FailureKind
from router.core.timers import Due, Timers
from router.core.types import Request

_OF_ATTEMPTS: Final = frozenset({Due.FIRST_BYTE, Due.HEDGE})


class FirstByteWatch:
    """The timers of attempts without a first byte, and the budget of second attempts.

    The limits are handed in, for a reload may change them.
    """

    __slots__ = ("_early", "_sends", "_timers")

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._sends = 0
        self._early = 0  # hedges, and attempts ended at the deadline of the SLO

    def sent(self, request: Request, attempt: Attempt, limits: DispatchLimits, first: bool, now_s: float) -> float:
        """An attempt was sent: set its timers. Returns when its first byte is due (inf: never); ``first``: no other
        attempt of the request is open.
        """
        self._sends += 1
        due_s = _due_s(request, limits, now_s)
        if due_s != inf:
            self._timers.set(due_s, request.id, attempt.number, Due.FIRST_BYTE)
        if not request.streamed and attempt.predicted.ttft_s >= 0.0:  # nan: no forecast was read
            self._timers.set(now_s + attempt.predicted.ttft_s, request.id, attempt.number, Due.PREFILLED)
        hedge_s = limits.hedge_slo_share * request.slo.ttft_s
        if first and request.streamed and hedge_s != inf and now_s < request.arrived_s + hedge_s:
            self._timers.set(request.arrived_s + hedge_s, request.id, attempt.number, Due.HEDGE)
        return due_s

    def late(self, request: Request, attempt: Attempt, limits: DispatchLimits, now_s: float) -> Failure | None:
        """The first byte is due and has not come: the attempt fails. None where it may go on until the fixed deadline,
        for the budget is used up.
        """
        if not request.streamed:
            return _whole_late(attempt, limits, now_s)
        last_s = attempt.sent_s + limits.first_byte_s_max
        if now_s < last_s:
            if self.spent(limits):
                self._timers.set(last_s, request.id, attempt.number, Due.FIRST_BYTE)
                return None
            self._early += 1
        why = f"{attempt.backend} sent no first byte in {now_s - attempt.sent_s - attempt.paused_s:.2f} s"
        return Failure(why, backend_fault=True, retryable=not limits.late_final, late=True, kind=FailureKind.LATE)

    def postpone(self, by_s: float) -> None:
        """Deadlines and hedges of all open attempts come later by so much."""
        self._timers.postpone(_OF_ATTEMPTS, by_s)

    def spent(self, limits: DispatchLimits) -> bool:
        """Whether the budget of second attempts is used up."""
        return self._early + 1 > limits.hedges_max_share * self._sends

    def hedged(self) -> None:
        """A second attempt was started."""
        self._early += 1


def _whole_late(attempt: Attempt, limits: DispatchLimits, now_s: float) -> Failure:
    """A whole reply took too long. Another engine would take as long, and a promise of the client's that was too tight
    is no fault of the backend.
    """
    took_s = now_s - attempt.sent_s - attempt.paused_s
    why = f"{attempt.backend} had no whole reply in {took_s:.2f} s"
    return Failure(why, took_s >= limits.whole_reply_s_max, retryable=False, late=True, kind=FailureKind.LATE)


def _whole_due_s(request: Request, limits: DispatchLimits, now_s: float) -> float:
    """When a whole reply has to be there: by its E2E SLO where it has one, though never sooner than the first byte of a
    stream: what cannot meet its SLO is served as well as it can be.
    """
    if request.slo.e2e_s == inf:
        return now_s + limits.whole_reply_s_max
    return max(request.arrived_s + request.slo.e2e_s, now_s + limits.first_byte_s_max)


def _due_s(request: Request, limits: DispatchLimits, now_s: float) -> float:
    if not request.streamed:
        return _whole_due_s(request, limits, now_s)
    left_s = request.first_token_due_s - now_s
    if left_s <= 0.0 or limits.first_byte_slo_factor == inf:
        return now_s + limits.first_byte_s_max
    return now_s + min(limits.first_byte_s_max, limits.first_byte_slo_factor * left_s)
