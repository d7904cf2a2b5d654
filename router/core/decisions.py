"""What a policy may answer and what the core tells its shell to do. Each is frozen, each says why.

A refusal is an answer, not an exception: see errors.py for the HTTP meaning of each reason. What every request has
one of has a constructor written by hand, as in types.py; compiled, it refuses a field of the wrong kind (TypeError).
"""

from dataclasses import dataclass
from enum import StrEnum
from math import inf, isnan, nan
from typing import Final

from router.core.errors import Reason
from router.core.scaling import ScalingDecision
from router.core.slo_metrics import BASE, DERIVED
from router.core.types import Fact, Request, RequestId, Usage


@dataclass(init=False, slots=True, unsafe_hash=True)
class Dispatch(Fact):
    """Send the request to the backend in ``slot`` now."""

    slot: Final[int]
    why: Final[str]

    def __init__(
        self,
        slot: int,
        why: str,
    ) -> None:
        self.slot = slot
        self.why = why


@dataclass(frozen=True, slots=True)
class Hold(Fact):
    """Keep the request at the gateway; ask again when room appears, and at ``until_s`` at the latest.

    ``alone``: no request behind it and no new request of a later rank is sent before it: its turn has come,
    and the next room is to be its own.
    """

    until_s: float
    why: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Shed(Fact):
    """Refuse the request; ``retry_after_s`` is when trying again has a fair chance."""

    reason: Reason
    why: str
    retry_after_s: float = 1.0


@dataclass(init=False, slots=True, unsafe_hash=True)
class Admit(Fact):
    """Let the request through to routing; ``rank`` is its place among those who wait: the lowest is served first.

    Ranks of one policy have one length and no nan; equal ranks (the default) are served in the order they came.
    """

    rank: Final[tuple[float, ...]]

    def __init__(
        self,
        rank: tuple[float, ...] = (),
    ) -> None:
        self.rank = rank


Choice = Dispatch | Hold | Shed
ADMIT = Admit()


@dataclass(frozen=True, slots=True)
class ScaleTo(Fact):
    """How many replicas of one variant the demand needs. ``drain``: those that cost least to lose, first of all, where
    there should be fewer; ``decision``: what led to it (None: the policy gives no more than ``why``).
    """

    variant: str
    replicas: int
    why: str
    drain: tuple[str, ...] = ()
    decision: ScalingDecision | None = None


@dataclass(init=False, slots=True, unsafe_hash=True)
class Send(Fact):
    """Command: open attempt ``attempt`` of the request on ``backend``. The reservation is already on the ledger.

    ``model``: what the backend is to run where that is not the request's own (empty: it is); ``fallback_why``: why the
    request's own model does not serve it (empty: it does, or ``model`` is of the same split).
    """

    request_id: Final[RequestId]
    backend: Final[str]
    attempt: Final[int]
    why: Final[str]
    predicted_ttft_s: Final[float]  # nan when nothing was forecast
    first_byte_due_s: Final[float]  # inf: no deadline; the core's own timer acts on it
    model: Final[str]
    fallback_why: Final[str]

    def __init__(
        self,
        request_id: RequestId,
        backend: str,
        attempt: int,
        why: str,
        predicted_ttft_s: float,
        first_byte_due_s: float,
        model: str = "",
        fallback_why: str = "",
    ) -> None:
        self.request_id = request_id
        self.backend = backend
        self.attempt = attempt
        self.why = why
        self.predicted_ttft_s = predicted_ttft_s
        self.first_byte_due_s = first_byte_due_s
        self.model = model
        self.fallback_why = fallback_why


@dataclass(frozen=True, slots=True)
class Refuse(Fact):
    """Command: answer the request with an error; it is over."""

    request_id: RequestId
    reason: Reason
    why: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Abort(Fact):
    """Command: close the connection of this attempt at once; its reservation is already released."""

    request_id: RequestId
    backend: str
    attempt: int
    why: str


@dataclass(frozen=True, slots=True)
class Break(Fact):
    """Command: the attempt died after its reply had begun; end it with an honest error event, never as if whole."""

    request_id: RequestId
    why: str


