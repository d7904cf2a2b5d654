"""What differs between two configs that served: keys with both values, and the text of policy files.

Works on the texts, whose list items are matched by their names. No value that may be a secret is shown. Must not depend
on what a key means.
"""

import re
from collections.abc import Iterator, Mapping
from difflib import unified_diff
from typing import Any, Final

from router.config.text import document
from router.gateway.rollout.versions import Version

SECRET: Final = re.compile(r"(^|_)(key|password|secret|token|sha256|authorization)$", re.IGNORECASE)
_IN_URL: Final = re.compile(r"//[^/@\s]*@")
_HIDDEN: Final = "(a secret, not shown)"


def differences(old: Version, new: Version) -> dict[str, Any]:
    """As JSON: ``keys``, each with its value before and now (None: not there); ``files``, a unified diff by path."""
    before, now = _flat(old), _flat(new)
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return {
        "from": old.version,
        "to": new.version,
        "keys": [
            {"key": key, "from": _shown(key, before.get(key)), "to": _shown(key, now.get(key))} for key in changed
        ],
        "files": {
            path: _text(path, old.sources.get(path, ""), new.sources.get(path, ""))
            for path in sorted({*old.sources, *new.sources})
            if old.sources.get(path) != new.sources.get(path)
        },
    }


def _flat(version: Version) -> dict[str, Any]:
    return dict(_leaves("", document(version.text, version.version).data))


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value with its path, as errors of a config name it."""
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _leaves(f"{key}.{name}" if key else str(name), each)
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        for number, each in enumerate(value):
            name = each.get("name", number) if isinstance(each, Mapping) else number
            yield from _leaves(f"{key}[{name}]", each)
    else:
        yield key, value


def _shown(key: str, value: Any) -> Any:
    if value is None:
        return None
    if any(SECRET.search(part) for part in re.split(r"[.\[\]]", key)):
        return _HIDDEN
    return _IN_URL.sub("//...@", value) if isinstance(value, str) else value


def _text(path: str, old: str, new: str) -> str:
    return "".join(unified_diff(old.splitlines(True), new.splitlines(True), path, path))
