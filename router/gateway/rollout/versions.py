"""The configs that served, each with its validation, for rollback.

Bounded: the oldest one is dropped. Stored on disk as well where the config names a folder: one file a version, with the
texts of its policy files, readable by this user alone because a config may hold keys.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from router.config.settings import Settings
from router.config.text import document
from router.core.errors import ConfigError
from router.gateway.config.plan import Plan, make
from router.gateway.private_files import make_folder, replace_content
from router.loading import Source

_log = logging.getLogger("headroom")


@dataclass(frozen=True, slots=True)
class Version:
    """One config as it served. ``plan`` is None for one read from disk, until it is needed; ``bad``: why no automatic
    rollback may choose it.
    """

    version: str
    at_s: float
    origin: str
    text: str
    sources: Mapping[str, str] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)
    bad: str = ""
    plan: Plan | None = None

    def made(self, path: Path) -> Plan:
        """Its plan, ready to serve, made from the texts that were validated. Raises ConfigError."""
        if self.plan is not None:
            return self.plan
        text = document(self.text, str(path))
        return make(text.parse(Settings), text, source_of=self._source).loaded()

    def _source(self, path: Path) -> Source:
        return Source(str(path), self.sources[str(path)])

    def plain(self) -> dict[str, Any]:
        """Plain JSON values without the text, which may hold keys."""
        return {name: getattr(self, name) for name in ("version", "at_s", "origin", "validation", "bad")}


class Versions:
    """The last versions, in the order in which they served."""

    def __init__(self, most: int, folder: Path | None) -> None:
        """Reads the versions in *folder*."""
        self._most, self._folder = most, folder
        self._list: list[Version] = []
        if folder is not None:
            make_folder(folder)
            self._list = sorted((v for v in map(_read, folder.glob("*.json")) if v), key=lambda v: v.at_s)
            self._trim()

    def __iter__(self) -> Any:
        """Newest first."""
        return reversed(self._list)

    def add(self, new: Version) -> None:
        """Add the version that serves now; an earlier entry of the same version is removed."""
        self._list = [each for each in self._list if each.version != new.version]
        self._list.append(new)
        self._write(new)
        self._trim()

    def blame(self, version: str, why: str) -> None:
        """Exclude a version from automatic rollback."""
        self._list = [replace(v, bad=why) if v.version == version else v for v in self._list]
        for each in self._list:
            if each.version == version:
                self._write(each)

    def find(self, version: str) -> Version:
        """The version of that name. Raises ConfigError, which lists the stored versions."""
        for each in reversed(self._list):
            if each.version == version:
                return each
        raise ConfigError(
            [f"no version {version!r} in the history; stored: {', '.join(v.version for v in self._list)}"]
        )

    def before(self, running: str) -> Version | None:
        """The newest version other than *running* that is not bad; None when there is none."""
        return next((v for v in reversed(self._list) if v.version != running and not v.bad), None)

    def _trim(self) -> None:
        while len(self._list) > self._most:
            old = self._list.pop(0)
            if self._folder is not None:
                (self._folder / f"{old.version}.json").unlink(missing_ok=True)

    def _write(self, version: Version) -> None:
        if self._folder is None:
            return
        facts = {name: getattr(version, name) for name in ("text", "sources")} | version.plain()
        try:
            replace_content(self._folder / f"{version.version}.json", json.dumps(facts).encode())
        except OSError as problem:
            _log.error("history: version not written: %s", problem)


def _read(path: Path) -> Version | None:
    try:
        return Version(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as problem:
        _log.warning("history: version file %s is skipped: %s", path, problem)
        return None