class EndState(StrEnum):
    """How a request ended."""

    SERVED = "served"
    REFUSED = "refused"
    BROKEN = "broken"  # the engine failed after its reply had begun
    LEFT = "left"  # the client went away
    CLIENT_ERROR = "client_error"  # the request cannot be served as it is, and no load or fault is the reason


@dataclass(init=False, slots=True, unsafe_hash=True)
class RequestRecord(Fact):
    """Command: account for the request. Exactly one for every request, when it is over.

    Times are on the shell's clock, nan where the moment never came; ``predicted_*`` are the means that stood when the
    attempt that served it was sent, in seconds from that send, nan when the policy read no forecast;
    ``predicted_*_tail_s`` are the same at the quantile of the request's SLO. ``usage``: what was generated, however the
    request ended; ``held_s``: for how long it was held at the gateway, in all; ``last_token_s``: of a stream, which may
    end later than with its last token (nan: no token, or it is not known and taken for the end); ``model`` and
    ``fallback_why``: as those of the last ``Send``.
    """

    request: Final[Request]
    outcome: Final[EndState]
    backend: Final[str]
    attempts: Final[int]
    sent_s: Final[float]
    first_token_s: Final[float]
    ended_s: Final[float]
    usage: Final[Usage]
    reason: Final[Reason | None]
    predicted_ttft_s: Final[float]
    predicted_tpot_s: Final[float]
    predicted_e2e_s: Final[float]
    predicted_ttft_tail_s: Final[float]
    predicted_tpot_tail_s: Final[float]
    predicted_e2e_tail_s: Final[float]
    held_s: Final[float]
    last_token_s: Final[float]
    model: Final[str]
    fallback_why: Final[str]

    def __init__(
        self,
        request: Request,
        outcome: EndState,
        backend: str,
        attempts: int,
        sent_s: float,
        first_token_s: float,
        ended_s: float,
        usage: Usage,
        reason: Reason | None,
        predicted_ttft_s: float,
        predicted_tpot_s: float,
        predicted_e2e_s: float,
        predicted_ttft_tail_s: float = nan,
        predicted_tpot_tail_s: float = nan,
        predicted_e2e_tail_s: float = nan,
        held_s: float = 0.0,
        last_token_s: float = nan,
        model: str = "",
        fallback_why: str = "",
    ) -> None:
        self.request = request
        self.outcome = outcome
        self.backend = backend
        self.attempts = attempts
        self.sent_s = sent_s
        self.first_token_s = first_token_s
        self.ended_s = ended_s
        self.usage = usage
        self.reason = reason
        self.predicted_ttft_s = predicted_ttft_s
        self.predicted_tpot_s = predicted_tpot_s
        self.predicted_e2e_s = predicted_e2e_s
        self.predicted_ttft_tail_s = predicted_ttft_tail_s
        self.predicted_tpot_tail_s = predicted_tpot_tail_s
        self.predicted_e2e_tail_s = predicted_e2e_tail_s
        self.held_s = held_s
        self.last_token_s = last_token_s
        self.model = model
        self.fallback_why = fallback_why

    @property
    def served_model(self) -> str:
        """The model that served it, or was to."""
        return self.model or self.request.model

    @property
    def ttft_s(self) -> float:
        """Arrival to first token, holding and failed attempts included; nan for a reply that came whole or without
        a token.
        """
        return self.first_token_s - self.request.arrived_s if self.request.streamed else nan

    @property
    def e2e_s(self) -> float:
        """Arrival to end."""
        return self.ended_s - self.request.arrived_s

    @property
    def queue_s(self) -> float:
        """Arrival to its last send, or to its end where nothing was sent: holds and failed attempts included."""
        return (self.ended_s if isnan(self.sent_s) else self.sent_s) - self.request.arrived_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token from the first to the last, by the mean length of its sequences; 0 for a reply of
        one token, nan for one that came whole or without a token, or whose tokens are only estimated.
        """
        return nan if self.usage.estimated else self._tpot_by(float(self.usage.output_tokens))

    def _tpot_by(self, output_tokens: float) -> float:
        """TPOT if the reply has so many tokens."""
        if not self.request.streamed or isnan(self.first_token_s):
            return nan
        last_s = self.ended_s if isnan(self.last_token_s) else self.last_token_s
        after = output_tokens / self.request.sequences - 1.0
        return (last_s - self.first_token_s) / max(after, 1.0) if after > 0.0 else 0.0

    def tpot_range_s(self) -> tuple[float, float]:
        """The least and the most that TPOT can have been: twice the same where tokens were counted. Of an estimate,
        the least is by as many tokens as the client's cap allows (0 without one, or where no time of a last token is
        known), the most by one in each event that had any (inf where those are not counted).
        """
        usage, request = self.usage, self.request
        if not usage.estimated:
            tpot_s = self.tpot_s
            return tpot_s, tpot_s
        most = max(request.output_tokens_max * request.sequences, usage.output_tokens)
        known = request.output_tokens_max > 0 and not isnan(self.last_token_s)
        several = usage.output_tokens_least > request.sequences
        return (
            self._tpot_by(float(most)) if known else 0.0,
            self._tpot_by(float(usage.output_tokens_least)) if several else inf,
        )

    @property
    def judged(self) -> bool:
        """Whether it counts for attainment: the client stayed, and the request was one that can be served."""
        return self.outcome is not EndState.LEFT and self.outcome is not EndState.CLIENT_ERROR

    @property
    def slo_met(self) -> bool:
        """Served, and not outside any bound of its SLO; of a whole reply only the end can be judged.

        A stream that ended without a token (an empty reply) is judged as if its token had come with its end. Where
        tokens are only estimated, a bound on TPOT is missed if the least that TPOT can have been exceeds it: what can
        have been inside is not counted as outside (see ``unjudged``), so that attainment is of the same requests
        whatever their engines state.
        """
        if self.outcome is not EndState.SERVED:
            return False
        request, usage = self.request, self.usage
        prompt_tokens = usage.prompt_tokens or request.prompt_tokens
        output_tokens = nan if usage.estimated else float(usage.output_tokens)
        if not request.streamed:
            return request.slo.met_whole(self.e2e_s, prompt_tokens, output_tokens)
        if isnan(self.first_token_s):
            return request.slo.met(self.e2e_s, 0.0, self.e2e_s, prompt_tokens, output_tokens)
        tpot_s = self.tpot_range_s()[0] if usage.estimated else self.tpot_s
        return request.slo.met(self.ttft_s, tpot_s, self.e2e_s, prompt_tokens, output_tokens)

    def unjudged(self) -> tuple[str, ...]:
        """The metrics whose bounds a served request may or may not have met: its tokens are only estimated."""
        if not self.usage.estimated or self.outcome is not EndState.SERVED:
            return ()
        slo = self.request.slo
        least_s, most_s = self.tpot_range_s() if self.request.streamed else (nan, nan)
        found = ["tpot"] if least_s <= slo.tpot_s < most_s and slo.tpot_s < inf else []
        values_s, bounds_s = self.latencies_s()[BASE:], slo.bounds_s()[BASE:]
        for metric, value_s, bound_s in zip(DERIVED, values_s, bounds_s, strict=True):
            if isnan(value_s) and bound_s < inf:
                found.append(metric.name)
        return tuple(found)

    def latencies_s(self) -> tuple[float, ...]:
        """The value of each of ``SLO_METRICS``; nan where there is none, or it needs tokens that are estimated."""
        ttft_s, tpot_s, e2e_s = self.ttft_s, self.tpot_s, self.e2e_s
        if not DERIVED:
            return ttft_s, tpot_s, e2e_s
        output_tokens = nan if self.usage.estimated else float(self.usage.output_tokens)
        sizes = self.usage.prompt_tokens or self.request.prompt_tokens, output_tokens
        return ttft_s, tpot_s, e2e_s, *(metric.observed(ttft_s, tpot_s, e2e_s, *sizes) for metric in DERIVED)


Command = Send | Refuse | Abort | Break | RequestRecord
