"""The two ways of a request through the picker: decided by the core, or, on a path that is not routed, passed on.

Both get the phases of one ext-proc stream in their order. Must not depend on gRPC.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from router.core.errors import BadMessage, Reason
from router.core.types import RequestId
from router.gateway.epp import extension
from router.gateway.epp.exchange import PickerExchange
from router.gateway.epp.link import EngineLink, Links
from router.gateway.epp.replies import Field, ProxyReplies
from router.gateway.protocols import answers
from router.gateway.protocols.answers import Dialect, Problem
from router.gateway.protocols.openai import Endpoint
from router.gateway.traffic.http import HEAD_END, HOP_BY_HOP
from router.gateway.traffic.ports import RequestDriver

_PROXYS: Final = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    extension.ENDPOINT.encode(),
}  # fields of a request that the proxy writes itself
_OF_REPLY: Final = HOP_BY_HOP | {b"content-length"}
_UNREACHABLE: Final = 503  # of a proxy that has got no connection: a name may stand for another address by now
NONE_IN_SUBSET: Final = Problem(
    503, "none of the endpoints that the gateway allows is a backend that is up", code=Reason.NO_BACKEND.value
)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of a request. ``fields``: *headers* by name; ``among``: names of the backends that the proxy allows,
    None: any.
    """

    method: bytes
    path: bytes
    headers: Sequence[Field]
    fields: dict[bytes, bytes]
    among: tuple[str, ...] | None = None


class ProxiedCall(ABC):
    """One request and its reply, phase by phase."""

    @abstractmethod
    def request_body(self, data: bytes, *, ends: bool) -> None:
        """More of the request's body; *ends*: the request is complete with it."""

    @abstractmethod
    def request_trailers(self) -> None:
        """The request is complete, with trailers."""

    @abstractmethod
    def response_head(self, status: int, fields: Sequence[Field], served: str, *, ends: bool) -> None:
        """The head of the engine's reply, or of the proxy's own in place of one; *served*: the endpoint that it comes
        from, empty: the proxy states none; *ends*: it has no body.
        """

    @abstractmethod
    def response_body(self, data: bytes, *, ends: bool) -> None:
        """More of the reply."""

    @abstractmethod
    def response_trailers(self) -> None:
        """The reply is complete, with trailers."""

    @abstractmethod
    def left(self) -> None:
        """The stream is over: with the reply, or before it."""


