"""One client call as it was read: what its attempts need of it, never changed.

Must not depend on sockets, the core's decisions or the state of a reply.
"""

from collections.abc import Callable, Sequence
from typing import Final

import orjson

from router.core.types import Request, RequestId, Slo
from router.engines import Translation
from router.gateway.protocols import client_text, openai, translate, triton
from router.gateway.protocols.answers import Dialect
from router.gateway.protocols.ingress import AppliedSlo, Ingress
from router.gateway.protocols.json_members import member_span, with_member, with_new_member
from router.gateway.protocols.model_name import ModelName
from router.gateway.protocols.openai import Endpoint, RequestBody
from router.gateway.protocols.target import Target
from router.gateway.traffic.http import HOP_BY_HOP, options
from router.gateway.traffic.request_trace import RequestTrace

# Fields of a client's head that are not forwarded: those that stop at a hop, those that the gateway writes itself, the
# gateway's own keys, and Accept-Encoding, since the tokens of a compressed stream cannot be counted.
_NOT_FORWARDED: Final = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"authorization",
    b"x-api-key",
    b"expect",
    b"accept-encoding",
    b"x-request-id",
}
_ASKING: Final = {"include_usage": True}
_ASKING_JSON: Final = orjson.dumps(_ASKING)


class Call:
    """One client call. ``request``: its facts for the core; ``class_slo``: the SLO of its class, without its headers.

    ``wire_id``: the client's ``x-request-id`` or ours; ``forwarded``: header lines for the engine; ``http10`` and
    ``head_only``: what the client can take of a reply; ``trace``: its place in a trace, None: no traces are written.
    No dataclass: one is made for every request, and a dataclass's own constructor is never compiled.
    """

    __slots__ = ("body", "class_slo", "endpoint", "forwarded", "head_only", "http10", "request", "trace", "wire_id")

    endpoint: Final[Endpoint]
    body: Final[RequestBody]
    request: Final[Request]
    class_slo: Final[Slo]
    wire_id: Final[bytes]
    forwarded: bytes
    http10: Final[bool]
    head_only: Final[bool]
    trace: Final[RequestTrace | None]

    def __init__(
        self,
        endpoint: Endpoint,
        body: RequestBody,
        request: Request,
        class_slo: Slo,
        wire_id: bytes,
        forwarded: bytes,
        http10: bool,
        head_only: bool,
        trace: RequestTrace | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.body = body
        self.request = request
        self.class_slo = class_slo
        self.wire_id = wire_id
        self.forwarded = forwarded
        self.http10 = http10
        self.head_only = head_only
        self.trace = trace

    def let_go(self) -> None:
        """It is sent to no engine any more: what it was sent as is held no longer."""
        self.body.let_go()
        self.forwarded = b""

    @property
    def must_end(self) -> bool:
        """Whether a complete reply has an event that says so: a finish reason, ``[DONE]``, the last of its kinds."""
        return self.body.stream and self.endpoint.states_end

    @property
    def leaves_usage_out(self) -> bool:
        """Whether an engine would state token counts at the end of the stream if asked, and the client does not ask."""
        if not (self.must_end and self.endpoint.dialect is Dialect.OPENAI):
            return False
        options = (self.body.document or {}).get("stream_options")
        return options is None or (isinstance(options, dict) and options.get("include_usage") in (None, False))

    def for_engine(self, target: Target, model: str, shown: str) -> Translation | None:
        """How this call and its reply change for that engine, which runs *model*; *shown*: the name of it in the reply.
        None: not at all. Raises UnsupportedFeature.
        """
        return translate.translation(self.body, target, self.wire_id, model, shown)

    def reply_name(self, target: Target, model: str, shown: str) -> ModelName | None:
        """What renames the model in a reply of that engine; None: it is the name to be shown."""
        if target.models.get(model, model) == shown or self.head_only:
            return None
        return ModelName(shown, self.endpoint.dialect)

    def request_bytes(
        self,
        target: Target,
        opening: Callable[[bytes, bytes], bytes],
        translation: Translation | None,
        asks_usage: bool,
        attempt: int,
        model: str,
    ) -> tuple[bytes, bytes]:
        """Head and body for this engine, which runs *model*; *opening* gives the head's first lines for a method and a
        path; *asks_usage*: the body asks for token counts at the end of the stream, whether the client does or not;
        *attempt*: its number.
        """
        if translation is not None:
            path, body = translation.path, translation.body
        else:
            path, body = _addressed(self.body, target, model, asks_usage)
        method = self.endpoint.method
        head = opening(b"HEAD" if self.head_only else method, path)
        length = b"content-length: %d\r\n" % len(body) if method == b"POST" else b""
        traced = self.trace.field(attempt) if self.trace is not None else b""
        return b"%b%bx-request-id: %b\r\n%b%b\r\n" % (head, length, self.wire_id, traced, self.forwarded), body


def read_call(
    endpoint: Endpoint,
    path: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    fields: dict[bytes, bytes],
    body: bytes,
    applied: AppliedSlo,
    tenant: str,
    ingress: Ingress,
    request_id: RequestId,
    arrived_s: float,
    http10: bool,
    head_only: bool,
    trace: RequestTrace | None,
    among: tuple[str, ...] = (),
    routed_model: str = "",
    fallback: str = "",
) -> Call:
    """Read the call, which may be sent to the backends *among* alone where that names any, and is served by
    *routed_model* where that is not empty. *fallback*: whether another model may serve it.

    Raises Rejected with 400 naming the field that is wrong, 404 for a name that no model has.
    """
    read = triton.read if endpoint.dialect is Dialect.TRITON else openai.read
    document = read(endpoint, path, body, ingress.prefix_blocks_max)
    request = Request(
        id=request_id,
        model=client_text.model_name(routed_model or document.model),
        arrived_s=arrived_s,
        prompt_tokens=document.prompt_tokens,
        output_tokens_max=document.output_tokens_max,
        slo=applied.slo,
        slo_class=applied.slo_class,
        priority=applied.given.priority,
        tenant=tenant or client_text.identity(fields.get(b"x-llm-d-inference-fairness-id", b"")),
        session=client_text.identity(fields.get(b"x-session-id", b"")),
        prefix=document.prefix,
        prefix_block_tokens=document.block_tokens,
        streamed=document.stream,
        prompt_sigma=document.prompt_sigma,
        sequences=document.sequences,
        prompts=document.prompts,
        prompt_tokens_longest=document.prompt_tokens_longest,
        endpoint=endpoint.path,
        among=among,
        fallback=fallback,
    )
    if ingress.models.rules:
        request = ingress.models.resolved(request)
    wire_id = client_text.request_id(fields.get(b"x-request-id", b"")) or request_id.encode()
    forwarded = _forwarded(headers, fields, None if trace is None else trace.replaces)
    return Call(endpoint, document, request, applied.given.slo, wire_id, forwarded, http10, head_only, trace)


def _forwarded(
    headers: Sequence[tuple[bytes, bytes]], fields: dict[bytes, bytes], replaced: frozenset[bytes] | None
) -> bytes:
    dropped: frozenset[bytes] = _NOT_FORWARDED
    if replaced is not None:
        dropped |= replaced
    if b"connection" in fields:
        dropped |= options([value for name, value in headers if name == b"connection"])
    pieces: list[bytes] = []
    for name, value in headers:
        if name not in dropped:
            pieces += (name, b": ", value, b"\r\n")
    return b"".join(pieces)


def _addressed(body: RequestBody, target: Target, model: str, asks_usage: bool) -> tuple[bytes, bytes]:
    """Path and body with the name of *model* at this engine, every other byte as the client sent it."""
    engine_name = target.models.get(model, model)
    if body.endpoint.dialect is Dialect.TRITON:
        if engine_name == body.model:
            return body.path, body.body
        rest = body.path[len(triton.PREFIX) :].partition(b"/")[2]
        return triton.PREFIX + engine_name.encode() + b"/" + rest, body.body
    alias = None if engine_name == body.model else engine_name
    if alias is None and not asks_usage:
        return body.path, body.body
    try:
        return body.path, _spliced(body, alias, asks_usage)
    except ValueError:  # nested too deep for that: written anew
        document = dict(body.document or {})
        document["model"] = engine_name
        document |= {"stream_options": {**(document.get("stream_options") or {}), **_ASKING}} if asks_usage else {}
        return body.path, orjson.dumps(document)


def _spliced(body: RequestBody, alias: str | None, asks_usage: bool) -> bytes:
    """The body with these members changed. Raises ValueError where it cannot be read."""
    made = body.body if alias is None else with_member(body.body, "model", orjson.dumps(alias))
    if not asks_usage:
        return made
    document = body.document or {}
    if "stream_options" not in document:
        return with_new_member(made, "stream_options", _ASKING_JSON)
    if document["stream_options"] is None:
        return with_member(made, "stream_options", _ASKING_JSON)
    span = member_span(made, "stream_options")
    assert span is not None
    return with_member(made, "include_usage", b"true", span[0])
