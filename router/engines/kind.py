"""What an engine kind is: one frozen value that holds all in which one kind of inference server differs from another.

Must not depend on anything but ``router.core``: both the gateway and the simulator read these values, and a kind opens
no socket itself. Pages and error bodies are passed in as bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import orjson

from router.core.signals import Reading
from router.engines.context import CONTEXT_FAULTS
from router.engines.facts import EngineFacts, EnginePages
from router.engines.prometheus import ScrapedPage, Snapshot

OPENAI_PROTOCOL: Final = "openai"
MODELS_PATH: Final = "/v1/models"
_MESSAGE_CHARS_MAX: Final = 2_000
_MESSAGES: Final = ("message", "text", "msg")  # the keys of an error's
_STATUSES: Final = range(400, 600)


class Scheduler(Enum):
    """How an engine admits and batches requests; the simulator has an implementation of each."""

    CHUNKED_PREFILL = "chunked prefill"
    """vLLM V1: prompts in chunks beside decodes; a request is preempted when the KV cache is full."""

    NO_EVICT = "guaranteed no evict"
    """TensorRT-LLM's in-flight batching: a request starts once the KV cache can hold its longest reply."""


@dataclass(frozen=True, slots=True)
class OpenAICall:
    """A request of OpenAI's API as a translation reads it.

    ``backend``: the name for messages; ``engine_model``: the engine's name for ``model``; ``prompt_tokens``: estimated.
    ``chat_template`` and ``chat_opening`` render chat messages for engines that take plain prompts.
    """

    backend: str
    path: str
    document: Mapping[str, Any]
    model: str
    engine_model: str
    stream: bool
    output_tokens_max: int
    prompt_tokens: int
    request_id: str
    chat_template: str
    chat_opening: str


class Translation(ABC):
    """One translated request and the state of its reply.

    ``path`` and ``body`` go to the engine, ``fields`` are the reply's header lines, ``whole``: the reply is one JSON
    document. ``error``: the payload of an error frame, once one came; ``tokens``: how many have come; ``estimated``:
    the engine does not state that.
    """

    __slots__ = ("body", "error", "estimated", "fields", "path", "tokens", "whole")

    path: bytes
    body: bytes
    fields: bytes
    whole: bool
    error: bytes | None
    tokens: int
    estimated: bool

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Translate more of the engine's body. Raises ValueError for what is not of the engine's protocol."""

    @property
    def cut_short(self) -> bool:
        """Whether a stream that ends here ends inside of a frame, or without any."""
        return False

    @abstractmethod
    def finish(self) -> bytes:
        """The end of a stream as OpenAI's clients expect it."""


Translate = Callable[[OpenAICall], Translation]
"""Starts the translation of a request. Raises UnsupportedFeature when the protocol cannot express it."""


_STATUS_BY_NAME: Final[Mapping[str, int]] = {  # of an error's type or code, lower case, where it states no number
    "api_error": 500,
    "authentication_error": 401,
    "authenticationerror": 401,
    "bad request": 400,
    "badrequesterror": 400,
    "engine_overloaded": 503,
    "exceed_context_size_error": 400,
    "generation": 500,
    "incomplete_generation": 500,
    "insufficient_quota": 429,
    "internal server error": 500,
    "internal_error": 500,
    "internal_server_error": 500,
    "internalservererror": 500,
    "invalid_api_key": 401,
    "invalid_request_error": 400,
    "model_not_found": 404,
    "not found": 404,
    "not_found_error": 404,
    "notfounderror": 404,
    "overloaded": 429,
    "overloaded_error": 503,
    "permission_error": 403,
    "permissiondeniederror": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "ratelimiterror": 429,
    "request_too_large": 413,
    "server_error": 500,
    "server_is_overloaded": 503,
    "service unavailable": 503,
    "service_unavailable": 503,
    "service_unavailable_error": 503,
    "serviceunavailableerror": 503,
    "slow_down": 503,
    "timeout_error": 504,
    "timeouterror": 504,
    "too many requests": 429,
    "too_many_requests": 429,
    "unavailable": 503,
    "unavailable_error": 503,
    "unprocessableentityerror": 422,
    "validation": 422,
    "validation_error": 422,
}
_NESTED_MAX: Final = 4  # {"response": {"error": {...}}}, {"detail": {"error": {...}}}
_FASTCHAT: Final = range(40_000, 60_000)  # its codes are a status and two digits
_FASTCHAT_STATUS: Final[Mapping[int, int]] = {40_301: 404, 40_303: 400}  # unknown model, prompt too long


