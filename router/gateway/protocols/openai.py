"""Reads request bodies: OpenAI's paths, Anthropic's messages, rerank, tokenize.

Must not depend on backends. Only fields that the gateway uses are checked; the engine judges the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from router.core.errors import Rejected
from router.gateway.protocols.answers import Dialect, error_mark
from router.gateway.protocols.blocks import BLOCK_BYTES, NO_BLOCKS, blocks_of

# Pieces of a prompt: text as it is; above 0, that many token ids; UNSEEN, content that is not read, such as an image;
# below 0, the role of the message that begins here.
Pieces = list[str | int]
UNSEEN: Final = 0
_SYSTEM, _USER, _ASSISTANT, _TOOL, _OTHER_ROLE = range(-1, -6, -1)
_ROLES: Final = {"system": _SYSTEM, "developer": _SYSTEM, "user": _USER, "assistant": _ASSISTANT, "tool": _TOOL}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path that is routed. ``prompt`` finds the engine's prompt in the body.

    ``ends_with_done``: streams end with ``[DONE]``; ``output``: the body's caps on output tokens, the first one counts;
    ``generates``: a reply is generated, so that the prompt's KV is in the engine's prefix cache afterwards.
    """

    path: str
    dialect: Dialect
    prompt: Callable[[Mapping[str, Any]], Pieces]
    output: tuple[str, ...] = ()
    ends_with_done: bool = False
    method: bytes = b"POST"
    generates: bool = False

    @property
    def error_mark(self) -> bytes:
        """The beginning of an error event in a stream of this endpoint."""
        return error_mark(self.dialect)


class RequestBody:
    """A request's body as read, never changed: ``document`` is the body parsed, None where only its size counts.

    ``prompt_chars`` of text and ``prompt_ids`` token ids make up the prompt, which begins with the blocks that
    ``prefix`` names, each of ``block_chars`` characters on average; ``path`` as sent, query included.
    No dataclass: one is made for every request, and a dataclass's own constructor is never compiled.
    """

    __slots__ = (
        "block_chars",
        "body",
        "document",
        "endpoint",
        "model",
        "output_tokens_max",
        "path",
        "prefix",
        "prompt_chars",
        "prompt_ids",
        "stream",
    )  # fmt: skip

    def __init__(
        self,
        endpoint: Endpoint,
        path: bytes,
        model: str,
        stream: bool,
        body: bytes,
        document: dict[str, Any] | None,
        prompt_chars: int,
        prompt_ids: int = 0,
        output_tokens_max: int = 0,
        prefix: tuple[int, ...] = (),
        block_chars: float = 0.0,
    ) -> None:
        self.endpoint = endpoint
        self.path = path
        self.model = model
        self.stream = stream
        self.body = body
        self.document = document
        self.prompt_chars = prompt_chars
        self.prompt_ids = prompt_ids
        self.output_tokens_max = output_tokens_max
        self.prefix = prefix
        self.block_chars = block_chars


def read(endpoint: Endpoint, path: bytes, body: bytes, prefix_blocks_max: int = 0) -> RequestBody:
    """Read *body*. Raises Rejected with 400 naming the field that is wrong."""
    document = parse(body)
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("model", "the name of a model", model, missing="model" not in document)
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _wrong("stream", "true or false", stream)
    blocks_max = prefix_blocks_max if endpoint.generates else 0
    text, chars, ids = _measured(endpoint.prompt(document), blocks_max * BLOCK_BYTES)
    salt = document.get("cache_salt")
    prefix, block_chars = (
        blocks_of(text, model, salt if isinstance(salt, str) else "", blocks_max) if text else NO_BLOCKS
    )
    output_max = _output_tokens_max(endpoint, document)
    return RequestBody(endpoint, path, model, bool(stream), body, document, chars, ids, output_max, prefix, block_chars)


def _measured(pieces: Pieces, chars_max: int) -> tuple[list[str], int, int]:
    """The prompt's first characters, ``chars_max`` or a piece more, as far as they are seen; how many characters it has
    in all, and how many token ids. A role is one character of the first and none of the second.
    """
    text: list[str] = []
    chars = ids = 0
    for piece in pieces:
        if isinstance(piece, str):
            chars += len(piece)
            if chars_max > 0:
                text.append(piece)
                chars_max -= len(piece)
        elif piece >= UNSEEN:
            ids += piece
            chars_max = 0
        elif chars_max > 0:
            text.append(chr(-piece))
    return text, chars, ids


def parse(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises Rejected with 400 saying where it stops being one."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Rejected(400, f"body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Rejected(400, f"body: expected a JSON object, not {_kind(document)}")
    return document


def _output_tokens_max(endpoint: Endpoint, document: Mapping[str, Any]) -> int:
    for name in endpoint.output:
        value = document.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _wrong(name, "a number of tokens", value)
        return value
    return 0


def _chat(document: Mapping[str, Any]) -> Pieces:
    """Messages as templates put them: tools after the system's message, or first where there is none."""
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "a list of at least one message", messages, missing="messages" not in document)
    pieces: Pieces = []
    tools = _as_text(document.get("tools"))
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong(f"messages[{index}]", "an object", message)
        role = _role(message)
        if tools and role != _SYSTEM:
            pieces += tools
            tools = []
        pieces.append(role)
        pieces += _content(message.get("content"), f"messages[{index}].content")
        if "tool_calls" in message:
            pieces += _as_text(message["tool_calls"])
    return pieces + tools


