"""What an event of an engine's stream is: a token, the structure around tokens, an error, the end.

The forms of all dialects are distinguished by their fields: nothing depends on the path or the kind of an engine.
Must not depend on how a body is framed, or on what becomes of an event.
"""

import json
import re
from typing import Any, Final

import orjson

STRUCTURE: Final = 0  # roles, created and in_progress events, pings, progress, usage: nothing that was generated
TOKEN: Final = 1
ERROR: Final = 2

DATA: Final = b"\ndata:"  # where an event's payload begins: JSON holds no raw line feed
DONE: Final = b"[DONE]"  # the payload that ends an OpenAI stream
_ERROR_TYPES: Final = frozenset({"error", "response.failed", "response.error", "response.cancelled"})
_ERROR_NAMES: Final = frozenset(each.encode() for each in _ERROR_TYPES) | {
    b"exception",
    b"failure",
    b"failed",
    b"fatal",
}
_PING_NAMES: Final = frozenset({"ping", "heartbeat", "keepalive", "keep-alive", "keep_alive"})
_NOTHING: Final = frozenset({b"{}", b"[]", b'""', b"null"})  # payloads in which nothing is
_WHOLE_TYPES: Final = frozenset({"response.completed", "response.incomplete"})  # those have the whole reply once more
LAST_TYPES: Final = _WHOLE_TYPES | {"message_stop"}
# Of a reply that the engine gave up, as reason of its end or as its status
_FAILED: Final = frozenset({"error", "abort", "aborted", "failed", "cancelled", "insufficient_system_resource"})
FAILED_FINISH: Final = (  # those that no other sign shows; the last is DeepSeek's
    rb'"finish_reason"\s*:\s*"(abort(?:ed)?|cancelled|insufficient_system_resource)"'
)
LAST: Final = (  # a pattern: one of them names an event that is not parsed (in text its quotes would be escaped)
    rb'(?:"type"\s*:\s*"|(?m:^)event: ?)(?:'
    + b"|".join(re.escape(name).encode() for name in sorted(LAST_TYPES))
    + rb")"
)
# Put together by hand (`transformers serve`): no JSON where its message has quotes or several lines.
_UNESCAPED_ERROR: Final = re.compile(rb'\{\s*"error"\s*:')
_LONE_CR: Final = re.compile(rb"\r(?!\n|\Z)|(?<=\r)\r\Z")
_MAY_FAIL: Final = re.compile(  # a message that is text is an error's: a reply's is an object
    rb'rror|"detail"|"abort|"failed"|"cancelled"|"message"\s*:\s*"|"msg"\s*:\s*"|"success"\s*:\s*false'
)
_STATUSES: Final = range(400, 600)
_STATUS_NAMES: Final = ("code", "status", "status_code", "statusCode")
_AROUND_MESSAGE: Final = frozenset(  # what an error has beside its message where it states no status
    {"message", "msg", "type", "exception", "request_id", "requestId", "trace", "traceback", "path", "timestamp"}
)
_NOT_GENERATED: Final = frozenset(
    {"role", "type", "id", "index", "annotations", "provider_specific_fields"}
)  # of a delta
_OF_PART: Final = ("text", "thinking", "data", "refusal", "name", "arguments", "code", "content", "summary")
Document = dict[str, Any]  # as parsed: compiled code reads it without going through the mapping protocol


