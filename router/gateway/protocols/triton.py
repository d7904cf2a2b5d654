"""Reads requests on Triton's own paths: the model they name and what their bodies hold.

Must not depend on OpenAI's request format; the translation between the two is ``router.engines.triton``.
"""

from typing import Any, Final
from urllib.parse import unquote

from router.core.errors import Rejected
from router.gateway.protocols.answers import Dialect
from router.gateway.protocols.blocks import NO_BLOCKS, blocks_of
from router.gateway.protocols.openai import Endpoint, RequestBody, parse

PREFIX: Final = b"/v2/models/"
PROTOCOL: Final = "triton"  # as engine kinds name it


def _none(_: Any) -> list[str | int]:
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
        return RequestBody(endpoint, path, model, stream=False, body=body, document=None, prompt_chars=len(body))
    document = parse(body)
    text = document.get("text_input", "")
    if not isinstance(text, str):
        raise Rejected(400, "text_input: expected text", "text_input")
    cap = document.get("max_tokens", 0)
    prefix, block_chars = blocks_of([text], model, "", prefix_blocks_max) if prefix_blocks_max else NO_BLOCKS
    return RequestBody(
        endpoint=endpoint,
        path=path,
        model=model,
        stream=endpoint is STREAM,
        body=body,
        document=document,
        prompt_chars=len(text),
        output_tokens_max=cap if isinstance(cap, int) and not isinstance(cap, bool) and cap > 0 else 0,
        prefix=prefix,
        block_chars=block_chars,
    )
