"""What a policy may answer and what the core tells its shell to do. Each is frozen, each says why.

A refusal is an answer, not an exception: see errors.py for the HTTP meaning of each reason.
"""

from dataclasses import dataclass
from enum import StrEnum

from router.core.types import RequestId


class Reason(StrEnum):
    """Why a request was refused; the value is what ``x-headroom-dropped-reason`` says."""

    SATURATED = "saturated"  # nobody will have room before the SLO is missed
    QUEUE_FULL = "queue-full"  # the hold queue is at its bound
    HOLD_EXPIRED = "hold-expired"  # held as long as allowed and still no room
    INFEASIBLE = "infeasible"  # no backend of this pool could keep this SLO even when idle
    UNFAIR_SHARE = "unfair-share"  # its tenant is over its share while others wait
    EVICTED = "evicted"  # a more urgent request took its place in the hold queue
    NO_BACKEND = "no-backend"  # nobody who serves this model is up
    UNKNOWN_MODEL = "unknown-model"  # nobody was ever configured to serve it
    BACKEND_FAILED = "backend-failed"  # the engine failed before the first byte and no one is left to try
    FIRST_BYTE_LATE = "first-byte-late"  # the first-byte deadline passed and no one is left to try


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the request to the backend in ``slot`` now."""

    slot: int
    why: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the request at the gateway; ask again when room appears, and at ``until_s`` at the latest."""

    until_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Shed:
    """Refuse the request; ``retry_after_s`` is when trying again has a fair chance."""

    reason: Reason
    why: str
    retry_after_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Admit:
    """Let the request through to routing."""


Choice = Dispatch | Hold | Shed
ADMIT = Admit()


@dataclass(frozen=True, slots=True)
class ScaleTo:
    """How many replicas of one variant the demand needs."""

    variant: str
    replicas: int
    why: str


@dataclass(frozen=True, slots=True)
class Send:
    """Command: open attempt ``attempt`` of the request on ``backend``. The reservation is already on the ledger."""

    request_id: RequestId
    backend: str
    attempt: int
    why: str
    predicted_ttft_s: float  # nan when nothing was forecast
    first_byte_due_s: float  # inf: no deadline; the core's own timer acts on it


@dataclass(frozen=True, slots=True)
class Refuse:
    """Command: answer the request with an error; it is over."""

    request_id: RequestId
    reason: Reason
    why: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Abort:
    """Command: close the connection of this attempt at once; its reservation is already released."""

    request_id: RequestId
    backend: str
    attempt: int
    why: str


@dataclass(frozen=True, slots=True)
class Break:
    """Command: the stream died after its first byte; end it towards the client with an honest error, never a clean end."""

    request_id: RequestId
    why: str


Command = Send | Refuse | Abort | Break
