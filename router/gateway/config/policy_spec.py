"""A policy as the config specifies it: a name or the text of a file, with parameters. It is not constructed yet.

Keeps the text that was read, so that what was validated is what serves, even if the file changes. A file's code is
executed in this process only after it was executed in the validation's process.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import policies
from router import loading
from router.config.settings import Named, Own

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
        """The policy as plain JSON values, for validation, records and comparison."""
        if self.source is None:
            return {"name": self.name, "parameters": dict(self.parameters)}
        return {"path": self.source.path, "text": self.source.text, "parameters": dict(self.parameters)}

    def make(self) -> Any:
        """Construct the policy. Raises ValueError, which says what is wrong with it."""
        if self.source is not None:
            return loading.load(self.kind, self.source, self.parameters)
        return policies.find(self.kind, self.name, self.parameters)


def chosen(kind: str, given: Own | Named, folder: Path, read: Read = loading.read) -> PolicySpec:
    """The policy that the config specifies; a file's path is relative to *folder*.

    Raises ValueError when the file cannot be read, or when the source contains what a policy may not.
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
    """A text that is the same for equal parts, for comparison."""
    return json.dumps(parts, sort_keys=True, default=str)
