"""References in a config's texts: ``${NAME}`` to an environment variable, ``${file:PATH}`` to the content of a file.

So that secrets, and what differs from place to place, need not stand in the config. Any text can have one, also inside
of other words; keys of mappings cannot. ``$${`` stands for ``${`` itself. Must not depend on what a key means.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from router.core.errors import Unresolved

_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
_NAME: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:(:-)(.*))?", re.DOTALL)
_FILE: Final = "file:"
_BYTES_MOST: Final = 1 << 20

Loc = tuple[str | int, ...]
Fault = Callable[[Loc, str], None]


def resolved(data: Any, environment: Mapping[str, str], folder: Path, fault: Fault) -> Any:
    """The same values with what their references stand for. *fault* gets the place of each that leads nowhere; a
    relative PATH is from *folder*.
    """

    def value(given: Any, at: Loc) -> Any:
        if isinstance(given, str):
            return text(given, at)
        if isinstance(given, dict):
            return {key: value(each, (*at, key)) for key, each in given.items()}
        return [value(each, (*at, index)) for index, each in enumerate(given)] if isinstance(given, list) else given

    def text(given: str, at: Loc) -> str:
        try:
            return _REFERENCE.sub(lambda found: _meaning(found, environment, folder), given)
        except Unresolved as error:
            fault(at, str(error))
            return given

    return value(data, ())


def files(data: Any, folder: Path) -> Iterator[Path]:
    """The files that references name."""
    if isinstance(data, str):
        named = (found[1] for found in _REFERENCE.finditer(data))
        yield from (folder / name[len(_FILE) :] for name in named if name is not None and name.startswith(_FILE))
    elif isinstance(data, dict | list):
        for each in data.values() if isinstance(data, dict) else data:
            yield from files(each, folder)


def refers(value: Any) -> bool:
    """Whether a value has a reference, itself or in a part of it: what it stands for may be a secret."""
    if isinstance(value, dict | list):
        return any(map(refers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and _REFERENCE.search(value) is not None


def _meaning(found: re.Match[str], environment: Mapping[str, str], folder: Path) -> str:
    """What a reference stands for. Raises Unresolved."""
    name = found[1]
    if name is None:
        return "${"
    if name.startswith(_FILE):
        return _content(folder / name[len(_FILE) :])
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise Unresolved(
            f"expected ${{NAME}}, ${{NAME:-default}} or ${{file:PATH}}, not {found[0]}; $${{ stands for ${{"
        )
    given = environment.get(parts[1], "")
    if given or parts[2]:
        return given or parts[3]
    raise Unresolved(f"environment variable {parts[1]} is not set; ${{{parts[1]}:-default}} does without")


def _content(path: Path) -> str:
    """Without the line break at its end, which editors and ``echo`` write. Raises Unresolved."""
    try:
        with path.open(encoding="utf-8") as file:
            content = file.read(_BYTES_MOST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise Unresolved(f"{path} cannot be read: {error}") from None
    if len(content) > _BYTES_MOST:
        raise Unresolved(f"{path} has more than {_BYTES_MOST} characters")
    return content.rstrip("\r\n")
