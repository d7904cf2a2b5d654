"""Every error of Headroom on one page, with its HTTP status; and why a request is refused, with the status of that,
why a backend is down, and why the shared state fails.

A refusal (``Reason``) is a decision of the core and is returned, not raised: see decisions.py. An exception is a fault.
Each class says when it is raised, who has to act, and whether the same call can succeed later. ``status`` is the HTTP
status of a call that ends with the error; None: it never ends a client's call. An error after the first byte of a
reply has no status either: the stream ends with an error event. The simulator's own errors are in simulator/errors.py.

Depends on nothing else of the project, so that any module can raise and catch what stands here.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final


class Reason(StrEnum):
    """Why a request was refused; the value is that of the header ``x-headroom-dropped-reason``."""

    SATURATED = "saturated"  # no backend is predicted to have room in time for the SLO
    QUEUE_FULL = "queue-full"  # the queue of held requests is full
    HOLD_EXPIRED = "hold-expired"  # held for as long as allowed, and no backend has had room
    INFEASIBLE = "infeasible"  # no backend could meet the SLO even with nothing else in flight
    UNFAIR_SHARE = "unfair-share"  # its tenant is over its share while other tenants wait
    EVICTED = "evicted"  # a more urgent request took its place in the full queue
    NO_BACKEND = "no-backend"  # of the backends that serve this model and take the prompt, none is up
    UNKNOWN_MODEL = "unknown-model"  # no backend that is configured serves it
    TOO_LONG = "too-long"  # its prompt exceeds the context of every backend that serves the model
    CLIENT_ERROR = "client-error"  # the engines refuse it as the client's own error, or none offers what it wants
    ROUTER_EXHAUSTED = "router-exhausted"  # this router has no file descriptor or port left to reach a backend
    BACKEND_FAILED = "backend-failed"  # the last attempt failed before the first byte, and no further one is allowed
    FIRST_BYTE_LATE = "first-byte-late"  # the same, and it failed by sending no first byte before its deadline


STATUS: Final[Mapping[Reason, int]] = MappingProxyType(
    {
        Reason.SATURATED: 429,
        Reason.QUEUE_FULL: 429,
        Reason.HOLD_EXPIRED: 429,
        Reason.INFEASIBLE: 429,
        Reason.UNFAIR_SHARE: 429,
        Reason.EVICTED: 429,
        Reason.TOO_LONG: 400,
        Reason.CLIENT_ERROR: 400,
        Reason.UNKNOWN_MODEL: 404,
        Reason.BACKEND_FAILED: 502,
        Reason.NO_BACKEND: 503,
        Reason.ROUTER_EXHAUSTED: 503,
        Reason.FIRST_BYTE_LATE: 504,
    }
)


CLIENT_ERRORS: Final = frozenset({Reason.TOO_LONG, Reason.UNKNOWN_MODEL, Reason.CLIENT_ERROR})
"""What the client has to change: neither shed nor failed."""


def status_of(reason: Reason) -> int:
    """The HTTP status that answers a refusal for this reason."""
    return STATUS[reason]


class DownReason(StrEnum):
    """Why a backend is down; the value is a label of metrics."""

    UNCHECKED = "unchecked"  # no health check of it has ended yet
    REFUSED = "refused"  # nothing listens at its address
    UNREACHABLE = "unreachable"  # no connection comes about for another reason: name, route, an address of its own
    TLS = "tls"  # certificates do not fit
    TIMEOUT = "timeout"  # the check got no answer in time
    UNREADY = "unready"  # the engine itself says that it takes no requests: 503, mostly
    STATUS = "status"  # the check was answered with another error status or a redirect
    INVALID = "invalid"  # the check's answer was cut off, or is not HTTP
    ASLEEP = "asleep"  # its checks pass, but it sleeps or is paused: what it is sent waits until it is woken
    DRAINED = "drained"  # an operator has drained it


DOUBTFUL: Final = frozenset(
    {DownReason.TIMEOUT, DownReason.STATUS, DownReason.UNREACHABLE, DownReason.TLS, DownReason.INVALID}
)  # what a failing check may say of itself, or of the way to it, and not of the engine


class SkipReason(StrEnum):
    """Why a value of the shared state was skipped."""

    NEWER = "newer"  # of a later release, in a form that this one does not read
    UNREADABLE = "unreadable"  # no JSON, or JSON of another form
    IMPLAUSIBLE = "implausible"  # a number that cannot be
    TOO_LARGE = "too-large"
    WRONG_TYPE = "wrong-type"  # its key holds a list, a hash or another type
    REFUSED = "refused"  # the server lets this user not read it


class StateFault(StrEnum):
    """Why the shared state fails; the value is a label of metrics."""

    REFUSED = "refused"  # nothing listens at its address
    UNREACHABLE = "unreachable"  # no connection comes about, or it was closed: name, route, a crash
    TIMEOUT = "timeout"  # no answer in time
    TLS = "tls"  # certificates do not fit
    DENIED = "denied"  # the user, the password, or what that user may do
    LOADING = "loading"  # the server has started and is reading its data
    READ_ONLY = "read-only"  # a replica: what others wrote is read, and this router's view is not taken
    FULL = "full"  # no memory left there: what others wrote is read, and this router's view is not taken
    NO_PRIMARY = "no-primary"  # no sentinel and no cluster node says which server has the pool's keys
    INVALID = "invalid"  # an answer that no server of this kind sends, or a key of ours that holds something else
    FILES = "files"  # the folder of the workers of this host cannot be used
    INTERNAL = "internal"  # a fault of this router; the log has it


class HeadroomError(Exception):
    """The base of all errors of Headroom: catch it to catch every fault that the project itself names."""

    status: int | None = None


# -- a client's request ------------------------------------------------------------------------------------------------


class Rejected(HeadroomError):
    """The request cannot be read or may not be served (400, 401, 404, 413; ``status`` is the instance's own).

    Raised while a request is parsed, before the core has seen it. The client has to change the request; sending the
    same again is rejected again. ``param`` names the field or header at fault, ``code`` is OpenAI's error code.
    """

    status: int = 400

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


class UnsupportedFeature(HeadroomError):
    """The backend's protocol cannot express what the request contains in the field ``param`` (400).

    Raised when a request is translated for one backend. The request is tried on another backend first; the client gets
    400 when none is left, and has to leave the field out.
    """

    status: int = 400

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


# -- the operator's config ---------------------------------------------------------------------------------------------


class ConfigError(HeadroomError, ValueError):
    """A config file is not valid; ``str()`` is one line a fault: ``file:line: key: what was expected``.

    422 on /admin/reload and /admin/rollback, exit status 2 of the command line. The operator has to correct the file;
    the config that serves goes on serving.
    """

    status: int = 422

    def __init__(self, lines: Sequence[str]) -> None:
        """``lines``: the faults, each complete."""
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


class NotValidated(ConfigError):
    """The config is valid, but its policies failed the pre-rollout validation (422); ``validation`` is its result.

    The author of the policy has to act: the same policy can pass later only against other traffic.
    """

    def __init__(self, why: str, validation: Any) -> None:
        """``validation``: a router.gateway.rollout.validation.Validation, which the core must not import."""
        super().__init__([f"policy: {why}"])
        self.validation = validation


class UnknownCard(HeadroomError, ValueError):
    """No accelerator of that name; the message lists the nearest names. A config with it is answered with 422.

    The operator has to correct the name or describe the card in the config.
    """

    status: int = 422


class UnknownModel(HeadroomError, ValueError):
    """No model of that name; the message lists the nearest names. A config with it is answered with 422.

    The operator has to correct the name or describe the model in the config.
    """

    status: int = 422


class UnknownEngine(HeadroomError, ValueError):
    """No engine kind or protocol of that name; the message gives the nearest one. 422 for a config with it.

    The operator has to correct the name, or add a file to router/engines.
    """

    status: int = 422


class DoesNotFit(HeadroomError, ValueError):
    """The model cannot be placed so: memory too small, or TP does not divide its heads. 422 for a config with it.

    The operator has to choose other cards, another precision or another parallelism.
    """

    status: int = 422


class Unresolved(HeadroomError):
    """A reference in a config (``${NAME}``, ``${file:PATH}``) leads nowhere.

    Raised while values are read, and collected with their places. The operator has to set the variable or to put the
    file there.
    """


class UnusableCertificate(HeadroomError, ValueError):
    """A certificate or key that the config names cannot be used; ``key`` is its key in the section (422 on a reload).

    Raised while a config is read, and then a fault of it like others. The operator has to put a readable file there.
    """

    status = 422

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


class PolicyRejected(HeadroomError):
    """A policy may not serve: it broke the contract, chose a backend that it was not offered, or did worse on a replay.

    Raised by validation (422 for the config that names the policy) and by the core; of a policy that serves, the
    gateway's guard catches it and lets the last good policy decide. The author of the policy has to act.
    """

    status: int = 422


# -- parts of a running router -----------------------------------------------------------------------------------------


class StoreGone(HeadroomError, ConnectionError):
    """The shared state did not answer in time or at all; the message says how (503 on /admin/routers).

    No request fails for it: the router continues without its peers' load and retries at the next sync.
    """

    status: int = 503

    def __init__(self, why: str, fault: StateFault = StateFault.INVALID) -> None:
        super().__init__(why)
        self.fault = fault


class Unreadable(HeadroomError, ValueError):
    """A value of the shared state cannot be taken; ``reason``: why. It is skipped, and the rest is taken.

    No client sees it; a metric counts it, and the log names it once.
    """

    def __init__(self, reason: SkipReason, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class Unanswered(HeadroomError):
    """A health check or a scrape got no page from an engine, and why. No client sees it; it is tried again.

    Several in a row mark the backend as down, for ``reason``.
    """

    def __init__(self, why: str, reason: DownReason = DownReason.INVALID) -> None:
        super().__init__(why)
        self.reason = reason


class SourceFailed(HeadroomError):
    """A source of backends cannot be read, or what it gives is no list of them. It is read again, and the backends that
    it gave last stay meanwhile; an operator has to make it readable.
    """


class NoSuchName(SourceFailed):
    """DNS states that there is no such name. It is looked up again; an operator has to correct it or to wait for it."""


class PeerRefused(HeadroomError, ConnectionError):
    """The other side of a connection between routers is no router with this key, or has no room for one more. It is
    dialled again; an operator has to give all routers of a pool the same key.
    """


class KubernetesError(HeadroomError):
    """A request to a Kubernetes API server was not done. ``answer``: the HTTP status of its answer; 0: there was none.

    No client sees it. The caller tries again; an operator has to act where a right is missing.
    """

    def __init__(self, answer: int, message: str) -> None:
        super().__init__(message)
        self.answer = answer


class NotObserved(HeadroomError):
    """The replicas that there are could not be read now; the message says why.

    Raised by a scaling target. Nothing is applied for that model in this round; a later one reads again.
    """


class LeaseGone(HeadroomError):
    """The lease that elects one autoscaler could not be read or written; the message says why.

    Raised where the election is held. Nobody is elected by it; it is tried again in the next round.
    """


class BadMessage(HeadroomError):
    """A message of an endpoint picker's stream that no proxy sends.

    Raised while it is read. The stream ends with an error status; the proxy answers its client.
    """


class Exhausted(Unanswered):
    """The router itself lacked a file descriptor or a port for a health check or a scrape. It is tried again.

    Nothing is known of the engine, so that no backend is marked as down for it.
    """


class Implausible(HeadroomError, ValueError):
    """A belief from a store or a file holds a value that no router can have learnt; the message names the field.

    No client sees it. The belief is dropped whole and the backend starts from its prior.
    """


class CannotStart(HeadroomError, RuntimeError):
    """No worker process comes up; the log says why. The command line ends with it: the operator has to act."""


# -- files -------------------------------------------------------------------------------------------------------------


class RecordError(HeadroomError, ValueError):
    """A record of decisions cannot be read or replayed; the message names the line. For the command line alone."""
