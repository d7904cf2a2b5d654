"""A Kubernetes API server on a real socket, as far as lists and watches go.

It behaves as the real one where that matters here: one counter of versions for all objects, lists in pages, watches
that begin after a version and go on line by line, bookmarks, selectors of labels, versions that are forgotten (410, as
the status of an answer or as an event), bearer tokens (401), rights (403), and watches that it ends by itself.
"""

import asyncio
import json
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
_PLURALS = {"EndpointSlice": "/apis/discovery.k8s.io/v1", "Pod": "/api/v1", "Service": "/api/v1"}


class WatchedApi:
    """Objects of one namespace. ``forbidden``: plurals that may not be read; ``log``: every path with its query."""

    def __init__(self, namespace: str = "models", token: str = "") -> None:
        self.namespace, self.token = namespace, token
        self.objects: dict[str, dict[str, Object]] = {}  # by collection, by name
        self.events: list[tuple[int, str, str, Object]] = []  # version, collection, type, object
        self.forbidden: set[str] = set()
        self.page_max = 500
        self.log: list[str] = []
        self.watches = 0
        self.port = 0
        self._version, self._forgotten = 100, 0
        self._changed = asyncio.Event()
        self._end = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- what happens in the cluster ---------------------------------------------------------------------------

    def put(self, kind: str, given: Object) -> None:
        """Create or change an object."""
        collection, name = self._collection(kind), given["metadata"]["name"]
        known = self.objects.setdefault(collection, {})
        self._happened(collection, "MODIFIED" if name in known else "ADDED", given)
        known[name] = given

    def remove(self, kind: str, name: str) -> None:
        """Delete one."""
        collection = self._collection(kind)
        self._happened(collection, "DELETED", self.objects[collection].pop(name))

    def bookmark(self, kind: str) -> None:
        """Tell watches the version; nothing has changed for them."""
        self._happened(self._collection(kind), "BOOKMARK", {"kind": kind, "metadata": {}})

    def forget(self) -> None:
        """Only what happens from now on can be watched."""
        self._forgotten = self._version

    def end_watches(self) -> None:
        """End every watch in good order, as after its time."""
        ended, self._end = self._end, asyncio.Event()
        ended.set()

    def _collection(self, kind: str) -> str:
        return f"{_PLURALS[kind]}/namespaces/{self.namespace}/{kind.lower()}s"

    def _happened(self, collection: str, kind: str, given: Object) -> None:
        self._version += 1
        given["metadata"]["resourceVersion"] = str(self._version)
        self.events.append((self._version, collection, kind, json.loads(json.dumps(given))))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- requests ------------------------------------------------------------------------------------------------

    async def _answer(self, target: str, headers: str, writer: asyncio.StreamWriter) -> None:
        self.log.append(target)
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if self.token and f"authorization: bearer {self.token}" not in headers.lower():
            return _send(writer, 401, _status(401, "Unauthorized"))
        if self.forbidden & set(parts.path.split("/")):
            return _send(writer, 403, _status(403, f"forbidden: cannot list {parts.path}"))
        collection, _, name = parts.path.rpartition("/")
        if parts.path not in self.objects and collection in self.objects:
            found = self.objects[collection].get(name)
            return _send(writer, *((200, found) if found else (404, _status(404, f'"{name}" not found'))))
        if query.get("watch"):
            return await self._watch(parts.path, query, writer)
        return _send(writer, *self._list(parts.path, query))

    def _list(self, collection: str, query: dict[str, str]) -> tuple[int, Object]:
        begin, version = 0, self._version
        if "continue" in query:
            begin, version = json.loads(query["continue"])
            if version < self._forgotten:
                return 410, _status(410, "The provided continue parameter is too old")
        names = sorted(self.objects.get(collection, {}))
        found = [self.objects[collection][name] for name in names]
        found = [each for each in found if _selected(each, query)]
        most = min(self.page_max, int(query.get("limit", "500")))
        metadata = {"resourceVersion": str(version)}
        if len(found) > begin + most:
            metadata["continue"] = json.dumps([begin + most, version])
        return 200, {"kind": "List", "metadata": metadata, "items": found[begin : begin + most]}

    async def _watch(self, collection: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        seen = int(query["resourceVersion"])
        if seen < self._forgotten:
            return _send(writer, 410, _status(410, f"too old resource version: {seen} ({self._forgotten})"))
        writer.write(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        self.watches += 1
        end = self._end
        try:
            while not end.is_set():
                changed = self._changed
                for version, where, kind, given in self.events:
                    if version > seen and where == collection and (kind == "BOOKMARK" or _selected(given, query)):
                        seen = version
                        _line(writer, {"type": kind, "object": given})
                if seen < self._forgotten:
                    _line(writer, {"type": "ERROR", "object": _status(410, "too old resource version")})
                    break
                await writer.drain()
                waits = [asyncio.ensure_future(each.wait()) for each in (changed, end)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for each in waits:
                    each.cancel()
            writer.write(b"0\r\n\r\n")
        finally:
            self.watches -= 1
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                await self._answer(head.split(" ")[1], head, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and break every connection."""
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        self.end_watches()
        await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _selected(given: Object, query: dict[str, str]) -> bool:
    wanted = [part.split("=") for part in query.get("labelSelector", "").split(",") if part]
    labels = given["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in wanted)


def _line(writer: asyncio.StreamWriter, event: Object) -> None:
    text = json.dumps(event).encode() + b"\n"
    writer.write(b"%x\r\n%b\r\n" % (len(text), text))


def _send(writer: asyncio.StreamWriter, status: int, given: Object) -> None:
    text = json.dumps(given).encode()
    writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(text), text))


def _status(code: int, message: str) -> Object:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
