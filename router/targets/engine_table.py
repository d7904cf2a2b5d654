"""The engines that the local target has started, in a file that outlives it, and the list of those that serve.

Must not depend on how engines are started. One process at a time may change the table: the one that has its lock.
"""

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from router.targets.engine_process import HOST

_log = logging.getLogger("headroom")


class State(Enum):
    """What an engine does. Requests go to those that serve."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"  # no new requests; its streams end
    ENDING = "ending"  # the signal was sent


@dataclass(slots=True)
class Engine:
    """One engine. ``began``: with ``pid``, which process it is; ``since_s``: when its state began, in seconds since the
    epoch.
    """

    name: str
    variant: str
    port: int
    pid: int
    began: int
    state: State
    since_s: float


@dataclass(frozen=True, slots=True)
class Listing:
    """What the list states of every engine of a variant: how it is called, and the facts of a backend."""

    scheme: str
    labels: Mapping[str, str]


class EngineTable:
    """The table of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, -1
        self.engines: dict[str, Engine] = {}

    def log_of(self, name: str) -> Path:
        """Where an engine writes."""
        return self._folder / f"{name}.log"

    @property
    def held(self) -> bool:
        """Whether this process may change the table."""
        return self._lock >= 0

    def locked(self) -> bool:
        """Take the lock, unless another process has it, and read what is in the file. Raises OSError."""
        if self.held:
            return True
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        self.engines = self.read()
        return True

    def unlock(self) -> None:
        """Let another process change the table."""
        if self.held:
            os.close(self._lock)
            self._lock = -1

    def read(self) -> dict[str, Engine]:
        """The engines in the file; none where there is no file, or none that can be read."""
        file = self._folder / "engines.json"
        try:
            found = [_engine(each) for each in json.loads(file.read_bytes())]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.error("%s cannot be read, so no engine that was started before is known: %s", file, error)
            return {}
        return {each.name: each for each in found}

    def write(self, listings: Mapping[str, Listing]) -> None:
        """Write the table, and the list of targets for ``discover: [{file: ...}]``. Raises OSError."""
        plain = [asdict(each) | {"state": each.state.value} for each in self.engines.values()]
        self._replace("engines.json", plain)
        serving = [each for each in self.engines.values() if each.state is State.SERVING]
        self._replace("targets.json", [_target(each, listings.get(each.variant, _UNLISTED)) for each in serving])

    def _replace(self, name: str, content: Any) -> None:
        new = self._folder / f".{name}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(content, file)
        new.replace(self._folder / name)


def _engine(plain: Any) -> Engine:
    return Engine(
        name=str(plain["name"]),
        variant=str(plain["variant"]),
        port=int(plain["port"]),
        pid=int(plain["pid"]),
        began=int(plain["began"]),
        state=State(plain["state"]),
        since_s=float(plain["since_s"]),
    )


_UNLISTED: Final = Listing("http", {})


def _target(engine: Engine, listing: Listing) -> dict[str, Any]:
    facts = {**listing.labels, "name": engine.name, "variant": engine.variant}
    address = f"{HOST}:{engine.port}"
    return {"targets": [address if listing.scheme == "http" else f"https://{address}"], "labels": facts}
