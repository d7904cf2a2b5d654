"""What a proxy is sent in answer to one request, as messages of its protocol, in the order that it requires.

Bodies are streamed both ways (FULL_DUPLEX_STREAMED): each piece of what goes on is a message of its own, and head comes
before body before trailers. Must not depend on gRPC, or on what is decided.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from router.gateway.epp.extension import ENDPOINT, NAMESPACE
from router.gateway.epp.messages import OVERWRITE, ProcessingResponse

_PIECE_BYTES_MAX: Final = 60 * 1024  # the protocol recommends at most 64 KiB
_DETAILS: Final = "headroom"

Field = tuple[bytes, bytes]


class ProxyReplies:
    """A ``Replies`` (exchange.py).

    ``waiting``: messages that have not been written; ``over``: none will follow them; ``aborted``: and then the
    client's stream is to be reset. ``has_trailers`` and ``bodiless`` are of the engine's reply.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.waiting: deque[Any] = deque()
        self.over = self.aborted = self.has_trailers = self.bodiless = False
        self._wake = wake

    # -- the request -------------------------------------------------------------------------------------------

    def destination(self, endpoints: str, fields: Iterable[Field], removed: Iterable[bytes]) -> None:
        """Where the proxy is to send the request, and how its head changes."""
        message = ProcessingResponse()
        response = message.request_headers.response
        response.clear_route_cache = True  # the route may depend on where it goes
        _set(response.header_mutation, [(ENDPOINT.encode(), endpoints.encode()), *fields])
        response.header_mutation.remove_headers.extend(name.decode("latin-1") for name in removed)
        message.dynamic_metadata.update({NAMESPACE: {ENDPOINT: endpoints}})
        self._put(message)

    def request_body(self, data: bytes, *, ends: bool) -> None:
        """The request's body, or more of it."""
        for piece, last in _pieces(data):
            message = ProcessingResponse()
            streamed = message.request_body.response.body_mutation.streamed_response
            streamed.body = piece
            streamed.end_of_stream = ends and last
            self._put(message)

    def request_trailers(self) -> None:
        """The request's trailers stay as they are."""
        message = ProcessingResponse()
        message.request_trailers.SetInParent()
        self._put(message)

    # -- the reply ---------------------------------------------------------------------------------------------

    def head(self, fields: bytes) -> None:
        """The reply may begin; these header lines are added to it."""
        message = ProcessingResponse()
        message.response_headers.SetInParent()
        _set(message.response_headers.response.header_mutation, _fields(fields))
        self._put(message)

    def other_head(self, status: int, fields: bytes, proxied: bytes) -> None:
        """The reply may begin, with this status and these header lines in place of those of *proxied*."""
        message = ProcessingResponse()
        message.response_headers.SetInParent()
        mutation = message.response_headers.response.header_mutation
        named = _fields(fields)
        _set(mutation, [(b":status", b"%d" % status), *named])
        theirs = dict(_fields(proxied.partition(b"\r\n")[2]))
        mutation.remove_headers.extend(name.decode("latin-1") for name in theirs.keys() - dict(named).keys())
        self._put(message)

    def body(self, data: bytes) -> None:
        """More of the reply's body: called once for every token. What has not been written yet is one message."""
        if len(data) > _PIECE_BYTES_MAX:
            for piece, _ in _pieces(data):
                self._piece(piece)
        else:
            self._piece(data)

    def _piece(self, data: bytes) -> None:
        if self.waiting and not self.over and self.waiting[-1].HasField("response_body"):
            streamed = self.waiting[-1].response_body.response.body_mutation.streamed_response
            if len(streamed.body) + len(data) <= _PIECE_BYTES_MAX:
                streamed.body += data
                self._wake()
                return
        message = ProcessingResponse()
        message.response_body.response.body_mutation.streamed_response.body = data
        self._put(message)

    def end(self) -> None:
        """The reply is complete."""
        if self.over:
            return
        if self.has_trailers:
            message = ProcessingResponse()
            message.response_trailers.SetInParent()
            self.waiting.append(message)
        elif not self.bodiless:
            if not (self.waiting and self.waiting[-1].HasField("response_body")):
                self.waiting.append(ProcessingResponse())
            self.waiting[-1].response_body.response.body_mutation.streamed_response.end_of_stream = True
        self.over = True
        self._wake()

    def immediate(self, status: int, fields: bytes, body: bytes) -> None:
        """The proxy is to answer with this, whatever the engine does."""
        message = ProcessingResponse()
        immediate = message.immediate_response
        immediate.status.code = status
        immediate.body = body
        immediate.details = _DETAILS
        _set(immediate.headers, _fields(fields))
        self.waiting.clear()
        self.over = True
        self._put(message)

    def abort(self) -> None:
        """The proxy is to reset the client's stream."""
        self.waiting.clear()
        self.over = self.aborted = True
        self._wake()

    def _put(self, message: Any) -> None:
        self.waiting.append(message)
        self._wake()


def _pieces(data: bytes) -> Iterable[tuple[bytes, bool]]:
    """The data in pieces, at least one, each with whether it is the last."""
    for begin in range(0, max(len(data), 1), _PIECE_BYTES_MAX):
        end = begin + _PIECE_BYTES_MAX
        yield data[begin:end], end >= len(data)


def _fields(lines: bytes) -> list[Field]:
    """Header lines as names and values."""
    split = (line.partition(b":") for line in lines.split(b"\r\n") if line)
    return [(name.lower(), value.strip()) for name, _, value in split]


def _set(mutation: Any, fields: Iterable[Field]) -> None:
    """Have these headers replace those of their names; a name that comes twice has both values."""
    seen: set[bytes] = set()
    for name, value in fields:
        option = mutation.set_headers.add(append_action=0 if name in seen else OVERWRITE)
        option.header.key = name.decode("latin-1")
        option.header.raw_value = value
        seen.add(name)
