"""Several processes that serve one port as one router: where each has its seat, and what lies in the folder they share.

Believes: one host, and a folder that only this user may enter. Must not know what any of them does.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """One worker's seat. ``slot`` of ``slots``, from 0; ``name``: the router's id, of which each worker's begins."""

    folder: Path
    slot: int
    slots: int
    name: str

    @property
    def router_id(self) -> str:
        """As which the other routers know this worker; the same after a restart."""
        return self.id_of(self.slot)

    def id_of(self, slot: int) -> str:
        """Another worker's."""
        return f"{self.name}.w{slot}"

    @property
    def others(self) -> tuple[int, ...]:
        """The other slots."""
        return tuple(slot for slot in range(self.slots) if slot != self.slot)

    def socket(self, slot: int) -> Path:
        """Where a worker answers the others; a path of a socket is at most some 100 bytes long."""
        return self.folder / f"w{slot}.sock"

    def counters(self, slot: int) -> Path:
        """What a worker last said of its counters."""
        return self.folder / f"w{slot}.counters"

    def record(self, file: Path) -> Path:
        """The worker's own record, where the config names *file*."""
        return file.with_stem(f"{file.stem}-w{self.slot}")

    @property
    def running(self) -> Path:
        """The config that serves."""
        return self.folder / "running.json"

    @property
    def restarts(self) -> Path:
        """How often a worker had to be started again."""
        return self.folder / "restarts"
