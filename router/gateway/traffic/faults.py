"""Whose fault an engine's error is, and what it says: the table between engines' answers and the core's Failure.

Believes: statuses and messages as vLLM, Triton, SGLang and llama.cpp send them. Must not know sockets.
"""

from dataclasses import dataclass
from typing import Any, Final

import orjson

from router.core.flight import Failure

_SERVER_ERRORS: Final = range(500, 600)
_FINAL: Final = {501, 505}  # it will not do so elsewhere either
# Triton answers 400 when its own backend process is gone, and 500 when the client's JSON is wrong.
_SICK: Final = ("is not healthy", "not ready", "unavailable")
_UNREADABLE: Final = ("failed to parse the request JSON", "Unable to parse")
_MESSAGE_CHARS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class EngineError:
    """An engine's answer instead of a reply: kept until it is known whether another backend will do better.

    ``fields`` are its header lines; ``body`` as sent, without chunk framing.
    """

    status: int
    message: str
    fields: bytes = b""
    body: bytes = b""


def engine_error(status: int, body: bytes, fields: bytes = b"") -> EngineError:
    """The error in a non-2xx answer."""
    payload = body.strip()
    if payload.startswith(b"data:"):  # Triton wraps an early error in an event
        payload = payload[5:].strip()
    _, message = _said(payload)
    return EngineError(status, message, fields, body)


def event_error(payload: bytes) -> EngineError:
    """The error in an event of a stream that began as a success; the status is the one it names, else 500."""
    code, message = _said(payload)
    if not payload.startswith(b"{") or not payload.endswith(b"}"):
        message = "the engine failed in mid-stream"
    return EngineError(code if code in range(400, 600) else 500, message)


def failure(backend: str, error: EngineError) -> Failure:
    """What the core should make of it: a client's own mistake is nobody's fault, and is not tried again."""
    why = f"{backend} answered {error.status}: {error.message}"
    if any(mark in error.message for mark in _SICK) and error.status != 404:  # noqa: PLR2004 - not found is not sick
        return Failure(why)
    if error.status == 429 or (error.status == 503 and error.body.lstrip()[:1] == b"{"):  # noqa: PLR2004 - HTTP's words for busy
        return Failure(why, backend_fault=False)
    theirs = error.status in _SERVER_ERRORS and error.status not in _FINAL
    if theirs and not error.message.startswith(_UNREADABLE):
        return Failure(why)
    return Failure(why, backend_fault=False, retryable=False)


def clients_own(error: EngineError) -> bool:
    """Whether a 5xx is about what the client sent."""
    return error.message.startswith(_UNREADABLE)


def _said(payload: bytes) -> tuple[int, str]:
    """Code (0: none) and message of the forms that engines use."""
    try:
        document: Any = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return 0, payload[:_MESSAGE_CHARS_MAX].decode("utf-8", "replace") or "(no body)"
    inner = document.get("error", document.get("detail", document)) if isinstance(document, dict) else document
    if not isinstance(inner, dict):
        return 0, str(inner)[:_MESSAGE_CHARS_MAX]
    code = inner.get("code")
    return (code if isinstance(code, int) else 0), str(inner.get("message", inner))[:_MESSAGE_CHARS_MAX]
