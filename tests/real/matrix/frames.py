"""What a streamed reply holds, read from its bytes and the times they came: the reference that the gateway is held to.

Must not depend on the router: the same mistake on both sides would be no difference.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Piece = tuple[float, bytes]
"""Bytes of one read and when it came, on the clock of this process."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One event of a stream. ``data``: its payload, parsed where it is JSON; ``event``: its type, mostly empty."""

    at_s: float
    data: Any
    event: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as an engine states them; ``prompt`` includes what came from a prefix cache."""

    output: int
    prompt: int


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one endpoint's replies are read. ``text``: what one payload adds to the reply; ``ends``: it ends a stream.

    ``path`` may have a place for the model's name.
    """

    path: str
    body: Callable[[str, str, int], dict[str, Any]]
    text: Callable[[Any], str]
    ends: Callable[[Any], bool]


def pieces_of_body(reply: Sequence[Piece]) -> tuple[int, list[Piece]]:
    """Status and body of an HTTP reply as it came: each piece of the body with the time of its last byte."""
    joined = b"".join(data for _, data in reply)
    head, blank, _ = joined.partition(b"\r\n\r\n")
    if not blank:
        return 0, []
    status = int(head.split(b" ", 2)[1])
    body = list(_from(reply, len(head) + len(blank)))
    return status, list(_dechunked(body)) if b"transfer-encoding: chunked" in head.lower() else body


def _from(pieces: Iterable[Piece], skip: int) -> Iterator[Piece]:
    for at_s, data in pieces:
        if skip < len(data):
            yield at_s, data[skip:]
        skip = max(0, skip - len(data))


