"""A proxy as the endpoint picker sees one: the messages that Envoy sends about a request, over a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from grpc import aio

from router.core.dispatcher import Dispatcher
from router.core.flight import DispatchLimits
from router.gateway.epp.addresses import Addresses
from router.gateway.epp.fallbacks import Fallbacks
from router.gateway.epp.link import Links
from router.gateway.epp.messages import FULL_DUPLEX_STREAMED, PROCESSOR, ProcessingRequest, ProcessingResponse
from router.gateway.epp.server import PickerServer
from router.gateway.protocols.target import Target
from router.gateway.traffic.client_connection import ConnectionLimits
from router.gateway.traffic.driver import Driver, StreamLimits
from tests import fakes
from tests.fakes_wire import Seen

WITHIN_S: Final = 60.0  # of a busy machine
CHAT: Final = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
EVENT_STREAM: Final = {"content-type": "text/event-stream"}


class Exchange:
    """One stream: what is sent is as Envoy sends it, and what comes is read message by message."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, message: Any) -> None:
        await self._call.write(message)

    async def head(
        self,
        fields: dict[str, str] | None = None,
        *,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        ends: bool = False,
        subset: Any = None,
        mode: int = FULL_DUPLEX_STREAMED,
    ) -> None:
        """The head of the request."""
        message = ProcessingRequest()
        pseudo = {":method": method, ":path": path, ":authority": "g", ":scheme": "http"}
        _fill(message.request_headers.headers, {**pseudo, **(fields or {})})
        message.request_headers.end_of_stream = ends
        message.protocol_config.request_body_mode = message.protocol_config.response_body_mode = mode
        if subset is not None:
            entry = message.metadata_context.filter_metadata.add(key="envoy.lb.subset_hint")
            entry.value.update({"x-gateway-destination-endpoint-subset": subset})
        await self.send(message)

    async def body(self, *pieces: bytes, ends: bool = True) -> None:
        """The body of the request, in these pieces."""
        for index, piece in enumerate(pieces):
            message = ProcessingRequest()
            message.request_body.body = piece
            message.request_body.end_of_stream = ends and index == len(pieces) - 1
            await self.send(message)

    async def chat(self, fields: dict[str, str] | None = None, **more: Any) -> None:
        """A whole chat completion, in two pieces."""
        body = json.dumps({**CHAT, **more}).encode()
        await self.head(fields)
        await self.body(body[:20], body[20:])

    async def reply_head(
        self,
        status: int = 200,
        fields: dict[str, str] | None = None,
        *,
        ends: bool = False,
        served: str = "",
        address: str = "",
    ) -> None:
        """The head of the engine's reply; *served*, *address*: where from, by the protocol and by Envoy's attribute."""
        message = ProcessingRequest()
        if served:
            entry = message.metadata_context.filter_metadata.add(key="envoy.lb")
            entry.value.update({"x-gateway-destination-endpoint-served": served})
        if address:
            entry = message.attributes.add(key="envoy.filters.http.ext_proc")
            entry.value.update({"upstream.address": address})
        _fill(
            message.response_headers.headers, {":status": str(status), **(EVENT_STREAM if fields is None else fields)}
        )
        message.response_headers.end_of_stream = ends
        await self.send(message)

    async def reply_body(self, *pieces: bytes, ends: bool = False) -> None:
        """More of the engine's reply."""
        for index, piece in enumerate(pieces):
            message = ProcessingRequest()
            message.response_body.body = piece
            message.response_body.end_of_stream = ends and index == len(pieces) - 1
            await self.send(message)

    async def trailers(self, kind: str) -> None:
        """The trailers that end a body."""
        message = ProcessingRequest()
        getattr(message, kind).trailers.headers.add(key="x-t", raw_value=b"1")
        await self.send(message)

    async def next(self) -> Any:
        """The picker's next message."""
        async with asyncio.timeout(WITHIN_S):
            found = await self._call.read()
        assert found is not aio.EOF, "the stream has ended"
        return found

    async def destination(self) -> tuple[str, dict[str, str], bytes]:
        """Where the request goes, the header changes, and its whole body."""
        head = await self.next()
        assert head.WhichOneof("response") == "request_headers", head
        changes = set_fields(head.request_headers.response.header_mutation)
        endpoint = changes.pop("x-gateway-destination-endpoint")
        metadata = head.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"]
        assert metadata == endpoint
        changes |= dict.fromkeys(head.request_headers.response.header_mutation.remove_headers, "")
        return endpoint, changes, await self._pieces("request_body")

    async def reply(self) -> tuple[dict[str, str], bytes]:
        """The header changes of the reply, and its whole body."""
        head = await self.next()
        assert head.WhichOneof("response") == "response_headers", head
        return set_fields(head.response_headers.response.header_mutation), await self._pieces("response_body")

    async def piece(self, kind: str = "response_body") -> Any:
        """The next piece of a body."""
        message = await self.next()
        assert message.WhichOneof("response") == kind, message
        return getattr(message, kind).response.body_mutation.streamed_response

    async def _pieces(self, kind: str) -> bytes:
        whole = b""
        while True:
            piece = await self.piece(kind)
            whole += piece.body
            if piece.end_of_stream:
                return whole

    async def immediate(self) -> tuple[int, dict[str, str], Any]:
        """The answer that the proxy is to give: status, headers, the document or other body."""
        message = await self.next()
        assert message.WhichOneof("response") == "immediate_response", message
        given = message.immediate_response
        return (
            given.status.code,
            set_fields(given.headers),
            json.loads(given.body) if given.body.startswith(b"{") else given.body,
        )

    async def status(self) -> Any:
        """How the picker ended the stream."""
        async with asyncio.timeout(WITHIN_S):
            return await self._call.code()

    async def done(self) -> None:
        """Half-close, as Envoy does once it needs nothing more."""
        await self._call.done_writing()

    def cancel(self) -> None:
        """Reset the stream, as when the client has left."""
        self._call.cancel()


