"""One request of a proxy: read as every call is, answered by what the proxy is to do.

Must not depend on gRPC or on the form of its messages: ``Replies`` has that.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from router.core.types import RequestId
from router.engines import Translation
from router.gateway.protocols.openai import Endpoint
from router.gateway.traffic.call import Call
from router.gateway.traffic.exchange import Exchange
from router.gateway.traffic.http import Head, parse_head
from router.gateway.traffic.ports import Frame, RequestDriver


class Replies(Protocol):
    """What the proxy is sent in answer to one request, in order."""

    def head(self, fields: bytes) -> None:
        """The reply may begin; these header lines are added to it."""

    def other_head(self, status: int, fields: bytes, proxied: bytes) -> None:
        """The reply may begin, with this status and these header lines in place of those that the proxy has, which are
        the lines of *proxied* after its first.
        """

    def body(self, data: bytes) -> None:
        """More of the reply's body: called once for every token."""

    def end(self) -> None:
        """The reply is complete."""

    def immediate(self, status: int, fields: bytes, body: bytes) -> None:
        """The proxy is to answer with this, whatever the engine does."""

    def abort(self) -> None:
        """The proxy is to reset the client's stream."""


def _unframed(data: bytes) -> bytes:
    """The proxy frames what it sends."""
    return data


class PickerExchange(Exchange):
    """One request, from its head to the end of its reply.

    ``given``: the proxy has been given the request; ``proxied``: the head of the reply that it has got, empty: none
    yet; ``bodiless``: that reply has no body.
    """

    __slots__ = ("_on_call", "_replies", "bodiless", "given", "proxied")

    def __init__(
        self,
        replies: Replies,
        on_call: Callable[[RequestId], None],
        driver: RequestDriver,
        endpoint: Endpoint,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        fields: dict[bytes, bytes],
    ) -> None:
        """*on_call* gets the id of its call before the driver gets the call."""
        super().__init__(driver, endpoint, path, headers, fields)
        self._replies = replies
        self._on_call = on_call
        self.given = self.bodiless = False
        self.proxied = b""

    def sent(self) -> bool:
        """Whether the proxy has been given the request."""
        return self.given

    def replaceable(self) -> bool:
        """Whether another can take the place of the reply that it has got: to one without a body it adds none."""
        return self.proxied != b"" and not self.bodiless

    def _read(self, body: bytes) -> Call:
        call = super()._read(body)
        self._on_call(call.request.id)
        return call

    def writer(self) -> Callable[[bytes], object]:
        """The function that sends later bytes."""
        return self._replies.body

    def socket(self) -> int:
        """None: a proxy's messages have a form of their own."""
        return -1

    def open(
        self, head: Head, body: bytes, translation: Translation | None, backend: bytes, predicted_ttft_s: float
    ) -> Frame | None:
        """Let the reply begin, with its first bytes. It is none of the proxy's where the request was sent again."""
        self.status = head.status
        own = self._reply_fields(backend, predicted_ttft_s)
        fields = head.fields if translation is None else translation.fields
        if not self._is_proxied(head):
            self._replies.other_head(head.status, fields + own, self.proxied)
        else:
            self._replies.head(own if translation is None else fields + own)
        if body:
            self._replies.body(body)
        return _unframed

    def _is_proxied(self, head: Head) -> bool:
        """Whether the proxy has got the same head."""
        proxied = parse_head(self.proxied)
        return head.status == proxied.status and head.fields == proxied.fields

    def _answer(self, status: int, fields: bytes, body: bytes) -> None:
        self.status, self.answer_bytes = status, len(body)
        self._replies.immediate(status, fields + self._answer_fields(), b"" if self.head_only else body)
        self._over()

    def break_off(self, why: str, ending: Frame | None) -> None:
        """End a stream that has failed: with an error event where one may follow, else by a reset."""
        if ending is not None:
            self._replies.body(ending(self._break_event(why)))
            self._replies.end()
        else:
            self._replies.abort()
        self._over()

    def finish(self) -> None:
        """The reply is complete and sent."""
        self._replies.end()
        self._over()

    def drop(self) -> None:
        """Have the client's stream reset at once. The driver hears of it when the proxy's stream ends."""
        self._replies.abort()

    def _over(self) -> None:
        if not self.accepted and not self.preflight:
            self.driver.rejected(self.endpoint.path, self.status, self.peer)
        self._forget()
