"""Collections that are watched together, each under a name; one may be replaced by another while the rest go on.

Must not depend on what the objects mean.
"""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Self

from router.kubernetes.client import Object
from router.kubernetes.watch import Collection

Objects = Mapping[str, Object]


class Watched:
    """The objects of each collection as of its last event. Used as a context: its end ends every watch."""

    def __init__(self) -> None:
        self._latest: dict[str, Objects] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    async def begin(self, name: str, collection: Collection) -> None:
        """Watch *collection* from now on, in place of the one of that name."""
        await self.end(name)
        self._tasks[name] = asyncio.create_task(self._follow(name, collection), name=f"watch of {name}")

    async def end(self, name: str) -> None:
        """Watch the collection of that name no longer."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._latest.pop(name, None)

    def latest(self, name: str) -> Objects | None:
        """The objects of a collection by name; None until it has been listed. They change with each event."""
        return self._latest.get(name)

    async def change(self, within_s: float | None = None) -> None:
        """Wait for a change, for *within_s* at most. Raises KubernetesError once a watch has failed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._changed.wait()
        self._changed.clear()
        for task in self._tasks.values():
            if task.done():
                task.result()

    async def _follow(self, name: str, collection: Collection) -> None:
        try:
            async with aclosing(collection.sets()) as sets:
                async for objects in sets:
                    self._latest[name] = objects
                    self._changed.set()
        finally:
            self._changed.set()  # also for its failure

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in tuple(self._tasks):
            await self.end(name)
