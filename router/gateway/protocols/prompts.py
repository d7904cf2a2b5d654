"""Finds the prompt in a request's body: what of it the engine puts before the model, and in which order.

Must not depend on backends. Only fields that the gateway uses are checked; the engine judges the rest.
"""

from collections.abc import Callable
from math import ceil
from typing import Any, Final

import orjson

from router.core.errors import Rejected
from router.core.text_size import TEXT_SIGMA, text_tokens
from router.gateway.protocols import media
from router.gateway.protocols.media import MEDIA_SIGMA, Sized

# Pieces of a prompt: text as it is; above 0, that many token ids; UNSEEN, content that is not read; below 0, the role
# of the message that begins here, or NEXT, between two prompts of one request; Sized, content whose size alone is
# known, such as an image.
Pieces = list[str | int | Sized]
UNSEEN: Final = 0
NEXT: Final = -64
_SYSTEM, _USER, _ASSISTANT, _TOOL, _OTHER_ROLE = range(-1, -6, -1)
_ROLES: Final = {"system": _SYSTEM, "developer": _SYSTEM, "user": _USER, "assistant": _ASSISTANT, "tool": _TOOL}

# What a reply has to fit: some servers write it into the prompt, others only hold the sampling to it.
_FORMATS: Final = (
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "structured_outputs",
    "json_schema",
    "grammar",
    "regex",
    "ebnf",
)


class PromptSize:
    """Tokens of a prompt, and ``sigma``, the standard deviation of the log of what they really are over that: 0 where
    all are token ids, which are exact. ``text``: its first characters, as far as they are seen. Of several ``prompts``
    all together, with the ``longest`` of them.
    """

    __slots__ = ("longest", "prompts", "sigma", "text", "tokens")

    def __init__(self, pieces: Pieces, chars_max: int = 0) -> None:
        """``chars_max``: of ``text``, or a piece more. A role is one character there, and no token."""
        text: list[str] = []
        tokens = weighted = before = longest = 0.0
        prompts = 1
        for piece in pieces:
            if isinstance(piece, str):
                size = text_tokens(piece)
                tokens += size
                weighted += TEXT_SIGMA * size
                if chars_max > 0:
                    text.append(piece)
                    chars_max -= len(piece)
            elif isinstance(piece, Sized):
                tokens += piece.tokens
                weighted += piece.sigma * piece.tokens
                chars_max = 0
            elif piece >= UNSEEN:
                tokens += piece
                chars_max = 0
            elif piece == NEXT:
                prompts += 1
                longest, before = max(longest, tokens - before), tokens
                chars_max = 0
            elif chars_max > 0:
                text.append(chr(-piece))
        self.text = text
        self.tokens = max(1, ceil(tokens))
        self.prompts = prompts
        self.longest = ceil(max(longest, tokens - before)) if prompts > 1 else 0
        self.sigma = weighted / tokens if tokens > 0.0 else 0.0


def chat(document: dict[str, Any]) -> Pieces:
    """Messages as templates put them: tools after the system's message, or first where there is none."""
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "a list of at least one message", messages, missing="messages" not in document)
    pieces: Pieces = []
    tools = [*_as_text(document.get("tools")), *_as_text(document.get("functions"))]
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong(f"messages[{index}]", "an object", message)
        role = _role(message)
        if tools and role != _SYSTEM:
            pieces += tools
            tools = []
        pieces.append(role)
        pieces += _content(message.get("content"), f"messages[{index}].content")
        for name in ("tool_calls", "function_call"):
            if name in message:
                pieces += _as_text(message[name])
    return pieces + tools + _formats(document)


def _role(message: dict[str, Any]) -> int:
    role = message.get("role")
    return _ROLES.get(role, _OTHER_ROLE) if isinstance(role, str) else _OTHER_ROLE


def _as_text(value: Any) -> Pieces:
    """What a template writes out as JSON: schemas of tools, calls of them."""
    if not value:
        return []
    if isinstance(value, str):
        return [value]
    try:
        return [orjson.dumps(value).decode()]
    except orjson.JSONEncodeError:  # nested more deeply than orjson writes
        return [Sized(_walked_tokens(value), TEXT_SIGMA)]


