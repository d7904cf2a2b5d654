"""The configs that served, each with its proof: what a rollback goes back to.

Believes: a version that served is whole. Bounded, the oldest goes; on disk as well where the config names a folder, one
file a version with the texts of its policy files, readable by this user alone because a config may hold keys.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from router.core.errors import ConfigError
from router.gateway.atomic_file import replace_content
from router.gateway.config.plan import Plan, make
from router.gateway.config.settings import Settings
from router.gateway.config.text import document
from router.loading import Source

_log = logging.getLogger("headroom")


@dataclass(frozen=True, slots=True)
class Version:
    """One config as it served. ``plan`` is None for one read from disk until it is wanted; ``bad``: why it may not
    serve again by itself.
    """

    version: str
    at_s: float
    origin: str
    text: str
    sources: Mapping[str, str] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)
    bad: str = ""
    plan: Plan | None = None

    def made(self, path: Path) -> Plan:
        """Its plan, ready to serve, from the texts that were proved then. Raises ConfigError."""
        if self.plan is not None:
            return self.plan
        text = document(self.text, str(path))
        return make(text.parse(Settings), text, source_of=self._source).loaded()

    def _source(self, path: Path) -> Source:
        return Source(str(path), self.sources[str(path)])

    def plain(self) -> dict[str, Any]:
        """For people: no text, which may hold keys."""
        return {name: getattr(self, name) for name in ("version", "at_s", "origin", "proof", "bad")}


class Versions:
    """The last ones, oldest first."""

    def __init__(self, kept: int, folder: Path | None) -> None:
        """Reads what *folder* holds from before."""
        self._kept, self._folder = kept, folder
        self._list: list[Version] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._list = sorted((v for v in map(_read, folder.glob("*.json")) if v), key=lambda v: v.at_s)
            self._trim()

    def __iter__(self) -> Any:
        """Newest first."""
        return reversed(self._list)

    def add(self, new: Version) -> None:
        """It serves now; the same version from before gives way to it."""
        self._list = [each for each in self._list if each.version != new.version]
        self._list.append(new)
        self._write(new)
        self._trim()

    def blame(self, version: str, why: str) -> None:
        """No rollback without a name goes there."""
        self._list = [replace(v, bad=why) if v.version == version else v for v in self._list]
        for each in self._list:
            if each.version == version:
                self._write(each)

    def find(self, version: str) -> Version:
        """By its name. Raises ConfigError listing those there are."""
        for each in reversed(self._list):
            if each.version == version:
                return each
        raise ConfigError([f"no version {version!r} is kept; there are {', '.join(v.version for v in self._list)}"])

    def before(self, running: str) -> Version | None:
        """The newest good one other than *running*; None with no such."""
        return next((v for v in reversed(self._list) if v.version != running and not v.bad), None)

    def _trim(self) -> None:
        while len(self._list) > self._kept:
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
            _log.error("history: %s", problem)


def _read(path: Path) -> Version | None:
    try:
        return Version(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as problem:
        _log.warning("history: %s is left out: %s", path, problem)
        return None