def _levels(document: Any) -> list[Any]:
    """An error body from the inside out: what ``error``, ``detail`` or a response's ``error`` holds, then what is
    around it, which may state the status.
    """
    levels = [document]
    while len(levels) < _NESTED_MAX and isinstance(document, dict) and not isinstance(document.get("message"), str):
        document = next((document[key] for key in ("error", "detail", "response") if document.get(key)), None)
        if document is None:
            break
        levels.insert(0, document)
    return levels


def error_names(payload: bytes) -> frozenset[str]:
    """``param``, ``type`` and ``code`` of an error body, lower case: an engine writes them, never a client."""
    try:
        error = _levels(orjson.loads(payload))[0]
    except orjson.JSONDecodeError:
        return frozenset()
    if not isinstance(error, dict):
        return frozenset()
    values = (error.get(key) for key in ("param", "type", "code"))
    return frozenset(str(value).lower() for value in values if isinstance(value, str | int))


def read_error(payload: bytes) -> tuple[int, str]:
    """Status code (0: none) and message of an error body: OpenAI's, Anthropic's, FastAPI's ``detail``, FastChat's,
    text-generation-inference's, Triton's plain string.
    """
    try:
        levels = _levels(orjson.loads(payload))
    except orjson.JSONDecodeError:
        return 0, payload[:_MESSAGE_CHARS_MAX].decode("utf-8", "replace") or "(no body)"
    status = next(filter(None, (_stated_status(each) for each in levels if isinstance(each, dict))), 0)
    error = levels[0]
    message = next((error[key] for key in _MESSAGES if key in error), error) if isinstance(error, dict) else error
    return status, str(message)[:_MESSAGE_CHARS_MAX]


