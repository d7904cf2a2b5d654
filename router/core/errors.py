"""The error tree on one page, with its HTTP meaning. Refusals are decisions (decisions.py); these are their answers."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from router.core.decisions import Reason


class RouterError(Exception):
    """Anything Headroom raises on purpose; ``status`` is the HTTP answer where there is one."""

    status: int | None = 500


class BadRequest(RouterError):
    """The client's request cannot be read; ``param`` names the field or header that is wrong."""

    status = 400

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Unauthorized(RouterError):
    """No API key, or one that nobody configured."""

    status = 401


class UnknownModel(RouterError):
    """Nobody serves this model; the message names those there are."""

    status = 404


class TooLarge(RouterError):
    """The body is over the configured bound."""

    status = 413


class Overloaded(RouterError):
    """Shed: a promise could not be kept; comes with an honest Retry-After."""

    status = 429


class BackendFailed(RouterError):
    """The engine failed before the first byte and no one is left to try."""

    status = 502


class NoBackend(RouterError):
    """Nobody who serves this model is up."""

    status = 503


class FirstByteLate(RouterError):
    """The first-byte deadline passed and no one is left to try."""

    status = 504


class StreamBroken(RouterError):
    """The engine failed after the first byte: too late for a status, the stream ends with an error event."""

    status = None


class PolicyRejected(RouterError):
    """A policy that may not serve: it broke the contract or lost the proof."""

    status = 422


ANSWER: Final[Mapping[Reason, type[RouterError]]] = MappingProxyType(
    {
        Reason.SATURATED: Overloaded,
        Reason.QUEUE_FULL: Overloaded,
        Reason.HOLD_EXPIRED: Overloaded,
        Reason.INFEASIBLE: Overloaded,
        Reason.UNFAIR_SHARE: Overloaded,
        Reason.EVICTED: Overloaded,
        Reason.NO_BACKEND: NoBackend,
        Reason.UNKNOWN_MODEL: UnknownModel,
        Reason.TOO_LONG: BadRequest,
        Reason.BACKEND_FAILED: BackendFailed,
        Reason.FIRST_BYTE_LATE: FirstByteLate,
    }
)


def status_of(reason: Reason) -> int:
    """The HTTP status that answers a refusal for this reason."""
    status = ANSWER[reason].status
    assert status is not None  # every reason to refuse comes before the first byte
    return status