class Event:
    """One event as read.

    ``document``: its data as a JSON object, empty where it is none; ``last``: the reply is complete with it, but for
    usage and ``[DONE]``; ``ping``: a sign of life and nothing else; ``text_bytes``: of generated text as it stands in
    JSON, -1 for a token whose text is not all that was generated (token ids, log probabilities); ``repeats``: its text
    has come before, piece by piece, where it came so at all.
    """

    __slots__ = ("document", "kind", "last", "payload", "ping", "repeats", "text_bytes")

    def __init__(self, name: bytes, payload: bytes) -> None:
        self.payload = payload
        self.document: Document = _object(payload)
        self.kind = STRUCTURE
        self.last = self.repeats = False
        self.text_bytes = 0
        self.ping = _is_ping(name, self.document)
        if self.ping:
            return
        if name in _ERROR_NAMES or _is_error(self.document):
            self.kind = ERROR
        elif self.document:
            self._read(name)
            if _failed_reason(self.document):
                self.kind = ERROR
        elif payload == DONE:
            self.last = True
        elif _UNESCAPED_ERROR.match(payload):
            self.kind = ERROR
        elif payload and payload not in _NOTHING:
            self.kind, self.text_bytes = TOKEN, len(payload)

    def _read(self, name: bytes) -> None:
        document = self.document
        choices = document.get("choices")
        if isinstance(choices, list):
            for choice in choices:
                if isinstance(choice, dict):
                    self.last = self.last or bool(choice.get("finish_reason"))
                    self._read_choice(choice)
            return
        stated = document.get("type")
        named = stated if isinstance(stated, str) else name.decode("latin-1")
        self.last = named in LAST_TYPES
        self.repeats = named in _WHOLE_TYPES or named.endswith(".done")
        for each in _of_typed(document, named) if named else _of_untyped(document):
            self._holds(each)

    def _read_choice(self, choice: Document) -> None:
        """What was generated for one choice of a chat or completion."""
        delta = choice.get("delta") or choice.get("message")
        if isinstance(delta, dict):
            self._read_delta(delta)
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            for each in (logprobs.get("content"), logprobs.get("tokens")):
                if isinstance(each, list):
                    self._holds(each)
        self._holds(choice.get("text"))
        self._holds(choice.get("token_ids"))

    def _read_delta(self, delta: Document) -> None:
        for key, value in delta.items():
            if value and key not in _NOT_GENERATED:
                self._holds(value)

    def _holds(self, generated: Any) -> None:
        """A field of it that holds what was generated, if anything."""
        if generated:
            self.kind = TOKEN
            size = _text_bytes(generated)
            self.text_bytes = self.text_bytes + size if self.text_bytes >= 0 and size >= 0 else -1

    def choices(self) -> list[tuple[int, bool]]:
        """The index of each choice in it, and whether that has finished."""
        found: list[tuple[int, bool]] = []
        choices = self.document.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                index = choice.get("index")
                found.append((index if isinstance(index, int) else 0, bool(choice.get("finish_reason"))))
        return found

    @property
    def usage(self) -> Document | None:
        """Token counts that the engine states in it."""
        usage = self.document.get("usage")
        if isinstance(usage, dict):
            return usage
        for name in ("response", "message"):
            holder = self.document.get(name)
            usage = holder.get("usage") if isinstance(holder, dict) else None
            if isinstance(usage, dict):
                return usage
        return None

    @property
    def usage_alone(self) -> bool:
        """Whether OpenAI's ``include_usage`` is all that it is there for. LiteLLM adds a choice in which nothing is."""
        choices = self.document.get("choices")
        if self.kind == TOKEN or self.last or not isinstance(choices, list):
            return False
        for choice in choices:
            if not isinstance(choice, dict) or choice.get("delta"):
                return False
        return isinstance(self.document.get("usage"), dict)

    @property
    def without_usage(self) -> bytes:
        """The line that takes the place of an event of usage alone; empty: none. llama.cpp's ``timings`` stand in the
        event of the finish reason where usage is not asked for.
        """
        document = self.document
        if "timings" not in document:
            return b""
        chat = document.get("object") != "text_completion"
        choice: Document = {"index": 0, "delta": {}} if chat else {"index": 0, "text": ""}
        choice["finish_reason"] = None
        kept = {name: value for name, value in document.items() if name != "usage"}
        return b"data: " + orjson.dumps(kept | {"choices": [choice]})

    @property
    def error(self) -> bytes:
        """The payload of an error in a form that ErrorDialect reads."""
        document = self.document
        response = document.get("response")
        if document.get("type") == "response.failed" and isinstance(response, dict) and response.get("error"):
            return orjson.dumps({"error": response["error"]})
        if document.get("error_code"):  # FastChat
            return orjson.dumps({"error": {"message": document.get("text"), "code": document["error_code"]}})
        if (of_choice := _choice_error(document)) is not None:
            return orjson.dumps({"error": of_choice})
        unescaped = None if document else _UNESCAPED_ERROR.match(self.payload)
        if unescaped is not None:
            return orjson.dumps({"error": self.payload[unescaped.end() :].decode("utf-8", "replace").strip(' "}')})
        reason = "" if _is_error(document) else _failed_reason(document)
        return failed_finish(reason) if reason else self.payload


def failed_finish(reason: str) -> bytes:
    """The error, in a form that ErrorDialect reads, of a reply that ended for that reason."""
    return orjson.dumps({"error": {"message": f"the engine gave the reply up: {reason}", "code": 500}})


def plain_error(payload: bytes) -> bytes:
    """The same of an event that is no JSON among those that are: a traceback, a page, a line of a log."""
    return orjson.dumps({"error": {"message": payload.decode("utf-8", "replace"), "code": 500}})


