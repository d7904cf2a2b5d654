"""The identity of one of several workers that serve one port as one router: its slot, its files, its share of the work.

One host, and a folder that only this user may enter. Must not depend on what a worker does.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """One worker. ``slot`` of ``slots``, from 0; ``name``: the router's id, with which each worker's id begins."""

    folder: Path
    slot: int
    slots: int
    name: str

    @property
    def router_id(self) -> str:
        """This worker's id among all routers; the same after a restart."""
        return self.id_of(self.slot)

    def id_of(self, slot: int) -> str:
        """The id of the worker in *slot*."""
        return f"{self.name}.w{slot}"

    @property
    def others(self) -> tuple[int, ...]:
        """The other slots."""
        return tuple(slot for slot in range(self.slots) if slot != self.slot)

    # -- the share of the work ---------------------------------------------------------------------------------

    def alive(self, peers: Collection[str]) -> list[int]:
        """The slots of the workers alive, this one's among them; *peers*: ids of the other routers with a lease."""
        return sorted([self.slot, *(slot for slot in self.others if self.id_of(slot) in peers)])

    def leads(self, peers: Collection[str]) -> bool:
        """Whether this worker does what only one may do."""
        return self.alive(peers)[0] == self.slot

    def scrapes(self, engine: str, peers: Collection[str]) -> bool:
        """Whether this worker reads that engine's metrics: one of those alive does, chosen by the engine's name."""
        alive = self.alive(peers)
        return alive[crc32(engine.encode()) % len(alive)] == self.slot

    # -- the files ---------------------------------------------------------------------------------------------

    def socket(self, slot: int) -> Path:
        """The socket on which a worker answers the others; a socket's path is at most some 100 bytes long."""
        return self.folder / f"w{slot}.sock"

    def changes(self, slot: int) -> Path:
        """The socket on which a worker receives the changes of the others."""
        return self.folder / f"w{slot}.changes"

    def counters(self, slot: int) -> Path:
        """The last values of a worker's counters."""
        return self.folder / f"w{slot}.counters"

    def used(self, slot: int) -> Path:
        """What the accounts of a worker have used."""
        return self.folder / f"w{slot}.used"

    def record(self, file: Path) -> Path:
        """The worker's own record, where the config names *file*."""
        return file.with_stem(f"{file.stem}-w{self.slot}")

    @property
    def running(self) -> Path:
        """The config that serves."""
        return self.folder / "running.json"

    @property
    def drains(self) -> Path:
        """The backends that an operator has drained."""
        return self.folder / "drains.json"

    @property
    def restarts(self) -> Path:
        """The number of restarts of workers."""
        return self.folder / "restarts"
