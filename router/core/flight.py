"""One request in flight as the dispatcher keeps it, its attempts, and the bounds and failures they meet."""

from dataclasses import dataclass
from enum import StrEnum
from math import inf, isfinite, isnan, nan
from typing import Final

from router.core.decisions import ADMIT, EndState, RequestRecord, Shed
from router.core.errors import Reason
from router.core.explain import Note
from router.core.forecast import Prediction
from router.core.held_queue import NO_LINE, LineKey, Rank
from router.core.lifecycle import Event, State, after
from router.core.load import Reservation
from router.core.metering import WorkSnapshot
from router.core.types import Fact, Request, Usage

NO_PREDICTION: Final = Prediction(nan, nan, nan)


@dataclass(frozen=True, slots=True)
class DispatchLimits(Fact):
    """Bounds that hold for every policy.

    ``attempts_max``: backends tried for one request (0: one, whatever its failure), those that it was sent to;
    ``first_byte_s_max``: how long one attempt may stay silent; ``whole_reply_s_max``: how long a reply that is no
    stream may take where it has no E2E SLO;
    ``first_byte_slo_factor``: the same as a multiple of what is left of the TTFT SLO at the send (inf: the SLO sets no
    deadline); ``hedge_slo_share``: a second attempt starts after this share of the TTFT SLO has passed in silence
    (inf: never); ``hedges_max_share``: such second attempts, and those that the SLO's deadline calls for, are at most
    this share of all; ``failures_max``: consecutive faults of a backend
    before it is ejected, first for ``eject_s``, doubling up to ``eject_s_max``; ``refused_s``: how long a backend that
    refused a model (not loaded, key refused) or an endpoint is not chosen for it while others are there;
    ``late_final``: silence ends a request, since a proxy that has no answer yet can be given no other one.
    """

    attempts_max: int = 3
    first_byte_s_max: float = 60.0
    whole_reply_s_max: float = 600.0
    first_byte_slo_factor: float = inf
    hedge_slo_share: float = inf
    hedges_max_share: float = 0.05
    failures_max: int = 3
    eject_s: float = 1.0
    eject_s_max: float = 60.0
    refused_s: float = 10.0
    late_final: bool = False


class FailureKind(StrEnum):
    """What kind of failure it was: the label it is counted under."""

    FAULT = "fault"  # the engine failed, or the connection to it
    LATE = "late"  # it sent nothing for longer than allowed
    BUSY = "busy"  # its queue is full
    MODEL_MISSING = "model-missing"  # it has not loaded the model
    ENDPOINT_MISSING = "endpoint-missing"  # its server lacks the path
    KEY_REFUSED = "key-refused"  # it refuses the gateway's key for it
    NOT_FOUND = "not-found"  # something else that the request names is not there
    REDIRECT = "redirect"  # it answers that another address serves the path
    UNSUPPORTED = "unsupported"  # its protocol cannot express the request
    CONTEXT_EXCEEDED = "context-exceeded"  # it is longer than the context of this backend
    CLIENT_ERROR = "client-error"  # any engine would refuse the request
    UNRESOLVED = "unresolved"  # its host name has no address for now
    EXHAUSTED = "exhausted"  # the gateway has no file descriptor or port left for a connection
    WITHDRAWN = "withdrawn"  # by the gateway: the backend was removed or reconfigured