def set_fields(mutation: Any) -> dict[str, str]:
    """The headers that are set."""
    return {option.header.key: option.header.raw_value.decode("latin-1") for option in mutation.set_headers}


def _fill(headers: Any, fields: dict[str, str]) -> None:
    for name, value in fields.items():
        headers.headers.add(key=name, raw_value=value.encode("latin-1"))


class Proxy:
    """What calls the picker, and what the picker's driver has seen."""

    def __init__(self, channel: Any, picker: PickerServer, seen: Seen, core: Dispatcher) -> None:
        self.picker, self.seen, self.core = picker, seen, core
        self._open = channel.stream_stream(
            f"/{PROCESSOR}/Process", ProcessingRequest.SerializeToString, ProcessingResponse.FromString
        )
        self.raw = channel.stream_stream(f"/{PROCESSOR}/Process")
        self.channel = channel

    def exchange(self) -> Exchange:
        return Exchange(self._open())


@asynccontextmanager
async def proxy(
    *names: str,
    targets: Iterable[Target] | None = None,
    routing: str = "round_robin",
    limits: ConnectionLimits | None = None,
    limits_of_streams: StreamLimits | None = None,
    core_limits: DispatchLimits | None = None,
    core: Dispatcher | None = None,
    fallbacks: int = 0,
    **options: Any,
) -> AsyncIterator[Proxy]:
    """A picker for backends of these names, on ports from 9001 of 10.0.0.1, which nobody connects to."""
    given = [Target(name, "10.0.0.1", 9001 + index) for index, name in enumerate(names)] if targets is None else targets
    given = list(given)
    if core is None:
        backends = [fakes.backend(target.name, models=("m",)) for target in given]
        core = fakes.core(*backends, routing=routing, limits=core_limits or DispatchLimits(attempts_max=0))
    addresses, seen = Addresses(), Seen()
    links = Links(addresses)
    driver = Driver(core, given, seen, dialler=links.dial, limits=limits_of_streams, **options)
    addresses.targets = lambda: [upstream.target for upstream in driver.upstreams.values()]
    links.endpoints = Fallbacks(addresses, driver.upstreams, core.explain, lambda: fallbacks).endpoints
    picker = PickerServer(
        driver,
        links,
        limits or ConnectionLimits(),
        lambda among: "10.0.0.1:9001" if among is None else "",
        lambda: True,
    )
    port = await picker.start("127.0.0.1", 0, None)
    channel = aio.insecure_channel(f"127.0.0.1:{port}")
    try:
        yield Proxy(channel, picker, seen, core)
    finally:
        await channel.close()
        await picker.stop(0.0)
        await driver.drain(0.0)
