"""Reads request bodies: OpenAI's paths, Anthropic's messages, rerank, tokenize.

Must not depend on backends. Only fields that the gateway uses are checked; the engine judges the rest.
"""

from dataclasses import dataclass
from typing import Any, Final

import orjson

from router.core.errors import Rejected
from router.core.text_size import tokens_of_bytes
from router.gateway.protocols.answers import Dialect
from router.gateway.protocols.blocks import BLOCK_BYTES, NO_BLOCKS, blocks_of
from router.gateway.protocols.prompts import (
    Finder,
    PromptSize,
    anthropic,
    chat,
    completion,
    detokenized,
    embedding,
    kind_of,
    ranked,
    responses,
    tokenized,
    wrong,
)

SEQUENCES_MAX: Final = 16_384  # of one request, as vLLM's VLLM_MAX_N_SEQUENCES; llama.cpp, Dynamo and OpenAI take fewer
_DIGITS_MAX: Final = 9
_TOKENS_MOST: Final = 2**31 - 1  # a larger cap is none
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"  # which Python's parser, and so most engines, let pass in front of JSON


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path that is routed. ``prompt`` finds the engine's prompt in the body.

    ``states_end``: a whole stream has an event that says that it is; ``output``: the body's caps on output tokens, the
    first one counts; ``generates``: a reply is generated, so that the prompt's KV is in the engine's prefix cache
    afterwards; ``choices``: how many replies each prompt has, the most counts.
    """

    path: str
    dialect: Dialect
    prompt: Finder
    output: tuple[str, ...] = ()
    states_end: bool = False
    method: bytes = b"POST"
    generates: bool = False
    choices: tuple[str, ...] = ()

    @property
    def has_output(self) -> bool:
        """Whether a reply may have output tokens: Triton's models may generate, whatever they are."""
        return self.generates or (self.dialect is Dialect.TRITON and self.method == b"POST")


class RequestBody:
    """A request's body as read: ``document`` is the body parsed, None where only its size (``size_bytes``) counts.

    ``prompt_tokens`` is what the prompt is estimated at, ``prompt_sigma`` the error of that, ``sequences``, ``prompts``
    and ``prompt_tokens_longest`` what several prompts or choices make of it (see ``Request``); the prompt begins with
    the blocks that ``prefix`` names, each of ``block_tokens``; ``path`` as sent, query included.
    No dataclass: one is made for every request, and a dataclass's own constructor is never compiled.
    """

    __slots__ = (
        "block_tokens",
        "body",
        "document",
        "endpoint",
        "model",
        "output_tokens_max",
        "path",
        "prefix",
        "prompt_sigma",
        "prompt_tokens",
        "prompt_tokens_longest",
        "prompts",
        "sequences",
        "size_bytes",
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
        prompt_tokens: int,
        prompt_sigma: float = 0.0,
        output_tokens_max: int = 0,
        prefix: tuple[int, ...] = (),
        block_tokens: int = 0,
        sequences: int = 1,
        prompts: int = 1,
        prompt_tokens_longest: int = 0,
    ) -> None:
        self.endpoint = endpoint
        self.path = path
        self.model = model
        self.stream = stream
        self.body = body
        self.size_bytes = len(body)
        self.document = document
        self.prompt_tokens = prompt_tokens
        self.prompt_sigma = prompt_sigma
        self.output_tokens_max = output_tokens_max
        self.prefix = prefix
        self.block_tokens = block_tokens
        self.sequences = sequences
        self.prompts = prompts
        self.prompt_tokens_longest = prompt_tokens_longest

    def let_go(self) -> None:
        """Hold neither the body nor what was parsed of it: the rest stays."""
        self.body, self.document = b"", None


