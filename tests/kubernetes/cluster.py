"""The objects of a cluster as its API server gives them, without a socket: lists, single objects, watches.

It behaves as the real one where that matters here: one counter of versions for all objects, lists in pages, watches
that begin after a version, bookmarks, selectors of labels and fields (an object that a selector no longer matches is
deleted for its watch), versions that are forgotten (410, as the status of an answer or as an event), rights (403). A
watch may lag behind: ``delay`` a collection, and its events come one by one with ``deliver``; lists are always of now.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qs, urlsplit

from router.core.errors import KubernetesError

Object = dict[str, Any]
Query = dict[str, str]
_PLURALS = {"EndpointSlice": "/apis/discovery.k8s.io/v1", "Pod": "/api/v1", "Service": "/api/v1"}


class Cluster:
    """Objects of one namespace. ``forbidden``: plurals that may not be read, or ``VERB PLURAL``; ``log``: every path
    with its query.
    """

    def __init__(self, namespace: str = "models") -> None:
        self.namespace = namespace
        self.objects: dict[str, dict[str, Object]] = {}  # by collection, by name
        self.events: list[tuple[int, str, str, Object, Object]] = []  # version, collection, type, object, before
        self.forbidden: set[str] = set()
        self.page_max = 500
        self.log: list[str] = []
        self.watches = 0
        self._version, self._forgotten = 100, 0
        self._delivered: dict[str, int] = {}  # by collection that is delayed, the version of its last event
        self._changed = asyncio.Event()
        self._end = asyncio.Event()

    # -- what happens in the cluster ---------------------------------------------------------------------------

    def put(self, kind: str, given: Object) -> None:
        """Create or change an object."""
        collection, name = self._collection(kind), given["metadata"]["name"]
        known = self.objects.setdefault(collection, {})
        self._happened(collection, "MODIFIED" if name in known else "ADDED", given, known.get(name))
        known[name] = _copy(given)

    def remove(self, kind: str, name: str) -> None:
        """Delete one."""
        collection = self._collection(kind)
        given = self.objects[collection].pop(name)
        self._happened(collection, "DELETED", given, _copy(given))

    def bookmark(self, kind: str) -> None:
        """Give watches the version; nothing has changed for them."""
        self._happened(self._collection(kind), "BOOKMARK", {"kind": kind, "metadata": {}})

    def forget(self) -> None:
        """Only what happens from now on can be watched; open watches end when they look."""
        self._forgotten = self._version

    def end_watches(self) -> None:
        """End every watch in good order, as after its time."""
        ended, self._end = self._end, asyncio.Event()
        ended.set()

    def delay(self, *kinds: str) -> None:
        """Watches of these get nothing from now on but by ``deliver``."""
        self._delivered |= {self._collection(kind): self._version for kind in kinds}

    def waiting(self, kind: str) -> int:
        """The number of events that have not been delivered."""
        collection = self._collection(kind)
        return sum(version > self._delivered[collection] for version, where, *_ in self.events if where == collection)

    def deliver(self, kind: str) -> None:
        """The next event of this kind."""
        collection = self._collection(kind)
        after = self._delivered[collection]
        self._delivered[collection] = next(
            version for version, where, *_ in self.events if where == collection and version > after
        )
        self.look()

    def as_delivered(self, kind: str) -> dict[str, Object]:
        """The objects of this kind by the events that watches have got."""
        collection = self._collection(kind)
        found: dict[str, Object] = {}
        for version, where, what, given, _ in self.events:
            if where == collection and version <= self._delivered.get(collection, self._version):
                found[given["metadata"]["name"]] = given
                if what == "DELETED":
                    del found[given["metadata"]["name"]]
        return found

    def look(self) -> None:
        """Let watches look what there is for them."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _collection(self, kind: str) -> str:
        return f"{_PLURALS[kind]}/namespaces/{self.namespace}/{kind.lower()}s"

    def _happened(self, collection: str, kind: str, given: Object, before: Object | None = None) -> None:
        self._version += 1
        given["metadata"]["resourceVersion"] = str(self._version)
        self.events.append((self._version, collection, kind, _copy(given), before or {}))
        self.look()

    # -- requests ----------------------------------------------------------------------------------------------

    def answer(self, target: str) -> tuple[int, Object]:
        """A list, or one object."""
        path, query = _parts(target)
        collection, _, name = path.rpartition("/")
        one = name not in {f"{kind.lower()}s" for kind in _PLURALS}
        if refused := self._refused(path, "get" if one else "list"):
            return 403, refused
        if one:
            found = self.objects.get(collection, {}).get(name)
            return (200, found) if found else (404, status(404, f'"{name}" not found'))
        return self._list(path, query)

    def _refused(self, path: str, verb: str) -> Object | None:
        plurals = set(path.split("/"))
        forbidden = plurals | {f"{verb} {each}" for each in plurals}
        return status(403, f"forbidden: cannot {verb} {path}") if forbidden & self.forbidden else None

    def _list(self, collection: str, query: Query) -> tuple[int, Object]:
        begin, version = 0, self._version
        if "continue" in query:
            begin, version = json.loads(query["continue"])
            if version < self._forgotten:
                return 410, status(410, "The provided continue parameter is too old")
        names = sorted(self.objects.get(collection, {}))
        found = [self.objects[collection][name] for name in names]
        found = [each for each in found if _selected(each, query)]
        most = min(self.page_max, int(query.get("limit", "500")))
        metadata = {"resourceVersion": str(version)}
        if len(found) > begin + most:
            metadata["continue"] = json.dumps([begin + most, version])
        return 200, {"kind": "List", "metadata": metadata, "items": found[begin : begin + most]}

    def watch_refused(self, target: str) -> tuple[int, Object] | None:
        """The answer in place of a watch; None: it begins."""
        path, query = _parts(target)
        if refused := self._refused(path, "watch"):
            return 403, refused
        seen = int(query["resourceVersion"])
        if seen < self._forgotten:
            return 410, status(410, f"too old resource version: {seen} ({self._forgotten})")
        return None

    async def watch(self, target: str) -> AsyncGenerator[Object, None]:
        """The events for a watch; ends where the server ends it."""
        collection, query = _parts(target)
        seen, end = int(query["resourceVersion"]), self._end
        self.watches += 1
        try:
            while not end.is_set():
                changed = self._changed
                for version, event in self._new(collection, query, seen):
                    seen = version
                    yield event
                if seen < self._forgotten:
                    yield {"type": "ERROR", "object": status(410, "too old resource version")}
                    return
                waits = [asyncio.ensure_future(each.wait()) for each in (changed, end)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for each in waits:
                    each.cancel()
        finally:
            self.watches -= 1

    def _new(self, collection: str, query: Query, seen: int) -> list[tuple[int, Object]]:
        last = self._delivered.get(collection, self._version)
        found = []
        for version, where, kind, given, before in self.events:
            if seen < version <= last and where == collection and (as_seen := _as_seen(kind, given, before, query)):
                found.append((version, {"type": as_seen, "object": given}))
        return found


class ClusterClient:
    """What the router needs of a client of the API, on a cluster in this process."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    async def get(self, target: str) -> Object:
        """Like ``KubernetesClient.get``."""
        self.cluster.log.append(target)
        await asyncio.sleep(0)
        code, found = self.cluster.answer(target)
        if code != 200:
            raise KubernetesError(code, found["message"])
        return _copy(found)

    async def lines(self, target: str, idle_s: float) -> AsyncGenerator[bytes, None]:
        """Like ``KubernetesClient.lines``."""
        self.cluster.log.append(target)
        if refused := self.cluster.watch_refused(target):
            raise KubernetesError(refused[0], refused[1]["message"])
        async with aclosing(self.cluster.watch(target)) as events:
            async for event in events:
                yield json.dumps(event).encode()


def _as_seen(kind: str, given: Object, before: Object, query: Query) -> str:
    """An event as a watch with selectors has it; empty: it has none of it."""
    if kind == "BOOKMARK":
        return kind
    was = bool(before) and _selected(before, query)
    now = kind != "DELETED" and _selected(given, query)
    if was and not now:
        return "DELETED"
    return ("MODIFIED" if was else "ADDED") if now else ""


def _selected(given: Object, query: Query) -> bool:
    wanted = [part.split("=") for part in query.get("labelSelector", "").split(",") if part]
    labels = given["metadata"].get("labels", {})
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    return all(labels.get(key) == value for key, value in wanted) and name in {"", given["metadata"]["name"]}


def _parts(target: str) -> tuple[str, Query]:
    parts = urlsplit(target)
    return parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()}


def _copy(given: Object) -> Object:
    copied: Object = json.loads(json.dumps(given))
    return copied


def status(code: int, message: str) -> Object:
    """An error of the API."""
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
