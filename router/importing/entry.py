"""A file of another router as a tree of settings: each with its line, and whether it has been taken.

What no format takes is named in the imported config, so a part of the tree is left unused only by being unknown.
"""

from collections.abc import Iterator
from math import isfinite

Key = str | int
_NUMBER_MOST = 1e15  # beyond it a number is a mistake in any unit


class Entry:
    """One setting, or a section of several; ``value`` is a scalar, and None for a section.

    ``line`` counts from 1. A key may be there more than once: ``get`` finds the first, and the others stay unused.
    """

    __slots__ = ("line", "parts", "path", "used", "value")

    def __init__(self, line: int, path: tuple[Key, ...] = (), value: object = None) -> None:
        self.line, self.path, self.value = line, path, value
        self.parts: list[Entry] = []
        self.used = False

    def add(self, key: Key, line: int, value: object = None) -> "Entry":
        """A part of this section."""
        part = Entry(line, (*self.path, key), value)
        self.parts.append(part)
        return part

    @property
    def key(self) -> Key:
        """The last part of its path."""
        return self.path[-1] if self.path else ""

    @property
    def name(self) -> str:
        """``model_list[0].model_name``."""
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return text.removeprefix(".") or "(the whole file)"

    def get(self, *path: Key) -> "Entry | None":
        """The part under that path, taken or not."""
        found: Entry | None = self
        for key in path:
            found = next((part for part in found.parts if part.key == key), None) if found is not None else None
        return found

    def take(self, *path: Key) -> "Entry | None":
        """The part under that path, with all below it, which from now on counts as taken."""
        found = self.get(*path)
        if found is not None:
            found.used = True
        return found

    def take_text(self, *path: Key) -> str:
        """The text of a scalar, which counts as taken; empty where there is none."""
        found = self.get(*path)
        if found is None or found.parts or found.value is None:
            return ""
        found.used = True
        return found.text

    def take_positive(self, *path: Key) -> float | None:
        """The scalar as a number above 0, which counts as taken; None, and nothing is taken, where it is none."""
        found = self.get(*path)
        number = found.number if found is not None else None
        if found is None or number is None or number <= 0:
            return None
        found.used = True
        return number

    def left(self) -> Iterator["Entry"]:
        """The settings that nothing has taken, in the order of the file. A list of scalars is one setting."""
        if self.used:
            return
        if self.path and all(isinstance(part.key, int) and not part.parts and not part.used for part in self.parts):
            yield self
            return
        for part in self.parts:
            yield from part.left()

    def texts(self) -> list[str]:
        """The value as a list of texts: a scalar, a list of them, or a text with commas."""
        if self.parts:
            return [part.text for part in self.parts if not part.parts and part.value is not None]
        return [each.strip() for each in self.text.split(",") if each.strip()]

    @property
    def text(self) -> str:
        """The scalar as text; a boolean as YAML writes it."""
        if isinstance(self.value, bool):
            return "true" if self.value else "false"
        return "" if self.value is None else str(self.value)

    @property
    def number(self) -> float | None:
        """The scalar as a number of a plausible size; None where it is none."""
        if isinstance(self.value, bool) or self.value is None:
            return None
        try:
            number = float(str(self.value))
        except ValueError:
            return None
        return number if isfinite(number) and abs(number) <= _NUMBER_MOST else None

    @property
    def count(self) -> int | None:
        """The same where it is a whole number of at least 0."""
        number = self.number
        return int(number) if number is not None and number >= 0 and number == int(number) else None