def read(endpoint: Endpoint, path: bytes, body: bytes, prefix_blocks_max: int = 0) -> RequestBody:
    """Read *body*. Raises Rejected with 400 naming the field that is wrong."""
    document = parse(body)
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise wrong("model", "the name of a model", model, missing="model" not in document)
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise wrong("stream", "true or false", stream)
    blocks_max = prefix_blocks_max if endpoint.generates else 0
    prompt = PromptSize(endpoint.prompt(document), blocks_max * BLOCK_BYTES)
    salt = document.get("cache_salt")
    prefix, block_tokens = named_blocks(prompt.text, model, salt if isinstance(salt, str) else "", blocks_max)
    output_max = _output_tokens_max(endpoint, document)
    choices = max(1, *(_choices(name, document.get(name)) for name in endpoint.choices)) if endpoint.choices else 1
    return RequestBody(
        endpoint,
        path,
        model,
        bool(stream),
        body,
        document,
        prompt.tokens,
        prompt.sigma,
        output_max,
        prefix,
        block_tokens,
        min(SEQUENCES_MAX, prompt.prompts * choices),
        min(SEQUENCES_MAX, prompt.prompts),
        prompt.longest,
    )


def named_blocks(text: list[str], model: str, salt: str, blocks_max: int) -> tuple[tuple[int, ...], int]:
    """The blocks that a prompt begins with, and how many tokens each has on average, by the rule for whole prompts."""
    prefix, chars = blocks_of(text, model, salt, blocks_max) if text else NO_BLOCKS
    return prefix, max(1, round(tokens_of_bytes(BLOCK_BYTES, chars))) if prefix else 0


def parse(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises Rejected with 400 saying where it stops being one."""
    try:
        document = orjson.loads(body.removeprefix(_BYTE_ORDER_MARK))
    except orjson.JSONDecodeError as error:
        raise Rejected(400, f"body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Rejected(400, f"body: expected a JSON object, not {kind_of(document)}")
    return document


def _output_tokens_max(endpoint: Endpoint, document: dict[str, Any]) -> int:
    for name in endpoint.output:
        value = document.get(name)
        if value is None:
            continue
        count = None if isinstance(value, bool) else _whole(value)
        if count is None:
            raise wrong(name, "a number of tokens", value)
        # -1 is no cap to llama.cpp; an engine that takes none below 0 refuses it itself.
        return min(max(count, 0), _TOKENS_MOST)
    return 0


def _choices(name: str, value: Any) -> int:
    """How many replies, as engines read it: what pydantic makes of it."""
    if value is None:
        return 1
    count = _whole(value)
    if name != "n":  # read by some engines, and of no meaning to others
        return min(max(count or 1, 1), SEQUENCES_MAX)
    if count is None or not 1 <= count <= SEQUENCES_MAX:
        raise wrong(name, f"a number from 1 to {SEQUENCES_MAX}", value)
    return count


def _whole(value: Any) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        digits = text.removeprefix("-")
        return int(text) if digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value) if isinstance(value, int) else None


_CHAT_OUTPUT: Final = ("max_completion_tokens", "max_tokens")

ENDPOINTS: Final = {
    endpoint.path.encode(): endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", Dialect.OPENAI, chat, _CHAT_OUTPUT, True, generates=True, choices=("n",)),
        Endpoint(
            "/v1/completions",
            Dialect.OPENAI,
            completion,
            ("max_tokens",),
            states_end=True,
            generates=True,
            choices=("n", "best_of"),
        ),
        Endpoint("/v1/embeddings", Dialect.OPENAI, embedding),
        Endpoint(
            "/v1/responses", Dialect.RESPONSES, responses, ("max_output_tokens",), states_end=True, generates=True
        ),
        Endpoint("/v1/messages", Dialect.ANTHROPIC, anthropic, ("max_tokens",), states_end=True, generates=True),
        Endpoint("/v1/messages/count_tokens", Dialect.ANTHROPIC, anthropic),
        Endpoint("/v1/rerank", Dialect.OPENAI, ranked),
        Endpoint("/v2/rerank", Dialect.OPENAI, ranked),
        Endpoint("/rerank", Dialect.OPENAI, ranked),
        Endpoint("/score", Dialect.OPENAI, ranked),
        Endpoint("/v1/score", Dialect.OPENAI, ranked),
        Endpoint("/tokenize", Dialect.OPENAI, tokenized),
        Endpoint("/detokenize", Dialect.OPENAI, detokenized),
    )
}
