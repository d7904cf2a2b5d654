"""One ext-proc stream: a proxy's messages about one request, read, checked and handed to its call.

Must not depend on gRPC: what is written, and when, is the server's. Nothing of a message is trusted: what cannot be one
of a proxy ends the stream.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from router.core.errors import BadMessage
from router.gateway.epp.calls import PassedCall, ProxiedCall, RequestHead, RoutedCall
from router.gateway.epp.extension import ATTRIBUTES, NAMESPACE, SERVED, SUBSET, SUBSET_NAMESPACE, UPSTREAM_ADDRESS
from router.gateway.epp.link import Links
from router.gateway.epp.messages import FULL_DUPLEX_STREAMED, ProcessingRequest
from router.gateway.epp.replies import Field, ProxyReplies
from router.gateway.protocols import answers, triton
from router.gateway.protocols.answers import Dialect, Problem
from router.gateway.protocols.openai import ENDPOINTS
from router.gateway.traffic import request_head
from router.gateway.traffic.ports import RequestDriver
from router.gateway.traffic.server import ConnectionLimits

_log = logging.getLogger("headroom")
_MODES: Final = "the proxy's request_body_mode and response_body_mode have to be FULL_DUPLEX_STREAMED"
_INTERNAL: Final = Problem(500, "internal error in the endpoint picker; see its log")
_STATUSES: Final = range(200, 600)
_LINE_ENDS: Final = (b"\r", b"\n", b"\0")

AnyEndpoint = Callable[[tuple[str, ...] | None], str]
"""The endpoint of a backend for a path that is not routed, of those given or (None) of all; empty: there is none."""


class ProxyStream:
    """Reads the messages of one stream; the answers wait in ``replies``. ``since_s``: when it began."""

    def __init__(
        self,
        driver: RequestDriver,
        links: Links,
        limits: ConnectionLimits,
        any_endpoint: AnyEndpoint,
        wake: Callable[[], None],
    ) -> None:
        """*wake*: ``replies`` has more."""
        self.replies = ProxyReplies(wake)
        self.since_s = driver.clock()
        self.call: ProxiedCall | None = None
        self._blocked = False
        self._driver, self._links, self._limits, self._any_endpoint = driver, links, limits, any_endpoint

    def take(self, data: bytes) -> None:
        """One message. Raises BadMessage."""
        try:
            message = ProcessingRequest.FromString(data)
        except Exception as error:  # protobuf's own, which it has under two names
            raise BadMessage(f"no ProcessingRequest: {error}") from None
        if self.replies.over:
            return
        try:
            self._take(message)
        except BadMessage:
            raise
        except Exception:
            _log.exception("a request failed with an exception in the endpoint picker; its client gets status 500")
            self.left()
            self.reject(_INTERNAL)

    def _take(self, message: Any) -> None:
        kind, call = message.WhichOneof("request"), self.call
        if call is None:
            if kind != "request_headers":
                raise BadMessage(f"expected request_headers first, not {kind}")
            self._begin(message)
        elif kind == "response_body":
            call.response_body(message.response_body.body, ends=message.response_body.end_of_stream)
        elif kind == "request_body":
            call.request_body(message.request_body.body, ends=message.request_body.end_of_stream)
        elif kind == "response_headers":
            self._respond(call, message.response_headers, served_of(message))
        elif kind == "request_trailers":
            call.request_trailers()
        elif kind == "response_trailers":
            call.response_trailers()
        else:
            raise BadMessage(f"expected another message than {kind}")

    def _begin(self, message: Any) -> None:
        subset = subset_of(message)
        head = _head_of(message, None if subset is None else self._links.addresses.among(subset))
        modes = message.protocol_config
        if message.HasField("protocol_config") and not (
            modes.request_body_mode == modes.response_body_mode == FULL_DUPLEX_STREAMED
        ):
            _log.error("%s", _MODES)
            self.reject(Problem(500, _MODES))
            return
        ends = message.request_headers.end_of_stream
        if sum(len(name) + len(value) for name, value in head.headers) > self._limits.head_bytes_max:
            self.reject(request_head.too_large(self._limits.head_bytes_max))
            return
        bare = head.path.partition(b"?")[0]
        endpoint = ENDPOINTS.get(bare) or (triton.endpoint_of(bare) if bare.startswith(triton.PREFIX) else None)
        if endpoint is None:
            self.call = PassedCall(self.replies, self._any_endpoint(head.among))
            return
        self.call = call = RoutedCall(
            self._driver, self._links, self.replies, endpoint, head, self._limits.body_bytes_max
        )
        call.begin(ends=ends)

    def _respond(self, call: ProxiedCall, headers: Any, served: str) -> None:
        fields = _fields_of(headers.headers)
        status = next((value for name, value in fields if name == b":status"), b"")
        if not (status.isdigit() and int(status) in _STATUSES):
            raise BadMessage(f":status: expected a number from 200 to 599, not {status[:20]!r}")
        call.response_head(int(status), _regular(fields), served, ends=headers.end_of_stream)

    def reject(self, problem: Problem) -> None:
        """Have the proxy answer with *problem*, which is no matter of the call's."""
        body = answers.body(Dialect.OPENAI, problem)
        self._driver.rejected("", problem.status, None)
        self.replies.immediate(problem.status, b"content-type: application/json\r\n" + problem.fields, body)

    def left(self) -> None:
        """The stream is over."""
        if self.call is not None:
            self.call.left()

    def blocked(self) -> None:
        """The proxy does not take the reply as fast as it comes: its silence is no engine's."""
        call = self.call
        if isinstance(call, RoutedCall) and not self._blocked and not call.exchange.response_complete:
            self._blocked = True
            call.exchange.pause()

    def unblocked(self) -> None:
        """It has taken what there was."""
        call, was, self._blocked = self.call, self._blocked, False
        if was and isinstance(call, RoutedCall) and not call.exchange.response_complete:
            call.exchange.resume()

    def swept(self, now_s: float) -> None:
        """Answer a request that takes too long to come."""
        call = self.call
        waiting = call is None or (isinstance(call, RoutedCall) and not call.exchange.body_complete)
        if waiting and not self.replies.over and now_s - self.since_s > self._limits.request_s:
            self.left()
            self.reject(Problem(408, f"the request took over {self._limits.request_s:g} s to arrive"))


