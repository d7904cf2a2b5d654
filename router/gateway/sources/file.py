"""Backends from files of target lists, in the form of Prometheus's ``file_sd``; YAML or JSON, read again on a change.

``[{targets: ["10.0.0.7:8000", "https://engine-b"], labels: {card: h100}}]``. The folder is watched, not the files:
editors and ConfigMaps put another file in its place. Where the file system reports no changes, the files are read every
second. The first half of a list may be a list: a text counts once it has stayed the same for a moment. A file that is
missing, empty or broken is a failure; no target is what ``[]`` says.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from watchfiles import awatch

from router.core.errors import SourceFailed
from router.gateway.sources.endpoint import Endpoint, Source, name_of

LOOK_MS: Final = 1_000  # how often the files are read where the file system reports no changes
SETTLED_S: Final = 0.1  # between two readings of the same text before it counts
_READINGS_MAX: Final = 50  # of files that never stay the same
BYTES_MAX: Final = 8 * 2**20  # of all files
_WILD: Final = frozenset("*?[")
_KEYS: Final = frozenset({"targets", "labels"})


class FileTargets(Source):
    """The targets in one file, or in all that match."""

    def __init__(self, path: Path) -> None:
        """*path*: its last part may have wildcards."""
        self._path = path

    async def sets(self) -> AsyncGenerator[tuple[Endpoint, ...], None]:
        """Whenever the files' texts have changed."""
        seen: list[tuple[Path, bytes]] | None = None
        async for _ in self._looks():
            now = await self._settled(seen)
            if now != seen:
                seen = now
                yield tuple(each for path, text in now for each in endpoints(path, text))

    async def _settled(self, seen: list[tuple[Path, bytes]] | None) -> list[tuple[Path, bytes]]:
        """The texts, where they are others than *seen* once they have stayed the same."""
        now = await asyncio.to_thread(self._texts)
        for _ in range(_READINGS_MAX):
            if now == seen:
                break
            await asyncio.sleep(SETTLED_S)
            before, now = now, await asyncio.to_thread(self._texts)
            if now == before:
                break
        return now

    async def _looks(self) -> AsyncIterator[None]:
        yield None
        folder = self._path.parent
        try:
            async for _ in awatch(
                folder, debounce=200, step=50, recursive=False, rust_timeout=LOOK_MS, yield_on_timeout=True
            ):
                yield None
        except OSError as error:
            raise SourceFailed(f"{folder} cannot be watched: {error}") from None

    def _texts(self) -> list[tuple[Path, bytes]]:
        folder, pattern = self._path.parent, self._path.name
        files = sorted(folder.glob(pattern)) if _WILD & set(pattern) else [self._path]
        if not files:
            raise SourceFailed(f"no file matches {self._path}")
        found, left = [], BYTES_MAX
        for file in files:
            text = _read(file, left)
            left -= len(text)
            found.append((file, text))
        return found


def _read(file: Path, bytes_max: int) -> bytes:
    try:
        with file.open("rb") as opened:
            text = opened.read(bytes_max + 1)
    except OSError as error:
        raise SourceFailed(f"{file} cannot be read: {error.strerror}") from None
    if len(text) > bytes_max:
        raise SourceFailed(f"{file}: over {BYTES_MAX} bytes of target lists")
    if not text.strip():
        raise SourceFailed(f"{file} is empty; a list without targets is []")
    return text


def endpoints(path: Path, text: bytes) -> Iterator[Endpoint]:
    """The targets of one file. Raises SourceFailed, which names the place."""
    try:
        groups = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SourceFailed(f"{path}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(groups, list):
        raise SourceFailed(f"{path}: expected a list of {{targets: [...], labels: {{...}}}}")
    for index, group in enumerate(groups):
        yield from _group(f"{path}: [{index}]", group)


def _group(at: str, group: Any) -> Iterator[Endpoint]:
    if not isinstance(group, dict) or not isinstance(group.get("targets"), list) or group.keys() - _KEYS:
        raise SourceFailed(f"{at}: expected targets: [...] and, if any, labels: {{...}}")
    labels = group.get("labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(key, str) for key in labels):
        raise SourceFailed(f"{at}.labels: expected names with values")
    named = labels.get("name")
    if named is not None and (not isinstance(named, str) or len(group["targets"]) != 1):
        raise SourceFailed(f"{at}.labels.name: expected the name of the one target there")
    facts = {key: value for key, value in labels.items() if key != "name"}
    for index, target in enumerate(group["targets"]):
        if not isinstance(target, str) or not target:
            raise SourceFailed(f"{at}.targets[{index}]: expected host:port or a URL")
        url = target if "://" in target else f"http://{target}"
        yield Endpoint(named or name_of(url.partition("://")[2]), url, facts)
