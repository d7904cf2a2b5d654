"""What a request looks like on the wire: OpenAI's paths, Anthropic's messages, rerank, tokenize.

Believes: the body alone. Must not know where it will go; what the gateway does not need is for the engine to judge.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

import orjson

from router.gateway.answers import Dialect, rejected

PREFIX_BLOCK_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Surface:
    """One path that is routed. ``prompt`` finds the text that an engine will read in the body.

    ``ends_with_done``: streams end with ``[DONE]``; ``output``: the body's caps on output tokens, the first one counts.
    """

    path: str
    dialect: Dialect
    prompt: Callable[[Mapping[str, Any]], list[str | int]]
    output: tuple[str, ...] = ()
    ends_with_done: bool = False
    method: bytes = b"POST"


class Call:
    """One request as read, never changed: ``document`` is the body parsed, None where only its size counts.

    ``prompt_chars`` of text and ``prompt_ids`` token ids make up the prompt; ``path`` as sent, query included.
    No dataclass: one is made for every request, and a dataclass's own constructor is never compiled.
    """

    __slots__ = (
        "body", "document", "model", "output_tokens_max", "path", "prefix", "prompt_chars", "prompt_ids", "stream",
        "surface",
    )  # fmt: skip

    def __init__(
        self,
        surface: Surface,
        path: bytes,
        model: str,
        stream: bool,
        body: bytes,
        document: dict[str, Any] | None,
        prompt_chars: int,
        prompt_ids: int = 0,
        output_tokens_max: int = 0,
        prefix: tuple[int, ...] = (),
    ) -> None:
        self.surface = surface
        self.path = path
        self.model = model
        self.stream = stream
        self.body = body
        self.document = document
        self.prompt_chars = prompt_chars
        self.prompt_ids = prompt_ids
        self.output_tokens_max = output_tokens_max
        self.prefix = prefix


def read(surface: Surface, path: bytes, body: bytes, prefix_blocks_max: int = 0) -> Call:
    """The call in *body*. Raises Rejected with 400 naming the field that is wrong."""
    document = parse(body)
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("model", "the name of a model", model, missing="model" not in document)
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _wrong("stream", "true or false", stream)
    text: list[str] = []
    chars = ids = 0
    for piece in surface.prompt(document):
        if isinstance(piece, str):
            text.append(piece)
            chars += len(piece)
        else:
            ids += piece
    prefix = prefix_hashes("".join(text), prefix_blocks_max) if prefix_blocks_max else ()
    output_max = _output_tokens_max(surface, document)
    return Call(surface, path, model, bool(stream), body, document, chars, ids, output_max, prefix)


def parse(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises Rejected with 400 saying where it stops being one."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise rejected(400, f"body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise rejected(400, f"body: expected a JSON object, not {_kind(document)}")
    return document


def _output_tokens_max(surface: Surface, document: Mapping[str, Any]) -> int:
    for name in surface.output:
        value = document.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _wrong(name, "a number of tokens", value)
        return value
    return 0


def prefix_hashes(text: str, blocks_max: int) -> tuple[int, ...]:
    """Hashes of the prompt's successive whole blocks, each covering everything before it."""
    data = text[: blocks_max * PREFIX_BLOCK_BYTES].encode("utf-8", "surrogatepass")
    hashes: list[int] = []
    so_far = 0
    for end in range(PREFIX_BLOCK_BYTES, len(data) + 1, PREFIX_BLOCK_BYTES):
        so_far = crc32(data[end - PREFIX_BLOCK_BYTES : end], so_far)
        hashes.append(so_far)
    return tuple(hashes[:blocks_max])


def _chat(document: Mapping[str, Any]) -> list[str | int]:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "a list of at least one message", messages, missing="messages" not in document)
    pieces: list[str | int] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong(f"messages[{index}]", "an object", message)
        pieces += _content(message.get("content"), f"messages[{index}].content")
    return pieces


