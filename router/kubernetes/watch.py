"""All objects of a collection, kept up to date by a watch: list once, then take each change as it comes.

As the documentation of the API requires: a watch begins at the ``resourceVersion`` of the list, is continued from the
last one that it stated (bookmarks state one where nothing changes), and where the server has forgotten that one (410)
everything is listed again. Must not depend on what the objects mean.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import urlencode

from router.core.errors import KubernetesError
from router.kubernetes.client import KubernetesClient, Object

GONE: Final = 410
PAGE: Final = 100  # of objects up to 40 KB, as pods with many managed fields are, within the bytes of one answer
OBJECTS_MAX: Final = 20_000
WATCH_S: Final = 60  # after which the server ends a watch: so a connection that is dead unseen is found soon
PAUSE_S: Final = 0.2  # between two requests: a server that ends each watch at once gets no stream of requests
_GRACE_S: Final = 15.0
_Objects = dict[str, Object]


class Collection:
    """The objects of one kind in one namespace, those that the selectors match."""

    def __init__(
        self, client: KubernetesClient, path: str, selector: str = "", watch_s: int = WATCH_S, fields: str = ""
    ) -> None:
        """*path*: of the collection; *selector*: of labels, as ``kubectl -l`` takes it; *fields*: of fields, as
        ``metadata.name=x``, with which a right to one object is enough.
        """
        self._client, self._path, self._watch_s = client, path, watch_s
        selectors = {"labelSelector": selector, "fieldSelector": fields}
        self._selected = {key: value for key, value in selectors.items() if value}

    async def sets(self) -> AsyncGenerator[Mapping[str, Object], None]:
        """The objects by name, first as listed, then after each change. Raises KubernetesError; never ends."""
        while True:
            objects, version = await self._listed()
            yield objects
            try:
                while True:
                    async with aclosing(self._changes(objects, version)) as changes:
                        async for then, changed in changes:
                            version = then
                            if changed:
                                yield objects
                    await asyncio.sleep(PAUSE_S)
            except KubernetesError as error:
                if error.answer != GONE:
                    raise
                await asyncio.sleep(PAUSE_S)

    async def _listed(self) -> tuple[_Objects, str]:
        """Every object, and the version of the whole list. Raises KubernetesError."""
        for _ in range(2):
            try:
                return await self._all_pages()
            except KubernetesError as error:
                if error.answer != GONE:  # else a page was wanted later than the server keeps the rest for
                    raise
        return await self._all_pages()

    async def _all_pages(self) -> tuple[_Objects, str]:
        objects: _Objects = {}
        more: dict[str, str] = {}
        while True:
            page = await self._client.get(self._url({"limit": str(PAGE)} | more))
            items, metadata = page.get("items"), page.get("metadata")
            if not isinstance(metadata, dict):
                raise KubernetesError(0, f"{self._path}: a list without metadata")
            for each in items if isinstance(items, list) else ():
                self._put(objects, each)
            if not metadata.get("continue"):
                return objects, str(metadata.get("resourceVersion", ""))
            more = {"continue": str(metadata["continue"])}

    async def _changes(self, objects: _Objects, version: str) -> AsyncGenerator[tuple[str, bool], None]:
        """Apply each change from *version* on; the version then, and whether an object has changed. Ends where the
        server ends the watch. Raises KubernetesError, with the status GONE where it has forgotten that version.
        """
        how = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._watch_s),
        }
        async with aclosing(self._client.lines(self._url(how), self._watch_s + _GRACE_S)) as lines:
            async for line in lines:
                if line.strip():
                    yield self._applied(objects, line)

    def _applied(self, objects: _Objects, line: bytes) -> tuple[str, bool]:
        try:
            event = json.loads(line)
            kind, item = event["type"], event["object"]
            if kind == "ERROR":
                raise KubernetesError(int(item.get("code", 0)), f"{self._path}: {str(item.get('message'))[:300]}")
            version = str(item["metadata"]["resourceVersion"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise KubernetesError(0, f"{self._path}: no event of a watch: {line[:100]!r}") from None
        if kind == "DELETED":
            objects.pop(_name(item), None)
        elif kind in {"ADDED", "MODIFIED"}:
            self._put(objects, item)
        return version, kind != "BOOKMARK"

    def _put(self, objects: _Objects, item: Any) -> None:
        if name := _name(item):
            objects[name] = item
        if len(objects) > OBJECTS_MAX:
            raise KubernetesError(0, f"{self._path}: over {OBJECTS_MAX} objects")

    def _url(self, query: Mapping[str, str]) -> str:
        return f"{self._path}?{urlencode({**self._selected, **query})}"


def _name(item: Any) -> str:
    """The object's name; empty where it has none."""
    metadata = item.get("metadata") if isinstance(item, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""
