"""A Kubernetes API server on a real socket, as far as lists and watches go: a cluster, bearer tokens (401), chunks."""

import asyncio
import json
from contextlib import aclosing
from typing import Any

from tests.http_server import HttpServer, Received, send
from tests.kubernetes.cluster import Cluster, status


class WatchedApi(Cluster, HttpServer):
    """The objects of one namespace. ``token``: wanted of every request; empty: none is. ``lists``: cleared, no list is
    answered until it is set.
    """

    def __init__(self, namespace: str = "models", token: str = "") -> None:
        Cluster.__init__(self, namespace)
        HttpServer.__init__(self)
        self.token = token
        self.lists = asyncio.Event()
        self.lists.set()

    async def respond(self, request: Received, writer: asyncio.StreamWriter) -> None:
        self.log.append(request.target)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            _send(writer, 401, status(401, "Unauthorized"))
        elif "watch=" in request.target:
            await self._respond_watch(request.target, writer)
        else:
            await self.lists.wait()
            _send(writer, *self.answer(request.target))

    async def _respond_watch(self, target: str, writer: asyncio.StreamWriter) -> None:
        if refused := self.watch_refused(target):
            _send(writer, *refused)
            return
        writer.write(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        async with aclosing(self.watch(target)) as events:
            async for event in events:
                text = json.dumps(event).encode() + b"\n"
                writer.write(b"%x\r\n%b\r\n" % (len(text), text))
                await writer.drain()
        writer.write(b"0\r\n\r\n")

    async def stop(self) -> None:
        """Close the port and break every connection."""
        self.lists.set()
        self.end_watches()  # their tasks see it only when the connections are closed
        await super().stop()


def _send(writer: asyncio.StreamWriter, code: int, given: dict[str, Any]) -> None:
    send(writer, code, json.dumps(given).encode())
