"""Classifies an engine's error answer: the Failure that the core gets for it.

How an engine words its errors is its kind's ``ErrorDialect``. The status, and what an engine alone can have written,
decide: never words that a client may have put into a message. Must not depend on sockets or on any one engine.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from router.core.flight import Failure, FailureKind
from router.engines import ErrorDialect, error_names
from router.engines.context import CONTEXT_CODES, ContextExceeded, context_exceeded
from router.gateway.traffic.frames import error_of_whole

_WHY_CHARS_MAX: Final = 300
_CLIENT_ERRORS: Final = range(400, 500)
_NOT_FOUND: Final = 404
_UNAVAILABLE: Final = 503

_BY_STATUS: Final[Mapping[int, FailureKind]] = {
    401: FailureKind.KEY_REFUSED,
    402: FailureKind.KEY_REFUSED,
    403: FailureKind.KEY_REFUSED,
    405: FailureKind.ENDPOINT_MISSING,
    407: FailureKind.KEY_REFUSED,
    408: FailureKind.BUSY,  # it has waited in vain for the request's bytes
    424: FailureKind.FAULT,  # text-generation-inference: the generation failed
    429: FailureKind.BUSY,
    501: FailureKind.ENDPOINT_MISSING,
    505: FailureKind.ENDPOINT_MISSING,
    529: FailureKind.BUSY,  # Anthropic's for overloaded
}
_PATH_MISSING: Final = re.compile(  # whole messages of web frameworks
    r"(?:404:? )?(?:(?:page|file|route|path|endpoint|url) )?(?:not found|method not allowed)(?:: [A-Z]+ \S+)?\.?"
    r"|invalid url \([A-Z]+ \S+\)",
    re.IGNORECASE,
)
_MODEL_MISSING: Final = re.compile(  # beginnings of messages with status 404
    r"(?:(?:could not|cannot|unable to) find )?(?:(?:the|this|unknown|no such|invalid|requested) )*(?:base |lora )?"
    r"(?:model|adapter|lora|deployment)\b",
    re.IGNORECASE,
)
_ACCOUNT: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})  # ours with a provider, at 429
_ABOUT_MODEL: Final = frozenset({"model", "model_not_found", "40301"})  # the last is FastChat's
# A status 400 of LiteLLM that is about its own list of models.
_UNLISTED: Final = re.compile(r"(?:\{'error': ')?/[\w/]+: Invalid model name passed in model=")

_BACKENDS: Final = frozenset({FailureKind.FAULT})
_FINAL: Final = frozenset({FailureKind.CLIENT_ERROR})


@dataclass(frozen=True, slots=True)
class EngineError:
    """An engine's error response in place of a reply: held until another backend has answered or none is left.

    ``fields`` are its header lines; ``body`` as sent, without chunk framing; ``exceeded``: what it says of its context.
    """

    status: int
    message: str
    fields: bytes = b""
    body: bytes = b""
    kind: FailureKind = FailureKind.FAULT
    exceeded: ContextExceeded | None = None

    @property
    def for_client(self) -> bool:
        """Whether the client may get it: not what an engine says of the gateway's own key, nor an address behind it."""
        return self.kind is not FailureKind.KEY_REFUSED and self.kind is not FailureKind.REDIRECT


def engine_error(status: int, body: bytes, fields: bytes, dialect: ErrorDialect) -> EngineError:
    """The error in a non-2xx answer."""
    payload = body.strip()
    if payload.startswith(b"data:"):  # an error before the first token that is wrapped in an event
        payload = payload[5:].strip()
    stated, message = dialect.read(payload)
    kind = _kind(stated if status == 400 and stated else status, message, payload, dialect)  # noqa: PLR2004 - FastChat's status for all
    return EngineError(status, message, fields, body, kind, _exceeded(kind, message, dialect))


def whole_error(body: bytes, fields: bytes, dialect: ErrorDialect) -> EngineError | None:
    """The error in a whole body that came with a status of success, as if it had come with the status that it names;
    None: it is none.
    """
    payload = error_of_whole(body)
    if payload is None:
        return None
    error = event_error(payload, dialect)
    return replace(error, fields=fields, body=body) if payload == body.strip() else error


