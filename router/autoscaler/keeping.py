"""Where the autoscaler's memory is kept: in the shared state of the routers, in a file, or nowhere.

Must not depend on what is in it.
"""

from pathlib import Path
from typing import Final, Protocol

from router.core.errors import StoreGone
from router.gateway.private_files import replace_content
from router.gateway.state import Store

MEMORY: Final = "autoscaler"  # what ``memory.py`` writes
HISTORY: Final = "autoscaler:history"  # of arrivals, which is larger and changes slowly
LEASE_S: Final = 60 * 24 * 3600.0  # longer than a week's pattern takes to be learnt
_FILE_MOST: Final = 1 << 24


class Keeper(Protocol):
    """Keeps a value by each name. ``shared``: the autoscalers of other machines read the same ones."""

    shared: bool

    async def keep(self, name: str, value: bytes) -> None:
        """Replace it. Raises StoreGone."""
        ...

    async def kept(self, name: str) -> bytes:
        """The last one; empty where there is none. Raises StoreGone."""
        ...


class NoKeeper:
    """Keeps nothing: what was learnt ends with the process."""

    shared: bool = False

    async def keep(self, name: str, value: bytes) -> None:
        """It is lost."""

    async def kept(self, name: str) -> bytes:
        """There is none."""
        return b""


class StoreKeeper:
    """In the state that the routers share."""

    def __init__(self, store: Store, shared: bool) -> None:
        """``shared``: with other machines."""
        self._store, self.shared = store, shared

    async def keep(self, name: str, value: bytes) -> None:
        """For two months from now."""
        await self._store.keep(name, value, LEASE_S)

    async def kept(self, name: str) -> bytes:
        """Whichever autoscaler it is from."""
        return await self._store.kept(name)


class FileKeeper:
    """In files of this machine: the one that the config names, and others beside it."""

    shared: bool = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def _file(self, name: str) -> Path:
        return self._path.with_name(self._path.name + name.removeprefix(MEMORY).replace(":", "."))

    async def keep(self, name: str, value: bytes) -> None:
        """In one step: a reader finds the one before or this one."""
        file = self._file(name)
        try:
            replace_content(file, value)
        except OSError as error:
            raise StoreGone(f"{file}: {error.strerror or error}") from error

    async def kept(self, name: str) -> bytes:
        """What an earlier process wrote."""
        file = self._file(name)
        try:
            raw = file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StoreGone(f"{file}: {error.strerror or error}") from error
        return raw if len(raw) <= _FILE_MOST else b""