def _stated_status(error: Mapping[str, Any]) -> int:
    """The status that an error states: a number, one in digits, or one by the name of its type or code."""
    for key in ("code", "status_code", "http_status_code", "statusCode", "status", "error_code", "type", "error_type"):
        value = error.get(key)
        if isinstance(value, str):
            value = int(value) if value.isascii() and value.isdigit() and len(value) == 3 else value.lower()  # noqa: PLR2004
            value = _STATUS_BY_NAME.get(value, 0) if isinstance(value, str) else value
        if isinstance(value, int) and value in _FASTCHAT:
            value = _FASTCHAT_STATUS.get(value, value // 100)
        if isinstance(value, int) and value in _STATUSES:
            return value
    return 0


_SUBJECT: Final = r"(?:the )?(?:server|engine|service|backend|worker|model)(?: with name \S+)?(?: is)?(?: currently)? "
_STATE: Final = r"(?:not (?:yet )?(?:healthy|ready|available)|unhealthy|unavailable|(?:starting|shutting down)(?: up)?)"
UNREADY: Final = rf"(?i)(?:{_SUBJECT})?{_STATE}\.?$"  # whole messages of servers that are not up


@dataclass(frozen=True, slots=True)
class ErrorDialect:
    """How an engine words its errors.

    ``read``: status code (0: none) and message of an error body. The others are regular expressions that the beginning
    of a message is matched with: a message may repeat a client's words, and those must decide nothing.
    ``engine_faults``: a fault of the engine whatever the status says; ``client_faults``: the client's; ``busy``: the
    engine's queue is full; ``model_missing``: the engine has not loaded the model; ``context_faults``: the request does
    not fit its context, with groups as in ``context.py``. ``unready``: of a status 503, that
    the engine is down and not just busy.
    """

    read: Callable[[bytes], tuple[int, str]] = read_error
    engine_faults: tuple[str, ...] = ()
    client_faults: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    model_missing: tuple[str, ...] = ()
    context_faults: tuple[str, ...] = CONTEXT_FAULTS
    unready: tuple[str, ...] = (UNREADY,)


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """How a Prometheus page is recognised and read. ``signatures``: beginnings of lines, each a sign of the kind.

    ``read`` fills all of the snapshot but its signals. ``signals``: by name, how this kind's page is read for signals
    whose own files (``router/core/signals``) have no reading for it.
    """

    signatures: tuple[bytes, ...]
    read: Callable[[ScrapedPage], Snapshot]
    signals: Mapping[str, Reading] = field(default_factory=dict)


Discover = Callable[[EnginePages], Awaitable[EngineFacts | None]]
"""Reads an engine's own pages: its facts, or None when it is of another kind. Raises Unanswered."""


@dataclass(frozen=True, slots=True)
class Era:
    """From version ``since`` (major, minor) on, the row of ``router.core.tables.ENGINES`` that fits."""

    since: tuple[int, int]
    row: str


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One kind of inference server. Every place that depends on the kind of an engine reads one of these fields.

    ``name`` and ``aliases`` are what configs may call it. ``protocol``: the API it serves; for all but OpenAI's,
    ``translate`` serves OpenAI's requests through it. ``states_usage``: streams end with their token counts where
    ``stream_options.include_usage`` asks for them (one that refuses the field gets requests without it anyway).
    ``checks_model``: a request for a model that it does not list is refused; others answer whatever name it has.
    ``health_path`` answers 2xx while the engine is up; a server of OpenAI's API that has no such path is checked at
    ``MODELS_PATH``. ``unready_statuses``: those by which it says there that it takes no requests. ``paused_path``: has
    ``{"is_paused": true}`` while it holds its requests back.
    ``metrics_port_offset``: from the API's port to that of ``metrics_path``. ``prior``: the row of the efficiency table
    its step times are predicted from before any measurement; ``eras``: rows of older versions, newest first.
    ``discover`` recognises an engine of this kind by its pages and reads what it says of itself. ``version``: where a
    config's name of the engine states one (``vllm@0.9``). ``whole_prompts_since``: the version from which on the
    scheduler admits a request only where all of its prompt fits into the KV cache, and not its first chunk alone.
    """

    name: str
    prior: str
    aliases: tuple[str, ...] = ()
    eras: tuple[Era, ...] = ()
    protocol: str = OPENAI_PROTOCOL
    health_path: str = "/health"
    unready_statuses: frozenset[int] = frozenset({503})
    metrics_path: str = "/metrics"
    paused_path: str = ""
    metrics_port_offset: int = 0
    default_port: int = 80
    metrics: MetricsPage | None = None
    errors: ErrorDialect = ErrorDialect()
    translate: Translate | None = None
    states_usage: bool = True
    checks_model: bool = False
    scheduler: Scheduler = Scheduler.CHUNKED_PREFILL
    discover: Discover | None = None
    version: tuple[int, int] | None = None
    whole_prompts_since: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        """A protocol of its own without a translation would leave OpenAI's clients without an answer."""
        if (self.protocol == OPENAI_PROTOCOL) != (self.translate is None):
            raise ValueError(f"engine kind {self.name!r}: a translation is needed for, and only for, an own protocol")

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row of the efficiency table that belongs to this kind."""
        return tuple(dict.fromkeys((self.prior, *(era.row for era in self.eras))))

    @property
    def reserves_prompt(self) -> bool:
        """Whether its scheduler admits a request only where all of its prompt fits; without a version: today's does."""
        return self.version is None or self.version >= self.whole_prompts_since

    def of_version(self, version: tuple[int, int]) -> "EngineKind":
        """The kind as it was in this version."""
        return replace(self, prior=self.prior_of(version), eras=(), version=version)

    def prior_of(self, version: tuple[int, int]) -> str:
        """The row of the efficiency table for this version."""
        return next((era.row for era in self.eras if version >= era.since), self.prior)

    def health_url(self, url: str) -> str:
        """Where an engine at *url* answers health checks."""
        return url + self.health_path

    def models_url(self, url: str) -> str:
        """Where an engine at *url* lists its models, as every server of OpenAI's API does; empty for another API."""
        return url + MODELS_PATH if self.protocol == OPENAI_PROTOCOL else ""

    def metrics_url(self, url: str) -> str:
        """Where an engine at *url* has its metrics."""
        if not self.metrics_port_offset:
            return url + self.metrics_path
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        port = (parts.port or self.default_port) + self.metrics_port_offset
        return urlunsplit((parts.scheme, f"{host}:{port}", self.metrics_path, "", ""))