def event_error(payload: bytes, dialect: ErrorDialect) -> EngineError:
    """The error in an event of a stream that began as a success; the status is the one it names, else 500."""
    code, message = dialect.read(payload)
    if not payload.startswith(b"{") or not payload.endswith(b"}"):
        message = "the engine failed in mid-stream"
    status = code if code in range(400, 600) else 500
    kind = _kind(status, message, payload, dialect)
    return EngineError(status, message, kind=kind, exceeded=_exceeded(kind, message, dialect))


def _exceeded(kind: FailureKind, message: str, dialect: ErrorDialect) -> ContextExceeded | None:
    return context_exceeded(message, dialect.context_faults) if kind is FailureKind.CONTEXT_EXCEEDED else None


def failure(backend: str, error: EngineError, what: str = "answered") -> Failure:
    """The failure for the core: an error of the client is not the backend's fault, and is not retried."""
    kind = error.kind
    if kind is FailureKind.KEY_REFUSED:  # the message may repeat the key
        why = f"{backend} refused the key that the gateway has for it ({error.status})"
    else:
        why = f"{backend} {what} {error.status}: {short(error.message)}"
    of = error.exceeded or ContextExceeded()
    return Failure(
        why,
        kind in _BACKENDS,
        kind not in _FINAL,
        kind=kind,
        prompt_tokens=of.prompt_tokens,
        at_least=of.at_least,
        context_tokens_max=of.context_tokens_max,
    )


def short(text: str) -> str:
    """What an engine wrote, fit for a line of a log: bounded, on one line, no control characters."""
    line = " ".join(text[: 4 * _WHY_CHARS_MAX].split())
    return "".join(filter(str.isprintable, line))[:_WHY_CHARS_MAX]


def _kind(status: int, message: str, payload: bytes, dialect: ErrorDialect) -> FailureKind:
    return _by_words(message, dialect) or _by_status(status, message, payload, dialect)


def _by_words(message: str, dialect: ErrorDialect) -> FailureKind | None:
    """What the kind's own wordings say, whatever the status."""
    for patterns, kind in (
        (dialect.engine_faults, FailureKind.FAULT),
        (dialect.busy, FailureKind.BUSY),
        (dialect.model_missing, FailureKind.MODEL_MISSING),
        (dialect.context_faults, FailureKind.CONTEXT_EXCEEDED),
        (dialect.client_faults, FailureKind.CLIENT_ERROR),
    ):
        if _begins(message, patterns):
            return kind
    return None


def _by_status(status: int, message: str, payload: bytes, dialect: ErrorDialect) -> FailureKind:
    if status == _NOT_FOUND:
        return _not_found(message, payload)
    if status == _UNAVAILABLE:  # a proxy's own page says that nobody is there
        structured = payload[:1] == b"{" and not _begins(message, dialect.unready)
        return FailureKind.BUSY if structured else FailureKind.FAULT
    if status in _BY_STATUS:
        known = _BY_STATUS[status]
        spent = known is FailureKind.BUSY and not error_names(payload).isdisjoint(_ACCOUNT)
        return FailureKind.KEY_REFUSED if spent else known
    if status in _CLIENT_ERRORS:
        return _client_error(message, payload)
    return FailureKind.REDIRECT if status < _CLIENT_ERRORS.start else FailureKind.FAULT


def _client_error(message: str, payload: bytes) -> FailureKind:
    if not error_names(payload).isdisjoint(CONTEXT_CODES):
        return FailureKind.CONTEXT_EXCEEDED
    return FailureKind.MODEL_MISSING if _UNLISTED.match(message) else FailureKind.CLIENT_ERROR


def _not_found(message: str, payload: bytes) -> FailureKind:
    """What is missing: the model, the path, or something that the client named."""
    if not error_names(payload).isdisjoint(_ABOUT_MODEL) or _MODEL_MISSING.match(message):
        return FailureKind.MODEL_MISSING
    if payload[:1] != b"{" or _PATH_MISSING.fullmatch(message):
        return FailureKind.ENDPOINT_MISSING
    return FailureKind.NOT_FOUND


def _begins(message: str, patterns: tuple[str, ...]) -> bool:
    return any(re.match(pattern, message) is not None for pattern in patterns)
