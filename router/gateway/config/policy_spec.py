"""A policy as the config chose it: by name or as a file's text, with its parameters; not made yet.

Believes: the text as it was read, so that what was proved is what serves, whatever becomes of the file. Must not know
whether it is any good: a file's code runs in this process only after it has run in the proof's.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import policies
from router import loading
from router.gateway.config.settings import Named, Own

Read = Callable[[Path], loading.Source]
NOT_VALIDATED: Final = object()  # stands where a file's policy will be


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """``source``: of a policy file; None for one known by ``name``."""

    kind: str
    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    source: loading.Source | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON holds it: for the proof, the record and comparison."""
        if self.source is None:
            return {"name": self.name, "parameters": dict(self.parameters)}
        return {"path": self.source.path, "text": self.source.text, "parameters": dict(self.parameters)}

    def make(self) -> Any:
        """The policy. ValueError says what is wrong with it."""
        if self.source is not None:
            return loading.load(self.kind, self.source, self.parameters)
        return policies.find(self.kind, self.name, self.parameters)


def chosen(kind: str, given: Own | Named, folder: Path, read: Read = loading.read) -> PolicySpec:
    """What the config means; a file's path is taken from *folder*. ValueError when it cannot be read, or when its
    source or that of a named policy holds what a policy may not.
    """
    file = given.file if isinstance(given, Own) else None
    if file is None:
        loading.check_named(kind, given.name or "")
        return PolicySpec(kind, given.name or "", given.parameters)
    source = read(folder / file)
    return PolicySpec(kind, file.stem, given.parameters, source)


def of_plain(kind: str, plain: Mapping[str, Any]) -> PolicySpec:
    """The inverse of ``plain``."""
    if "text" in plain:
        path = plain["path"]
        return PolicySpec(kind, Path(path).stem, plain["parameters"], loading.Source(path, plain["text"]))
    return PolicySpec(kind, plain["name"], plain["parameters"])


def key(*parts: Any) -> str:
    """A text that is equal when the parts are, for comparison."""
    return json.dumps(parts, sort_keys=True, default=str)