def _role(message: Mapping[str, Any]) -> int:
    role = message.get("role")
    return _ROLES.get(role, _OTHER_ROLE) if isinstance(role, str) else _OTHER_ROLE


def _as_text(value: Any) -> Pieces:
    """What a template writes out as JSON: schemas of tools, calls of them."""
    return [orjson.dumps(value).decode()] if value else []


def _content(content: Any, name: str) -> Pieces:
    if content is None:  # an assistant's tool calls come without text
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise _wrong(name, "text or a list of parts", content)
    pieces: Pieces = []
    for part in content:
        if isinstance(part, dict):
            pieces += _part(part, name)
    return pieces


def _part(part: Mapping[str, Any], name: str) -> Pieces:
    """One part of a message: text, Anthropic's tool parts, or content that is not read."""
    text = part.get("text")
    if isinstance(text, str):
        return [text]
    match part.get("type"):
        case "tool_use":
            return _as_text([part.get("name"), part.get("input")])
        case "tool_result":
            return _content(part.get("content"), f"{name}.content")
        case "thinking" | "redacted_thinking":  # of an earlier turn: templates leave it out
            return []
        case _:
            return [UNSEEN]


def _anthropic(document: Mapping[str, Any]) -> Pieces:
    system = _content(document.get("system"), "system")
    return [_SYSTEM, *system, *_chat(document)] if system else _chat(document)


def _completion(document: Mapping[str, Any]) -> Pieces:
    if "prompt" not in document and "prompt_embeds" not in document:
        raise _wrong("prompt", "text, token ids, or a list of either", None, missing=True)
    return _texts_or_ids(document.get("prompt"), "prompt")


def _texts_or_ids(value: Any, name: str) -> Pieces:
    """Text as it is, a list of token ids as their count; lists of either in turn."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _wrong(name, "text, token ids, or a list of either", value)
    if value and isinstance(value[0], int):
        return [len(value)]
    pieces: Pieces = []
    for item in value:
        pieces += [len(item)] if isinstance(item, list) else [item] if isinstance(item, str) else []
    return pieces


def _embedding(document: Mapping[str, Any]) -> Pieces:
    if "messages" in document:
        return _chat(document)
    if "input" not in document:
        raise _wrong("input", "text, token ids, or a list of either", None, missing=True)
    return _texts_or_ids(document["input"], "input")


def _responses(document: Mapping[str, Any]) -> Pieces:
    given = document.get("input")
    if given is None:
        raise _wrong("input", "text or a list of items", None, missing=True)
    if not isinstance(given, str | list):
        raise _wrong("input", "text or a list of items", given)
    pieces: Pieces = [UNSEEN] if document.get("previous_response_id") else []  # only the engine has the earlier turns
    pieces += [_SYSTEM, *_content(document.get("instructions"), "instructions"), *_as_text(document.get("tools"))]
    if isinstance(given, str):
        return [*pieces, _USER, given]
    for index, item in enumerate(given):
        if isinstance(item, dict):
            pieces.append(_role(item))
            pieces += _content(item.get("content"), f"input[{index}].content")
            pieces += [item[key] for key in ("arguments", "output") if isinstance(item.get(key), str)]
    return pieces


def _any(*names: str) -> Callable[[Mapping[str, Any]], Pieces]:
    """Text under any of these names, none of them required: the engine checks its own fields."""

    def pieces(document: Mapping[str, Any]) -> Pieces:
        found: Pieces = []
        for name in names:
            value = document.get(name)
            found += _texts_or_ids(value, name) if isinstance(value, str | list) else []
        return found

    return pieces


def _wrong(name: str, expected: str, value: Any, *, missing: bool = False) -> Exception:
    found = f"{name} is missing" if missing else f"{name}: got {_kind(value)}"
    return Rejected(400, f"{found}; expected {expected}", name)


def _kind(value: Any) -> str:
    kinds = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "text" if isinstance(value, str) else "an object")


_CHAT_OUTPUT: Final = ("max_completion_tokens", "max_tokens")
_RANKED: Final = _any("query", "documents", "text_1", "text_2", "queries", "items", "data_1", "data_2")

ENDPOINTS: Final = {
    endpoint.path.encode(): endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", Dialect.OPENAI, _chat, _CHAT_OUTPUT, ends_with_done=True, generates=True),
        Endpoint("/v1/completions", Dialect.OPENAI, _completion, ("max_tokens",), ends_with_done=True, generates=True),
        Endpoint("/v1/embeddings", Dialect.OPENAI, _embedding),
        Endpoint("/v1/responses", Dialect.RESPONSES, _responses, ("max_output_tokens",), generates=True),
        Endpoint("/v1/messages", Dialect.ANTHROPIC, _anthropic, ("max_tokens",), generates=True),
        Endpoint("/v1/messages/count_tokens", Dialect.ANTHROPIC, _anthropic),
        Endpoint("/v1/rerank", Dialect.OPENAI, _RANKED),
        Endpoint("/v2/rerank", Dialect.OPENAI, _RANKED),
        Endpoint("/rerank", Dialect.OPENAI, _RANKED),
        Endpoint("/score", Dialect.OPENAI, _RANKED),
        Endpoint("/v1/score", Dialect.OPENAI, _RANKED),
        Endpoint("/tokenize", Dialect.OPENAI, _any("prompt")),
        Endpoint("/detokenize", Dialect.OPENAI, _any("tokens")),
    )
}