def is_json(payload: bytes) -> bool:
    """Whether a client's parser may read it: Python's takes NaN and Infinity too, JavaScript's half of a surrogate
    pair, and engines that are written in these languages send them. orjson takes neither.
    """
    try:
        json.loads(payload.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def error_of_whole(body: bytes) -> bytes | None:
    """The error that a whole reply is, in a form that ErrorDialect reads; None: it is none."""
    if _MAY_FAIL.search(body) is None:
        return None
    event = Event(b"", body.strip())
    return event.error if event.kind == ERROR else None


def read_events(text: bytes) -> list[Event]:
    """The events of *text*, which holds one up to its blank line, comments beside it; two where only line ends separate
    them, as some servers write them.
    """
    first_end = text.find(b"\n")
    if text.startswith(b"data: ") and first_end == len(text) - 2 and text.endswith(b"\n\n"):  # as most are
        return [Event(b"", text[6:first_end].strip())]
    name = b""
    data: list[bytes] = []
    for raw in text.split(b"\n"):
        line = raw.strip(b"\r")
        if line.startswith(b"data:"):
            data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    if not data:
        return [Event(name, b"")] if name else []
    if len(data) > 1 and all(line == DONE or _object(line) for line in data if line):
        return [Event(name, line) for line in data if line]
    return [Event(name, b"\n".join(data).strip())]


def with_line_feeds(text: bytes) -> bytes:
    """*text* with a line feed for each carriage return that is a line end of its own, which streams may have; the last
    byte may be half of one.
    """
    if text.find(b"\r") < 0 or text.count(b"\r") == text.count(b"\r\n"):
        return text
    return _LONE_CR.sub(b"\n", text)


def has_token(text: bytes) -> bool:
    """Whether an event in *text*, which begins where a line does, holds a token that did not come before."""
    for part in (b"\n" + text).split(DATA)[1:]:
        for event in read_events(DATA[1:] + part.partition(b"\n")[0]):
            if event.kind == TOKEN and not event.repeats:
                return True
    return False


def _object(payload: bytes) -> Document:
    if payload[:1] != b"{":
        return {}
    try:
        document = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _is_ping(name: bytes, document: Document) -> bool:
    """Named so, by itself or by its type: whatever it holds, no model has generated that."""
    if name and name.decode("latin-1").lower() in _PING_NAMES:
        return True
    stated = document.get("type")
    return isinstance(stated, str) and stated.lower() in _PING_NAMES


def _is_error(document: Document) -> bool:
    """OpenAI's, Anthropic's and Triton's errors, those of /v1/responses, LMDeploy's, FastAPI's and FastChat's; flat
    ones, and those of a choice.
    """
    error = document.get("error")
    if error or (error == {} and not document.get("choices")) or _choice_error(document) is not None:
        return True
    named = document.get("type")
    if (isinstance(named, str) and named in _ERROR_TYPES) or document.get("object") == "error":
        return True
    return (
        bool(document.get("error_code"))
        or (
            not document.keys() & {"choices", "type"}
            and (bool(document.get("detail")) or document.get("success") is False)
        )
        or _is_flat_error(document)
    )


def _is_flat_error(document: Document) -> bool:
    """A message and perhaps a status with nothing around them, as Dynamo's frontend and web frameworks write it."""
    if document.get("errors") and "choices" not in document:
        return True
    if not isinstance(document.get("message", document.get("msg")), str) or "choices" in document:
        return False
    stated = [document.get(name) for name in _STATUS_NAMES]
    return document.keys() <= _AROUND_MESSAGE or any(
        each == "error" or (isinstance(each, int) and each in _STATUSES) for each in stated
    )


def _choice_error(document: Document) -> Any:
    """The error that a choice holds, as OpenRouter writes it; None: none does."""
    choices = document.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("error"):
            return choice["error"]
    return None


def _failed_reason(document: Document) -> str:
    """Why the engine gave the reply up, by its finish reason or status; empty: it did not."""
    choices = document.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            reason = choice.get("finish_reason") if isinstance(choice, dict) else None
            if isinstance(reason, str) and reason in _FAILED:
                return reason
        return ""
    delta, response = document.get("delta"), document.get("response")
    reasons = [(delta if isinstance(delta, dict) else document).get("stop_reason")]
    whole = response if isinstance(response, dict) else document if document.get("object") == "response" else {}
    details = whole.get("incomplete_details")
    reasons += [whole.get("status"), details.get("reason") if isinstance(details, dict) else None]
    return next((reason for reason in reasons if isinstance(reason, str) and reason in _FAILED), "")


def _of_typed(document: Document, named: str) -> list[Any]:
    """Of an event of /v1/responses or of Anthropic's messages."""
    if named in _WHOLE_TYPES:
        response = document.get("response")
        return [response.get("output")] if isinstance(response, dict) else []
    if named.endswith((".delta", "_delta")):
        delta = document.get("delta")
        if named == "message_delta":
            return []
        return _values(delta) if isinstance(delta, dict) else [delta]
    inner = document.get("content_block", document.get("item", document.get("part")))
    found = [inner.get(name) for name in _OF_PART] if isinstance(inner, dict) else []
    if named.endswith(".done"):
        found += [document.get("text"), document.get("arguments"), document.get("refusal")]
    return found


def _of_untyped(document: Document) -> list[Any]:
    """Of Triton's generate_stream, and of servers that have a form of their own."""
    text = document.get("text_output", document.get("text"))
    return [
        "".join(map(str, text)) if isinstance(text, list) else text,
        document.get("token"),
        document.get("output_ids"),
    ]


def _values(delta: Document) -> list[Any]:
    return [value for key, value in delta.items() if key not in _NOT_GENERATED]


def _text_bytes(value: Any) -> int:
    """Bytes of text as JSON has it between its quotes; of an object, such as a token with its text, its own; -1:
    it is no text.
    """
    if isinstance(value, str | dict):
        return max(len(orjson.dumps(value)) - 2, 0)
    return -1