def _dechunked(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The content of chunks, cut as it came."""
    held, left = b"", 0  # bytes of an unfinished size line; what is left of the chunk, its CRLF included
    for at_s, data in pieces:
        held += data
        out = b""
        while held:
            if left:
                taken, held = held[:left], held[left:]
                left -= len(taken)
                out += taken[: len(taken) - max(0, 2 - left)] if left < 2 else taken
                continue
            line, ended, rest = held.partition(b"\r\n")
            if not ended:
                break
            held, left = rest, int(line.split(b";")[0], 16) + 2
        if out:
            yield at_s, out


def frames(body: Iterable[Piece]) -> list[Frame]:
    """The events of a stream, each at the time of the read that completed it; comments are no events.

    The last may lack its blank line: some servers end so after an error.
    """
    found, held, at_s = [], b"", 0.0
    for at_s, data in body:
        held = (held + data).replace(b"\r\n", b"\n")
        *whole, held = held.split(b"\n\n")
        found += [frame for event in whole if (frame := _frame(at_s, event.decode("utf-8", "replace")))]
    last = _frame(at_s, held.decode("utf-8", "replace"))
    return [*found, last] if last and isinstance(last.data, dict) else found


def _frame(at_s: float, event: str) -> Frame | None:
    fields: dict[str, list[str]] = {"data": [], "event": []}
    for line in event.split("\n"):
        name, _, value = line.partition(":")
        if name in fields:
            fields[name].append(value.removeprefix(" "))
    if not fields["data"] and not fields["event"]:
        return None
    payload = "\n".join(fields["data"])
    try:
        data = json.loads(payload)
    except ValueError:
        data = payload
    return Frame(at_s, data, "".join(fields["event"][-1:]))


@dataclass(slots=True)
class Reply:
    """One reply in a dialect. ``cut``: the connection ended before the reply did."""

    dialect: Dialect
    status: int
    frames: list[Frame]
    cut: bool = False
    texts: list[Frame] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [frame for frame in self.frames if self.dialect.text(frame.data)]

    @property
    def first_text_s(self) -> float | None:
        """When the first frame with text came."""
        return self.texts[0].at_s if self.texts else None

    @property
    def usage(self) -> Usage | None:
        """The last that its frames state of output and prompt, each for itself."""
        counts: dict[str, int] = {}
        for frame in self.frames:
            counts |= _counts(frame.data)
        return Usage(counts["output"], counts.get("prompt", 0)) if "output" in counts else None

    @property
    def stated_usage(self) -> bool:
        """Whether a frame has a usage that counts something."""
        return any(_counts(frame.data) for frame in self.frames)

    @property
    def capped(self) -> bool:
        """Whether it ended with the most tokens that were asked for."""
        return any(choice.get("finish_reason") == "length" for frame in self.frames for choice in _choices(frame.data))

    @property
    def ended_clean(self) -> bool:
        """Whether it ends as a whole reply does."""
        return not self.cut and not self.error and any(self.dialect.ends(frame.data) for frame in self.frames)

    @property
    def error(self) -> str:
        """The message of its error event; empty when it has none."""
        for frame in self.frames:
            if frame.event == "error" or _is_error(frame.data):
                return json.dumps(frame.data) or "error"
        return ""


def _is_error(data: Any) -> bool:
    if not isinstance(data, dict):
        return False
    return bool(data.get("error")) or data.get("type") in {"error", "response.failed"}


def _counts(data: Any) -> dict[str, int]:
    """Output and prompt tokens of one payload, wherever its dialect puts them."""
    if not isinstance(data, dict):
        return {}
    for holder in (data, data.get("message"), data.get("response")):
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict):
            return _named(usage)
    return {}


def _named(usage: dict[str, Any]) -> dict[str, int]:
    found = {}
    for name, keys in (("output", ("completion_tokens", "output_tokens")), ("prompt", ("prompt_tokens",))):
        for key in keys:
            if isinstance(usage.get(key), int):
                found[name] = usage[key]
    if isinstance(usage.get("input_tokens"), int):  # Anthropic's leave out what a cache had
        cached = (usage.get("cache_read_input_tokens") or 0) + (usage.get("cache_creation_input_tokens") or 0)
        found["prompt"] = usage["input_tokens"] + cached
    return found


# ---- the endpoints -----------------------------------------------------------------


def _chat_body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": True}


def _completion_body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}


def _messages_body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    return _chat_body(model, prompt, tokens)


def _responses_body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    return {"model": model, "input": prompt, "max_output_tokens": tokens, "ignore_eos": True, "stream": True}


def _generate_body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    return {"text_input": prompt, "max_tokens": tokens, "stream": True}


_DELTA_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


def _chat_text(data: Any) -> str:
    found = []
    for choice in _choices(data):
        delta = choice.get("delta") or {}
        found += [delta[name] for name in _DELTA_TEXTS if isinstance(delta.get(name), str)]
        if calls := delta.get("tool_calls"):
            found.append(json.dumps(calls))
    return "".join(found)


def _completion_text(data: Any) -> str:
    return "".join(choice.get("text") or "" for choice in _choices(data))


def _choices(data: Any) -> list[dict[str, Any]]:
    return (data.get("choices") or []) if isinstance(data, dict) else []


def _messages_text(data: Any) -> str:
    if not isinstance(data, dict) or data.get("type") != "content_block_delta":
        return ""
    delta = data.get("delta") or {}
    return "".join(delta.get(name) or "" for name in ("text", "thinking", "partial_json"))


def _responses_text(data: Any) -> str:
    if not isinstance(data, dict) or not str(data.get("type", "")).endswith(".delta"):
        return ""
    return data["delta"] if isinstance(data.get("delta"), str) else ""


def _generate_text(data: Any) -> str:
    return data.get("text_output") or "" if isinstance(data, dict) else ""


def _done(data: Any) -> bool:
    return bool(data == "[DONE]")


def _of_type(*types: str) -> Callable[[Any], bool]:
    return lambda data: isinstance(data, dict) and data.get("type") in types


def _any(data: Any) -> bool:
    return isinstance(data, dict) and not _is_error(data)


CHAT = Dialect("/v1/chat/completions", _chat_body, _chat_text, _done)
COMPLETIONS = Dialect("/v1/completions", _completion_body, _completion_text, _done)
MESSAGES = Dialect("/v1/messages", _messages_body, _messages_text, _of_type("message_stop"))
RESPONSES = Dialect(
    "/v1/responses",
    _responses_body,
    _responses_text,
    _of_type("response.completed", "response.incomplete"),
)
GENERATE = Dialect("/v2/models/{model}/generate_stream", _generate_body, _generate_text, _any)
