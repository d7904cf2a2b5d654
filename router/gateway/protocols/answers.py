"""Error answers in the form of each protocol: the body before the first byte, the event after it.

The status is decided elsewhere. Must not depend on sockets or requests.
"""

from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import Any, Final

import orjson

from router.core.decisions import Refuse
from router.core.errors import Reason, Rejected, status_of


class Dialect(Enum):
    """The protocol whose form an answer has."""

    OPENAI = "openai"  # {"error": {"message", "type", "param", "code"}}
    RESPONSES = "responses"  # OpenAI's, but events are typed
    ANTHROPIC = "anthropic"  # {"type": "error", "error": {"type", "message"}}
    TRITON = "triton"  # {"error": "..."}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error answer instead of a reply. ``param`` names the field or header at fault; ``fields``: header lines."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    fields: bytes = b""


def rejection(error: Rejected) -> Problem:
    """The error answer to a request that was rejected while it was read."""
    return Problem(error.status, error.message, error.param, error.code)


# https://platform.openai.com/docs/guides/error-codes and docs.claude.com/en/api/errors, by status
_OPENAI_TYPES: Final = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_SERVER: Final = 500
_MESSAGE_CHARS_MAX: Final = 2_000  # of an error's message, which may repeat what a client or an engine sent


def body(dialect: Dialect, problem: Problem) -> bytes:
    """The JSON body of an error answer."""
    return orjson.dumps(_document(dialect, problem))


def _bounded(message: str) -> str:
    return message if len(message) <= _MESSAGE_CHARS_MAX else message[:_MESSAGE_CHARS_MAX] + "..."


def _document(dialect: Dialect, problem: Problem) -> dict[str, Any]:
    message = _bounded(problem.message)
    ours = problem.status >= _SERVER
    if dialect is Dialect.TRITON:
        return {"error": message}
    if dialect is Dialect.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(problem.status, "api_error" if ours else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    kind = _OPENAI_TYPES.get(problem.status, "server_error" if ours else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": problem.param, "code": problem.code}}


def event(dialect: Dialect, problem: Problem) -> bytes:
    """The event that ends a broken stream."""
    if dialect is Dialect.RESPONSES:
        document: dict[str, Any] = {
            "type": "error",
            "code": problem.code,
            "message": _bounded(problem.message),
            "param": None,
        }
        return b"event: error\ndata: " + orjson.dumps(document) + b"\n\n"
    named = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
    return named + b"data: " + body(dialect, problem) + b"\n\n"


def refusal(command: Refuse) -> Problem:
    """The error answer for a refusal of the core: status, reason, and when to try again, if at all."""
    status = status_of(command.reason)
    fields = b"x-headroom-dropped-reason: %b\r\n" % command.reason.value.encode()
    if command.reason is Reason.INFEASIBLE:  # independent of load: trying again changes nothing, so no Retry-After
        fields += b"x-should-retry: false\r\n"  # OpenAI's and Anthropic's clients obey it
    elif status in {429, 503}:
        fields += b"retry-after: %d\r\n" % max(1, ceil(command.retry_after_s))
    code = "model_not_found" if command.reason is Reason.UNKNOWN_MODEL else command.reason.value
    param = "model" if command.reason is Reason.UNKNOWN_MODEL else None
    return Problem(status, command.why, param, code, fields)