def _content(content: Any, name: str) -> list[str | int]:
    if content is None:  # an assistant's tool calls come without text
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise _wrong(name, "text or a list of parts", content)
    return [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _anthropic(document: Mapping[str, Any]) -> list[str | int]:
    return [*_content(document.get("system"), "system"), *_chat(document)]


def _completion(document: Mapping[str, Any]) -> list[str | int]:
    if "prompt" not in document and "prompt_embeds" not in document:
        raise _wrong("prompt", "text, token ids, or a list of either", None, missing=True)
    return _texts_or_ids(document.get("prompt"), "prompt")


def _texts_or_ids(value: Any, name: str) -> list[str | int]:
    """Text as it is, a list of token ids as their count; lists of either in turn."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _wrong(name, "text, token ids, or a list of either", value)
    if value and isinstance(value[0], int):
        return [len(value)]
    pieces: list[str | int] = []
    for item in value:
        pieces += [len(item)] if isinstance(item, list) else [item] if isinstance(item, str) else []
    return pieces


def _embedding(document: Mapping[str, Any]) -> list[str | int]:
    if "messages" in document:
        return _chat(document)
    if "input" not in document:
        raise _wrong("input", "text, token ids, or a list of either", None, missing=True)
    return _texts_or_ids(document["input"], "input")


def _responses(document: Mapping[str, Any]) -> list[str | int]:
    given = document.get("input")
    if given is None:
        raise _wrong("input", "text or a list of items", None, missing=True)
    if isinstance(given, str):
        return [given, *_content(document.get("instructions"), "instructions")]
    if not isinstance(given, list):
        raise _wrong("input", "text or a list of items", given)
    pieces = _content(document.get("instructions"), "instructions")
    for index, item in enumerate(given):
        if isinstance(item, dict):
            pieces += _content(item.get("content"), f"input[{index}].content")
    return pieces


def _any(*names: str) -> Callable[[Mapping[str, Any]], list[str | int]]:
    """Text under any of these names, none of them asked for: the engine knows what it needs."""

    def pieces(document: Mapping[str, Any]) -> list[str | int]:
        found: list[str | int] = []
        for name in names:
            value = document.get(name)
            found += _texts_or_ids(value, name) if isinstance(value, str | list) else []
        return found

    return pieces


def _wrong(name: str, expected: str, value: Any, *, missing: bool = False) -> Exception:
    said = f"{name} is missing" if missing else f"{name}: got {_kind(value)}"
    return rejected(400, f"{said}; expected {expected}", name)


def _kind(value: Any) -> str:
    kinds = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "text" if isinstance(value, str) else "an object")


_CHAT_OUTPUT: Final = ("max_completion_tokens", "max_tokens")
_RANKED: Final = _any("query", "documents", "text_1", "text_2", "queries", "items", "data_1", "data_2")

SURFACES: Final = {
    surface.path.encode(): surface
    for surface in (
        Surface("/v1/chat/completions", Dialect.OPENAI, _chat, _CHAT_OUTPUT, ends_with_done=True),
        Surface("/v1/completions", Dialect.OPENAI, _completion, ("max_tokens",), ends_with_done=True),
        Surface("/v1/embeddings", Dialect.OPENAI, _embedding),
        Surface("/v1/responses", Dialect.RESPONSES, _responses, ("max_output_tokens",)),
        Surface("/v1/messages", Dialect.ANTHROPIC, _anthropic, ("max_tokens",)),
        Surface("/v1/messages/count_tokens", Dialect.ANTHROPIC, _anthropic),
        Surface("/v1/rerank", Dialect.OPENAI, _RANKED),
        Surface("/v2/rerank", Dialect.OPENAI, _RANKED),
        Surface("/rerank", Dialect.OPENAI, _RANKED),
        Surface("/score", Dialect.OPENAI, _RANKED),
        Surface("/v1/score", Dialect.OPENAI, _RANKED),
        Surface("/tokenize", Dialect.OPENAI, _any("prompt")),
        Surface("/detokenize", Dialect.OPENAI, _any("tokens")),
    )
}