def subset_of(message: Any) -> list[str] | None:
    """The endpoints that the proxy allows, as a list or as one text with commas; None: it names none, so any."""
    value = _stated(message.metadata_context.filter_metadata, SUBSET_NAMESPACE, SUBSET)
    if value is None:
        return None
    texts = [each.string_value for each in value.list_value.values] or [value.string_value]
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def served_of(message: Any) -> str:
    """The endpoint that a reply comes from: in metadata by the protocol, or an attribute of Envoy's; empty: neither."""
    value = _stated(message.metadata_context.filter_metadata, NAMESPACE, SERVED)
    if value is None:
        value = _stated(message.attributes, ATTRIBUTES, UPSTREAM_ADDRESS)
    return "" if value is None else str(value.string_value)


def _stated(entries: Iterable[Any], namespace: str, name: str) -> Any:
    """The value under that name; None: there is none."""
    return next(
        (entry.value.fields[name] for entry in entries if entry.key == namespace and name in entry.value.fields), None
    )


def _head_of(message: Any, among: tuple[str, ...] | None) -> RequestHead:
    fields = _fields_of(message.request_headers.headers)
    pseudo = dict(fields)
    method, path = pseudo.get(b":method", b""), request_head.origin_form(pseudo.get(b":path", b""))
    if not method or path is None or b" " in path:
        raise BadMessage(":method and :path: expected those of a request")
    headers = _regular(fields)
    return RequestHead(method, path, headers, dict(headers), among)


def _fields_of(headers: Any) -> list[Field]:
    """Names in lower case and values. Raises BadMessage for what would be several lines."""
    found = [
        (each.key.lower().encode("latin-1", "replace"), each.raw_value or each.value.encode())
        for each in headers.headers
    ]
    for name, value in found:
        if not name or any(end in part for part in (name, value) for end in _LINE_ENDS):
            raise BadMessage("a header has a line end in it")
    return found


def _regular(fields: Iterable[Field]) -> list[Field]:
    return [field for field in fields if not field[0].startswith(b":")]
