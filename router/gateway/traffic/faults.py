"""Classifies an engine's error answer: the Failure that the core gets for it.

How an engine words its errors is its kind's ``ErrorDialect``. Must not depend on sockets or on any one engine.
"""

from dataclasses import dataclass, replace
from typing import Final

from router.core.flight import Failure
from router.engines import ErrorDialect

_SERVER_ERRORS: Final = range(500, 600)
_FINAL: Final = {501, 505}  # another backend would answer the same


@dataclass(frozen=True, slots=True)
class EngineError:
    """An engine's error response in place of a reply: held until another backend has answered or none is left.

    ``fields`` are its header lines; ``body`` as sent, without chunk framing. ``engine_fault``: it is the engine's own,
    whatever the status; ``client_fault``: the client's, whatever the status.
    """

    status: int
    message: str
    fields: bytes = b""
    body: bytes = b""
    engine_fault: bool = False
    client_fault: bool = False


def engine_error(status: int, body: bytes, fields: bytes, dialect: ErrorDialect) -> EngineError:
    """The error in a non-2xx answer."""
    payload = body.strip()
    if payload.startswith(b"data:"):  # an error before the first token that is wrapped in an event
        payload = payload[5:].strip()
    _, message = dialect.read(payload)
    return _classified(EngineError(status, message, fields, body), dialect)


def event_error(payload: bytes, dialect: ErrorDialect) -> EngineError:
    """The error in an event of a stream that began as a success; the status is the one it names, else 500."""
    code, message = dialect.read(payload)
    if not payload.startswith(b"{") or not payload.endswith(b"}"):
        message = "the engine failed in mid-stream"
    return _classified(EngineError(code if code in range(400, 600) else 500, message), dialect)


def _classified(error: EngineError, dialect: ErrorDialect) -> EngineError:
    """The same with the faults that the dialect's wordings show."""
    engine_fault = error.status != 404 and any(part in error.message for part in dialect.engine_faults)  # noqa: PLR2004 - not found is no fault
    return replace(
        error,
        engine_fault=engine_fault,
        client_fault=not engine_fault and error.message.startswith(dialect.client_faults),
    )


def failure(backend: str, error: EngineError) -> Failure:
    """The failure for the core: an error of the client is not the backend's fault, and is not retried."""
    why = f"{backend} answered {error.status}: {error.message}"
    if error.engine_fault:
        return Failure(why)
    if error.status == 429 or (error.status == 503 and error.body.lstrip()[:1] == b"{"):  # noqa: PLR2004 - HTTP's statuses for busy
        return Failure(why, backend_fault=False)
    server_error = error.status in _SERVER_ERRORS and error.status not in _FINAL
    if server_error and not error.client_fault:
        return Failure(why)
    return Failure(why, backend_fault=False, retryable=False)
