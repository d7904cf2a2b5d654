"""A small HTTP server of fixed pages on a real socket: the control side of an engine."""

import asyncio

from tests.http_server import HttpServer, Received, send


class Pages(HttpServer):
    """Answers GET by path: ``pages["/health"] = (200, b"")``; a path not there is 404. ``asked`` lists what came."""

    def __init__(self, pages: dict[str, tuple[int, bytes]]) -> None:
        super().__init__()
        self.pages = pages
        self.asked: list[str] = []

    async def respond(self, request: Received, writer: asyncio.StreamWriter) -> None:
        self.asked.append(request.target)
        send(writer, *self.pages.get(request.target, (404, b"")))
