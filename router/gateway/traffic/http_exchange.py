"""One request of a client connection, answered as HTTP/1.1 of ours.

Must not depend on backends, attempts or how messages are found on a connection. To uvicorn's protocol it is one of its
cycles, without a task.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl

from router.engines import Translation
from router.gateway.protocols.openai import Endpoint
from router.gateway.traffic.exchange import Exchange
from router.gateway.traffic.http import NO_BODY, STATUS_LINES, Head, chunk
from router.gateway.traffic.ports import Frame, RequestDriver

_VERSION: Final = b"HTTP/1.1 "
_CLOSE: Final = b"connection: close\r\n"


def identity(data: bytes) -> bytes:
    """No framing: the body ends with the connection, or its length was stated."""
    return data


class HttpExchange(Exchange):
    """``response_complete`` and ``keep_alive`` are read by uvicorn's protocol."""

    __slots__ = ("_early", "_flow", "_on_complete", "_socket", "_transport")

    def __init__(
        self,
        transport: asyncio.Transport,
        flow: FlowControl,
        on_complete: "Callable[[HttpExchange], None]",
        driver: RequestDriver,
        endpoint: Endpoint,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        fields: dict[bytes, bytes],
        socket: int = -1,
    ) -> None:
        """*socket*: the descriptor of the transport's socket, if that takes an answer's bytes as they are."""
        super().__init__(driver, endpoint, path, headers, fields)
        self._socket = socket
        self._transport = transport
        self._flow = flow
        self._on_complete = on_complete
        self._early = 0  # bytes of the status line that were sent before its status was known

    # -- the client's connection ---------------------------------------------------------------------------------

    def drop(self) -> None:
        """Close the client's connection at once."""
        self._transport.abort()

    # -- the answer --------------------------------------------------------------------------------------------

    def send_early(self) -> bool:
        """Send one more byte of what every status line begins with. False: there is none, or the line has been sent."""
        if self.status or self._early == len(_VERSION):
            return False
        self._transport.write(_VERSION[self._early : self._early + 1])
        self._early += 1
        return True

    def writer(self) -> Callable[[bytes], object]:
        """The function that sends later bytes."""
        return self._transport.write

    def socket(self) -> int:
        """Its socket, unless bytes are waiting in front of it."""
        transport = self._transport
        if self.response_complete or transport.is_closing() or transport.get_write_buffer_size():
            return -1
        return self._socket

    def open(
        self, head: Head, body: bytes, translation: Translation | None, backend: bytes, predicted_ttft_s: float
    ) -> Frame | None:
        """Send status, fields and first bytes of a reply. Returns the framing of later bytes, None: unchanged."""
        self.status = head.status
        frame, framing = self._framing(head, body, translation)
        self._transport.write(
            b"%b%b%b%b%b\r\n%b"
            % (
                STATUS_LINES[head.status][self._early :],
                translation.fields if translation is not None else head.fields,
                self._reply_fields(backend, predicted_ttft_s),
                framing,
                b"" if self.keep_alive else _CLOSE,
                frame(body) if frame is not None else body,
            )
        )
        if self._flow.write_paused:  # since a reply before this one: it is not reported again
            self.pause()
        return frame

    def _framing(self, head: Head, body: bytes, translation: Translation | None) -> tuple[Frame | None, bytes]:
        if head.status in NO_BODY:
            return None, b""
        if translation is not None and translation.whole:
            return identity, b"content-length: %d\r\n" % len(body)
        if self.http10:
            known = head.length >= 0 and translation is None
            return identity, b"content-length: %d\r\n" % head.length if known else b""
        if head.chunked or translation is not None or (head.until_close and not self.head_only):
            return chunk if translation is not None or not head.chunked else None, b"transfer-encoding: chunked\r\n"
        return None, b"" if head.length < 0 else b"content-length: %d\r\n" % head.length

    def _answer(self, status: int, fields: bytes, body: bytes) -> None:
        self.status, self.answer_bytes = status, len(body)
        self._transport.write(
            b"%b%b%bcontent-length: %d\r\n%b\r\n%b"
            % (
                STATUS_LINES.get(status, STATUS_LINES[502])[self._early :],
                fields,
                self._answer_fields(),
                len(body),
                b"" if self.keep_alive else _CLOSE,
                b"" if self.head_only else body,
            )
        )
        self.finish()

    def break_off(self, why: str, ending: Frame | None) -> None:
        """End a stream that has failed: with an error event where one may follow, and never as if it were whole."""
        if ending is not None:
            self._transport.write(ending(self._break_event(why)))
        elif self.http10:
            self._transport.abort()  # closing the connection in good order would end the body as if it were whole
        self.keep_alive = False
        self.finish()

    def finish(self) -> None:
        """The answer is complete and sent."""
        self._forget()
        self._on_complete(self)
