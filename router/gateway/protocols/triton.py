"""Reads requests on Triton's own paths: the model they name and what their bodies hold.

Must not depend on OpenAI's request format; the translation between the two is ``router.engines.triton``.
"""

from math import ceil
from typing import Any, Final
from urllib.parse import unquote

from router.core.errors import Rejected
from router.core.types import CHARS_PER_TOKEN
from router.gateway.protocols import media
from router.gateway.protocols.answers import Dialect
from router.gateway.protocols.openai import SEQUENCES_MAX, Endpoint, RequestBody, named_blocks, parse
from router.gateway.protocols.prompts import Pieces, PromptSize

PREFIX: Final = b"/v2/models/"
PROTOCOL: Final = "triton"  # as engine kinds name it
_SEQUENCES: Final = ("beam_width", "num_return_sequences")  # of TensorRT-LLM's ensemble


def _none(_: Any) -> Pieces:
    return []


def _endpoint(verb: str, method: bytes = b"POST") -> Endpoint:
    return Endpoint(f"/v2/models/{{model}}/{verb}", Dialect.TRITON, _none, method=method)


_VERBS: Final = {
    b"generate_stream": _endpoint("generate_stream"),
    b"generate": _endpoint("generate"),
    b"infer": _endpoint("infer"),
    b"ready": _endpoint("ready", b"GET"),
}
STREAM: Final = _VERBS[b"generate_stream"]
INFER: Final = _VERBS[b"infer"]
READY: Final = _VERBS[b"ready"]


def endpoint_of(path: bytes) -> Endpoint | None:
    """The endpoint of ``/v2/models/MODEL[/versions/N]/VERB``, None for any other path."""
    parts = path[len(PREFIX) :].split(b"/")
    versioned = len(parts) == 4 and parts[1] == b"versions"  # noqa: PLR2004 - model, "versions", number, verb
    if not parts[0] or not (len(parts) == 2 or versioned):  # noqa: PLR2004 - model, verb
        return None
    return _VERBS.get(parts[-1])


def read(endpoint: Endpoint, path: bytes, body: bytes, prefix_blocks_max: int = 0) -> RequestBody:
    """Read *body*. Raises Rejected with 400 naming the field that is wrong."""
    model = unquote(path[len(PREFIX) :].partition(b"/")[0].decode("latin-1"))
    if endpoint is INFER or endpoint is READY:  # tensors, possibly binary: only their size counts
        tokens = max(1, ceil(len(body) / CHARS_PER_TOKEN))
        return RequestBody(endpoint, path, model, False, body, None, tokens, media.MEDIA_SIGMA)
    document = parse(body)
    text = document.get("text_input", "")
    if not isinstance(text, str):
        raise Rejected(400, "text_input: expected text", "text_input")
    cap = document.get("max_tokens", 0)
    prompt = PromptSize([text, *_images(document.get("image"))], prefix_blocks_max)
    prefix, block_tokens = named_blocks(prompt.text, model, "", prefix_blocks_max)
    return RequestBody(
        endpoint=endpoint,
        path=path,
        model=model,
        stream=endpoint is STREAM,
        body=body,
        document=document,
        prompt_tokens=prompt.tokens,
        prompt_sigma=prompt.sigma,
        output_tokens_max=cap if isinstance(cap, int) and not isinstance(cap, bool) and cap > 0 else 0,
        prefix=prefix,
        block_tokens=block_tokens,
        sequences=min(SEQUENCES_MAX, max(1, *(_count(document.get(name)) for name in _SEQUENCES))),
    )


def _count(given: Any) -> int:
    """Of a tensor of one number: the number, or a list with it."""
    value = given[0] if isinstance(given, list) and given else given
    return value if isinstance(value, int) and not isinstance(value, bool) else 1


def _images(given: Any) -> Pieces:
    """What Triton's vLLM backend takes as ``image``: one in base64, or a list of them."""
    each = given if isinstance(given, list) else [given] if given else []
    return [media.encoded_image(image) for image in each]