LACKING: Final = frozenset(  # this backend cannot serve the request, though another may
    {
        FailureKind.MODEL_MISSING,
        FailureKind.ENDPOINT_MISSING,
        FailureKind.KEY_REFUSED,
        FailureKind.NOT_FOUND,
        FailureKind.REDIRECT,
        FailureKind.UNSUPPORTED,
        FailureKind.UNRESOLVED,
        FailureKind.CONTEXT_EXCEEDED,
    }
)
UNSENT: Final = frozenset({FailureKind.UNSUPPORTED, FailureKind.UNRESOLVED})  # known before anything was sent
CLIENTS_OWN: Final = frozenset(  # once no backend is left that answers otherwise
    {
        FailureKind.CLIENT_ERROR,
        FailureKind.CONTEXT_EXCEEDED,
        FailureKind.NOT_FOUND,
        FailureKind.ENDPOINT_MISSING,
        FailureKind.UNSUPPORTED,
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed. ``backend_fault``: counts against the backend (a client's own 4xx does not);
    ``retryable``: another backend might do better; ``late``: it was a deadline that passed. Of CONTEXT_EXCEEDED, as far
    as the engine states them (0: it does not): ``prompt_tokens`` that it counted (``at_least``: or more), and the
    ``context_tokens_max`` that it has.
    """

    why: str
    backend_fault: bool = True
    retryable: bool = True
    late: bool = False
    kind: FailureKind = FailureKind.FAULT
    prompt_tokens: int = 0
    at_least: bool = False
    context_tokens_max: int = 0


class Attempt:
    """One try on one backend."""

    __slots__ = ("backend", "number", "paused_s", "predicted", "prefilled", "reservation", "resident_share", "sent_s")

    def __init__(
        self, number: int, backend: str, reservation: Reservation, predicted: Prediction, sent_s: float
    ) -> None:
        self.number = number
        self.backend = backend
        self.reservation = reservation
        self.predicted = predicted
        self.prefilled: WorkSnapshot | None = None  # what the backend had done by the first token
        self.resident_share = 0.0  # of the prompt, that the backend was sent before and should have cached
        self.sent_s = sent_s
        self.paused_s = 0.0  # since then, of the gateway's own pauses

    def pause(self, paused_s: float) -> None:
        """The gateway stood still while it was open: what is measured across that is no time of the engine's."""
        self.paused_s += paused_s
        self.prefilled = None


class Flight:
    """One request that is not over; ``state`` changes by the table of ``lifecycle.py`` alone.

    ``sent``: the request as the client sent it; ``request``: the same with its SLO in bounds on TTFT, TPOT and E2E
    alone, for the model that is to serve it, which is what is decided by; ``fallbacks``: the models that still may
    serve it in place of that; ``own``: the same request for its own model while another one is to serve it;
    ``unserved``: why its own would have been refused, None: it would not; ``admitted``: whether the admission policy
    has let it in.
    """

    __slots__ = (
        "admitted",
        "alone",
        "ask_again_s",
        "attempts",
        "context_exceeded_tokens",
        "fallback_why",
        "fallbacks",
        "fault",
        "first_token_s",
        "held_s",
        "held_since_s",
        "hold_until_s",
        "line",
        "note",
        "open",
        "own",
        "rank",
        "refusals",
        "request",
        "room",
        "room_of",
        "sent",
        "settled_s",
        "state",
        "tried",
        "unserved",
        "why",
        "yields_until_s",
    )

    def __init__(self, request: Request) -> None:
        self.request = self.sent = request
        self.state: State = State.DECIDING
        self.open: list[Attempt] = []
        self.attempts = 0
        self.fault: Failure | None = None  # the last of a backend that could have served the request
        self.refusals = 0  # attempts that count for no limit: the first to show what a backend refuses, or not sent
        self.tried: tuple[int, ...] = ()
        self.context_exceeded_tokens = 0.0  # the longest context that was too short for it
        self.first_token_s = nan
        self.held_s = 0.0  # in the holds that are over
        self.held_since_s = nan
        self.hold_until_s = inf
        self.ask_again_s = inf
        self.why = ""
        self.note: Note | None = None  # of the last choice about it
        self.rank: Rank = ADMIT.rank
        self.line: LineKey = NO_LINE
        self.room = 0  # the slots that it may be sent to, a bit each, as long as ``room_of`` is the same
        self.room_of: tuple[int, tuple[int, ...], float, str] = (-1, (), 0.0, "")
        self.alone = False
        self.settled_s = 0.0  # before it peers may not have heard of it, nor may it be decided
        self.yields_until_s = inf  # while held: when it takes room that a peer's request before it has not taken
        self.admitted = False
        self.fallbacks: tuple[str, ...] = ()
        self.fallback_why = ""
        self.own: Request | None = None
        self.unserved: Shed | None = None

    @property
    def model(self) -> str:
        """The model that is to serve it; empty: the one of the request as it was sent."""
        return "" if self.request.model == self.sent.model else self.request.model

    def fall_back(self, request: Request, why: str, rest: tuple[str, ...]) -> None:
        """Another model is to serve it, else one of the *rest*. Its attempts count anew; backends that failed are not
        tried again.
        """
        if self.own is None:
            self.own = self.request
        self._take_over(request, why, rest)

    def return_to_own(self) -> bool:
        """Its own model is to serve it after all, for the last time; False: no other one was to."""
        own, self.own = self.own, None
        if own is None:
            return False
        self._take_over(own, "", ())
        return True

    def _take_over(self, request: Request, why: str, rest: tuple[str, ...]) -> None:
        self.request, self.fallback_why, self.fallbacks = request, why, rest
        self.line = NO_LINE
        self.refusals = self.attempts

    def move(self, event: Event) -> None:
        """What happened to the request, which goes on."""
        state = after(self.state, event)
        assert isinstance(state, State)
        self.state = state

    def end(self, event: Event) -> EndState:
        """What ended the request; the state in which it is over."""
        state = after(self.state, event)
        assert isinstance(state, EndState)
        return state

    def hold(self, now_s: float) -> None:
        """It waits from now on."""
        self.move(Event.HOLD)
        self.held_since_s = now_s

    def held_until(self, now_s: float) -> float:
        """For how long it has waited."""
        return self.held_s + now_s - self.held_since_s if self.state is State.HELD else self.held_s

    def send(self, backend: str, held: Reservation, predicted: Prediction, now_s: float) -> Attempt:
        """One more attempt, which is open from now on."""
        self.held_s = self.held_until(now_s)
        self.move(Event.SEND)
        self.attempts += 1
        self.tried = (*self.tried, held.slot)
        attempt = Attempt(self.attempts, backend, held, predicted, now_s)
        self.open.append(attempt)
        return attempt

    def moved(self, attempt: Attempt, backend: str, held: Reservation) -> None:
        """An attempt goes on at another backend, unpredicted."""
        self.attempts += 1
        self.tried = (*self.tried, held.slot)
        attempt.backend, attempt.reservation, attempt.predicted = backend, held, NO_PREDICTION
        attempt.resident_share = 0.0

    def last_token(self, given_s: float, now_s: float) -> float:
        """When its last token came, by the shell's account, between the first and now; nan: no token, or not known."""
        if isnan(self.first_token_s) or not isfinite(given_s):
            return nan
        return min(max(given_s, self.first_token_s), now_s)

    def account(
        self,
        outcome: EndState,
        last: Attempt | None,
        usage: Usage,
        now_s: float,
        reason: Reason | None,
        last_token_s: float = nan,
    ) -> RequestRecord:
        """The record of the request, which is over: see ``record``."""
        account = self.record(outcome, last, usage, now_s, reason, last_token_s)
        if self.note is not None:
            self.note.account = account
        return account

    def record(
        self,
        outcome: EndState,
        last: Attempt | None,
        usage: Usage,
        now_s: float,
        reason: Reason | None,
        last_token_s: float,
    ) -> RequestRecord:
        """The record of the request if it is over now; ``last``: the attempt that served it or was open at the end;
        ``usage``: of its reply, or of what came of it.
        """
        predicted = last.predicted if last else NO_PREDICTION
        return RequestRecord(
            self.sent,
            outcome,
            last.backend if last else "",
            self.attempts,
            last.sent_s if last else nan,
            self.first_token_s,
            now_s,
            usage,
            reason,
            predicted.ttft_s,
            predicted.tpot_s,
            predicted.e2e_s,
            predicted.ttft_tail_s,
            predicted.tpot_tail_s,
            predicted.e2e_tail_s,
            self.held_until(now_s),
            self.last_token(last_token_s, now_s),
            self.model,
            self.fallback_why,
        )

    def attempt(self, number: int) -> Attempt | None:
        """The open attempt of this number."""
        for candidate in self.open:
            if candidate.number == number:
                return candidate
        return None