class RoutedCall(ProxiedCall):
    """A request that the core decides, whose reply is read as it passes."""

    def __init__(
        self,
        driver: RequestDriver,
        links: Links,
        replies: ProxyReplies,
        endpoint: Endpoint,
        head: RequestHead,
        body_bytes_max: int,
    ) -> None:
        self._links = links
        self._replies = replies
        self._body_bytes_max = body_bytes_max
        self._given = head
        self._link: EngineLink | None = None
        self._id: RequestId = ""
        self._has_body = self._has_trailers = False
        self._passes = False  # the reply is the proxy's own, to a request that it was not to send yet
        fields = extension.as_ours(head.fields, driver.ingress.classes)
        headers = [field for field in head.headers if field[0] not in extension.OF_GATEWAYS]
        self.exchange = exchange = PickerExchange(replies, self._called, driver, endpoint, head.path, headers, fields)
        exchange.routed_model = extension.rewritten_model(head.fields)
        exchange.among = head.among or ()

    def begin(self, *, ends: bool) -> None:
        """The head has come; *ends*: it is the whole request."""
        exchange = self.exchange
        exchange.read_head(self._given.method, self._body_bytes_max)
        if exchange.problem is not None:
            exchange.reject(exchange.problem)
        elif self._given.among == () and not exchange.preflight:
            exchange.reject(NONE_IN_SUBSET)
        elif ends or exchange.preflight:
            exchange.body_complete = True
            exchange.begin()

    def request_body(self, data: bytes, *, ends: bool) -> None:
        exchange = self.exchange
        if exchange.response_complete:
            return
        if exchange.body_complete:
            raise BadMessage("a body goes on after its end")
        self._has_body = True
        if exchange.take(data, self._body_bytes_max):
            assert exchange.problem is not None
            exchange.reject(exchange.problem)
        elif ends:
            exchange.body_complete = True
            exchange.begin()

    def request_trailers(self) -> None:
        if not self.exchange.response_complete:
            if self.exchange.body_complete:
                raise BadMessage("trailers come after the end of the request")
            self._has_trailers = self.exchange.body_complete = True
            self.exchange.begin()

    def _called(self, request_id: RequestId) -> None:
        self._id = request_id
        self._links.owners[request_id] = self._send

    def _send(self, link: EngineLink, data: bytes) -> None:
        """An attempt sends the request: the proxy does."""
        assert self._link is None  # a proxy sends a request once
        self._link = link
        self.exchange.given = True
        end = data.index(HEAD_END)
        body = data[end + len(HEAD_END) :]
        path, ours = _request_head(data[:end])
        given = self._given.fields
        fields = [] if path == self._given.path else [(b":path", path)]
        fields += [(name, ours[name]) for name in ours if name not in _PROXYS and ours[name] != given.get(name)]
        removed = [name for name in given if name not in _PROXYS and name not in ours]
        replies = self._replies
        attempt = link.attempt
        assert attempt is not None
        replies.destination(self._links.endpoints(attempt.call.request, attempt.model, link.upstream), fields, removed)
        if self._has_body:
            replies.request_body(body, ends=not self._has_trailers)
        if self._has_trailers:
            replies.request_trailers()

    def response_head(self, status: int, fields: Sequence[Field], served: str, *, ends: bool) -> None:
        if self._link is None:
            self.exchange.left()
            self._passes = True
            self._replies.head(b"")
            return
        self._replies.bodiless = self.exchange.bodiless = ends
        if served:
            self._links.served(self._link, served)
        if status == _UNREACHABLE:
            self._links.addresses.unreachable(self._link.upstream.target.host)
        lines = b"".join(b"%b: %b\r\n" % field for field in fields if field[0] not in _OF_REPLY)
        self.exchange.proxied = head = b"HTTP/1.1 %d X\r\nconnection: close\r\n%b\r\n" % (status, lines)
        self._link.feed(head)
        if ends:
            self._link.end()

    def response_body(self, data: bytes, *, ends: bool) -> None:
        if self._passes:
            _pass(self._replies, data, ends=ends)
        elif self._link is not None:
            if data:
                self._link.feed(data)
            if ends:
                self._link.end()

    def response_trailers(self) -> None:
        self._replies.has_trailers = True
        if self._passes:
            self._replies.end()
        elif self._link is not None:
            self._link.end()

    def left(self) -> None:
        self._links.owners.pop(self._id, None)
        self.exchange.left()


class PassedCall(ProxiedCall):
    """A request on a path that is not routed, such as a list of models: it goes to a backend that is up, uncounted."""

    def __init__(self, replies: ProxyReplies, endpoint: str) -> None:
        """*endpoint*: of the backend; empty: there is none."""
        self._replies = replies
        if endpoint:
            replies.destination(endpoint, (), ())
        else:
            body = answers.body(Dialect.OPENAI, NONE_IN_SUBSET)
            replies.immediate(NONE_IN_SUBSET.status, b"content-type: application/json\r\n", body)

    def request_body(self, data: bytes, *, ends: bool) -> None:
        self._replies.request_body(data, ends=ends)

    def request_trailers(self) -> None:
        self._replies.request_trailers()

    def response_head(self, status: int, fields: Sequence[Field], served: str, *, ends: bool) -> None:
        self._replies.bodiless = ends
        self._replies.head(b"")
        if ends:
            self._replies.end()

    def response_body(self, data: bytes, *, ends: bool) -> None:
        _pass(self._replies, data, ends=ends)

    def response_trailers(self) -> None:
        self._replies.has_trailers = True
        self._replies.end()

    def left(self) -> None:
        """Nothing is held for it."""


def _pass(replies: ProxyReplies, data: bytes, *, ends: bool) -> None:
    """A piece of a reply goes on unchanged."""
    if data:
        replies.body(data)
    if ends:
        replies.end()


def _request_head(head: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """The path and the fields of a head of ours."""
    first, *lines = head.split(b"\r\n")
    split = (line.partition(b": ") for line in lines)
    return first.split(b" ")[1], {name.lower(): value for name, _, value in split}
