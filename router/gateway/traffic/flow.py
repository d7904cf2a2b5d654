"""Back-pressure between a client's connection and what answers on it. Must not depend on requests."""

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """uvicorn's, with an event only while writing is paused: the deque of one takes 0.7 KiB on each connection."""

    def __init__(self, transport: asyncio.Transport) -> None:
        # Not uvicorn's, which makes the event.
        self._transport = transport
        self.read_paused = self.write_paused = False
        self._writable: asyncio.Event | None = None

    async def drain(self) -> None:
        """Wait until the client has taken enough."""
        if self._writable is not None:
            await self._writable.wait()

    def pause_writing(self) -> None:
        """Too many bytes wait for the client."""
        if not self.write_paused:
            self.write_paused = True
            self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        """The client has taken most of them."""
        if self.write_paused:
            self.write_paused = False
            writable, self._writable = self._writable, None
            assert writable is not None
            writable.set()
