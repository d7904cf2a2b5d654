"""Streams of plain tokens on a shorter way: one loop in C (``_fast_path.c``) reads, counts and sends for all of them.

While a stream is there, no transport reads its engine's connection and none writes to its client's. What is no plain
token, or cannot be sent at once, goes back to its owner, and so does the stream. Must not depend on what else a reply
may be. Where the loop was not built, or the system has no epoll, no stream is ever there.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from router.core.native import extension
from router.gateway.traffic.event_stream import EventStream
from router.gateway.traffic.meter import GAP_EDGES_S

_log = logging.getLogger("headroom")

_C: Final = extension("router.gateway.traffic._fast_path")
BUILT: Final = _C is not None
NO_SOCKET: Final = -1
_RETURNS: Final = 8  # a stream that has come back so often,
_READS_A_RETURN: Final = 4  # and not passed so many reads each time, costs more there than it saves


class Owner(Protocol):
    """Receives what is no plain token."""

    def returned(self, data: bytes, *, counted: bool) -> None:
        """The stream is on the fast path no more: *data* of a read of which nothing was passed on (empty: the
        connection is at its end), or, *counted*, the unsent rest of one that was counted.
        """

    def crashed(self) -> None:
        """``returned`` raised an exception."""


class FastPath:
    """The loop, for all streams of one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._streams: Any = None
        self._loop: Any = None  # any, since uvloop's remove_reader returns no bool
        self._descriptor = NO_SOCKET  # which that loop watches

    def stream(self, owner: Owner, gaps: list[int]) -> Any:
        """A stream of it. *gaps*: the counts of the histogram in which it counts the time between tokens. Where this
        process has no descriptor left for the loop, none enters until a later stream finds one.
        """
        assert _C is not None
        if self._streams is None:
            self._streams = _C.Streams(GAP_EDGES_S)
        if self._loop is None and (descriptor := self._streams.open()) != NO_SOCKET:
            self._loop, self._descriptor = asyncio.get_running_loop(), descriptor
            self._loop.add_reader(descriptor, self._pass_on)
        return _C.Stream(self._streams, owner, gaps)

    def _pass_on(self) -> None:
        """Some streams can be read."""
        found: list[tuple[Owner, bytes, bool]] = self._streams.pass_on(self._clock())
        for owner, data, counted in found:
            try:
                owner.returned(data, counted=counted)
            except Exception:  # the others go on
                _log.exception("a stream failed with an exception in the gateway; its engine's connection is closed")
                owner.crashed()

    def close(self) -> None:
        """No stream is there any more."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
            self._streams.close()
        self._loop = self._streams = None


class FastStream:
    """One stream that may take it. ``here``: it is on it, and its counts are not in its meter until it leaves."""

    __slots__ = ("_events", "_returns", "_source", "_stream", "_transport", "_whole", "here")

    def __init__(
        self, path: FastPath, owner: Owner, events: EventStream, transport: asyncio.Transport, source: int
    ) -> None:
        """*source*: the socket of *transport*, which is the engine's."""
        self.here = False
        self._events = events
        self._transport = transport
        self._source = source
        self._stream = path.stream(owner, events.meter.gaps.counts)
        self._whole = False
        self._returns = 0

    @property
    def heard_s(self) -> float:
        """When its last byte came."""
        heard_s: float = self._stream.heard_s
        return heard_s

    def enter(self, data: bytes, sink: int, now_s: float) -> int:
        """A read that begins where a chunk does. If it is plain tokens, they are counted, as many bytes as possible are
        sent on the socket *sink* (``NO_SOCKET``: there is none now), and if those are all, the stream is here from now
        on. Returns how many bytes were sent, -1: nothing was done.
        """
        stream = self._stream
        meter = self._events.meter
        meter.hand_over(stream)
        count: int = stream.events_in(data)
        self._whole = count >= 0
        if count <= 0 or sink == NO_SOCKET:
            return -1
        if not meter.needs_no_look(data):
            self.returns()
            return -1
        sent: int = stream.enter(self._source, sink, data)
        if sent < 0:
            return -1
        stream.count(data, count, now_s)
        self.here = sent == len(data)
        if self.here:
            self._transport.pause_reading()
        else:
            self._take_back()
        return sent

    def passed_whole(self) -> bool:
        """Whether the read that ``enter`` did not take ends where a chunk does; it has been passed on since."""
        if self._whole:
            self._events.chunks_passed()
        return self._whole

    def leave(self) -> None:
        """Back to the event loop, which reads again."""
        if self.here:
            self.here = False
            self._stream.leave()
            self._take_back()
            self._transport.resume_reading()

    def _take_back(self) -> None:
        self._events.meter.take_back(self._stream)
        self._events.chunks_passed()

    def returns(self) -> None:
        """It is returned, or refused, once more."""
        self._returns += 1

    @property
    def pays(self) -> bool:
        """Whether it has not been returned too often."""
        if self._returns < _RETURNS:
            return True
        reads: int = self._stream.reads
        return reads >= _READS_A_RETURN * self._returns
