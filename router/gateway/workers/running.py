"""The config that all workers serve: one numbered file, which the worker that takes another config replaces.

A version that was validated in one worker is valid for all. The highest number counts: a worker that finds a higher
number than its own takes that version, so that all end with the same one, whichever worker was first.
"""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from router.gateway.private_files import private, replace_content
from router.gateway.rollout.versions import Version


@dataclass(frozen=True, slots=True)
class Running:
    """What serves since change ``number``; ``bad``: by version, why it may not serve again by itself."""

    number: int
    version: Version
    bad: Mapping[str, str] = field(default_factory=dict)


def publish(file: Path, version: Version, bad: Mapping[str, str]) -> int:
    """Make *version* what all serve; its number. Raises OSError."""
    with alone(file):
        before = read(file)
        number = before.number + 1 if before else 1
        content = {"number": number, "version": _plain_version(version), "bad": dict(bad)}
        replace_content(file, orjson.dumps(content, default=str))
        return number


def read(file: Path) -> Running | None:
    """What serves; None before the first."""
    try:
        plain = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    return Running(plain["number"], Version(**plain["version"]), plain["bad"])


def _plain_version(version: Version) -> dict[str, Any]:
    return {"text": version.text, "sources": dict(version.sources)} | version.plain()


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """One writer of a file at a time; it takes less than a millisecond."""
    with open(file.with_name(f"{file.name}.lock"), "w", opener=private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