def _walked_tokens(value: Any) -> float:
    tokens, left = 0.0, [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            left += each.keys()
            left += each.values()
        elif isinstance(each, list):
            left += each
        else:
            tokens += text_tokens(each) if isinstance(each, str) else 1.0
    return tokens


def _formats(document: dict[str, Any]) -> Pieces:
    """What a reply has to fit, behind everything else: of known size, but perhaps not in the prompt."""
    found: Pieces = []
    for name in _FORMATS:
        value = document.get(name)
        if value:
            found += _perhaps(value)
    return found


def _perhaps(value: Any) -> Pieces:
    return [Sized(float(PromptSize(_as_text(value)).tokens), MEDIA_SIGMA)]


def _content(content: Any, name: str, *, nested: bool = False) -> Pieces:
    if content is None:  # an assistant's tool calls come without text
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise wrong(name, "text or a list of parts", content)
    pieces: Pieces = []
    for part in content:
        if isinstance(part, dict):
            pieces += _part(part, name, nested)
        elif isinstance(part, str):  # vLLM takes plain text as a part
            pieces.append(part)
    return pieces


def _part(part: dict[str, Any], name: str, nested: bool) -> Pieces:
    """One part of a message: text, Anthropic's tool parts and documents, or content of which only the size counts.
    ``nested``: it stands in another part already, which is as deep as they go.
    """
    text = part.get("text")
    if isinstance(text, str):
        return [text]
    match part.get("type"):
        case "tool_use":
            return _as_text([part.get("name"), part.get("input")])
        case "thinking" | "redacted_thinking":  # of an earlier turn: templates leave it out
            return []
        case "tool_result" | "search_result" if not nested:
            return _content(part.get("content"), f"{name}.content", nested=True)
        case "refusal":
            return _as_text(part.get("refusal"))
        case _:
            return _unread(part, name, nested)


def _unread(part: dict[str, Any], name: str, nested: bool) -> Pieces:
    """Content of which only the size counts; Anthropic's documents of text, which are sources of many kinds."""
    sized = media.of_part(part)
    if sized is not None:
        return [sized]
    source = part.get("source")
    if nested or part.get("type") != "document" or not isinstance(source, dict):
        return [UNSEEN]
    key = "data" if source.get("type") == "text" else "content"
    return [*_as_text(part.get("title")), *_content(source.get(key), f"{name}.source.{key}", nested=True)]


def anthropic(document: dict[str, Any]) -> Pieces:
    """``system`` first, whatever its place in the body."""
    system = _content(document.get("system"), "system")
    return [_SYSTEM, *system, *chat(document)] if system else chat(document)


def completion(document: dict[str, Any]) -> Pieces:
    """The prompt, and what it has to lead to."""
    if "prompt" not in document and "prompt_embeds" not in document:
        raise wrong("prompt", "text, token ids, or a list of either", None, missing=True)
    unseen: Pieces = [UNSEEN] if document.get("prompt_embeds") else []
    return [
        *unseen,
        *_texts_or_ids(document.get("prompt"), "prompt"),
        *_as_text(document.get("suffix")),
        *_formats(document),
    ]


def _texts_or_ids(value: Any, name: str) -> Pieces:
    """Text as it is, a list of token ids as their count; lists of either in turn, and parts as messages have them."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong(name, "text, token ids, or a list of either", value)
    if value and isinstance(value[0], int):
        return [len(value)]
    pieces: Pieces = []
    for item in value:
        if pieces:
            pieces.append(NEXT)
        pieces += _item(item, name)
    return pieces


def _item(item: Any, name: str) -> Pieces:
    """One of several prompts, or of what to embed or to rank: token ids, text, or an object with text or parts."""
    if isinstance(item, list):
        return [len(item)]
    if isinstance(item, str):
        return [item]
    if not isinstance(item, dict):
        return []
    return _content(item["content"], name) if "content" in item else _part(item, name, nested=False)


def embedding(document: dict[str, Any]) -> Pieces:
    """``input``, or a conversation."""
    if "messages" in document:
        return chat(document)
    if "input" not in document:
        raise wrong("input", "text, token ids, or a list of either", None, missing=True)
    return _texts_or_ids(document["input"], "input")


def tokenized(document: dict[str, Any]) -> Pieces:
    """``prompt``, or a conversation."""
    return chat(document) if "messages" in document else _any(document, "prompt")


def detokenized(document: dict[str, Any]) -> Pieces:
    """``tokens``."""
    return _any(document, "tokens")


def responses(document: dict[str, Any]) -> Pieces:
    """``instructions`` and tools, then the items of ``input``."""
    given = document.get("input")
    if given is None:
        raise wrong("input", "text or a list of items", None, missing=True)
    if not isinstance(given, str | list):
        raise wrong("input", "text or a list of items", given)
    pieces: Pieces = [UNSEEN] if document.get("previous_response_id") else []  # only the engine has the earlier turns
    pieces += [_SYSTEM, *_content(document.get("instructions"), "instructions"), *_as_text(document.get("tools"))]
    if isinstance(given, str):
        pieces += [_USER, given]
    else:
        for index, item in enumerate(given):
            if isinstance(item, dict):
                pieces += _response_item(item, f"input[{index}]")
    text = document.get("text")
    shape = text.get("format") if isinstance(text, dict) else None
    return [*pieces, *(_perhaps(shape) if shape else []), *_formats(document)]


def _response_item(item: dict[str, Any], name: str) -> Pieces:
    """A message, a call of a function or what it gave back."""
    pieces: Pieces = [_role(item), *_content(item.get("content"), f"{name}.content")]
    if item.get("type") == "function_call":
        pieces += _as_text(item.get("name"))
    pieces += _as_text(item.get("arguments"))
    output = item.get("output")
    return pieces + (_content(output, f"{name}.output") if isinstance(output, list) else _as_text(output))


def ranked(document: dict[str, Any]) -> Pieces:
    """A query and the documents that it is compared with. A cross-encoder reads the query again with each of them."""
    queries = _any(document, "query", "text_1", "queries", "data_1")
    documents = _any(document, "documents", "text_2", "items", "data_2")
    if NEXT in queries or NEXT not in documents:
        return queries + documents
    size = PromptSize(queries)
    query, pieces = Sized(float(size.tokens), size.sigma), Pieces()
    for piece in documents:
        pieces += [query, NEXT] if piece == NEXT else [piece]
    return [*pieces, query]


def _any(document: dict[str, Any], *names: str) -> Pieces:
    """Text under any of these names, none of them required: the engine checks its own fields."""
    found: Pieces = []
    for name in names:
        value = document.get(name)
        if isinstance(value, dict):
            found += _item(value, name)
        elif isinstance(value, str | list):
            found += _texts_or_ids(value, name)
    return found


def wrong(name: str, expected: str, value: Any, *, missing: bool = False) -> Exception:
    """The rejection of a field."""
    found = f"{name} is missing" if missing else f"{name}: got {kind_of(value)}"
    return Rejected(400, f"{found}; expected {expected}", name)


def kind_of(value: Any) -> str:
    """What a value of JSON is, in words."""
    kinds = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "text" if isinstance(value, str) else "an object")


Finder = Callable[[dict[str, Any]], Pieces]
