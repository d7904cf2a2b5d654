"""What a format of an import is. Must not depend on any one of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from router.importing.draft import NO_EQUIVALENT, UNKNOWN, Draft
from router.importing.entry import Entry

ROUTING: Final = "slo_headroom"


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file.

    ``recognises``: whether a text is of this format; ``read``: its settings as trees, raising ConfigError with the line
    of a fault; ``take``: puts what has an equivalent into a draft. ``reasons``: by the last part of a setting's name,
    why one that is known has no equivalent, or what to do in its place.
    """

    name: str
    title: str
    recognises: Callable[[str], bool]
    read: Callable[[str, str], list[Entry]]
    take: Callable[[list[Entry], Draft], None]
    reasons: Mapping[str, str]

    def name_the_rest(self, trees: list[Entry], draft: Draft) -> None:
        """A note for every setting that was not taken."""
        for tree in trees:
            for entry in list(tree.left()):
                draft.note(entry, self._why(entry))

    def _why(self, entry: Entry) -> str:
        for key in reversed(entry.path):
            if isinstance(key, str) and key in self.reasons:
                return self.reasons[key]
        return UNKNOWN


def route(draft: Draft, entry: Entry, nearest: str) -> None:
    """Headroom's own routing policy; *nearest*: the one that is closest to what the file has."""
    was = f"line {entry.line} has {entry.text or entry.key}"
    like = f"; {nearest} is the nearest to it" if nearest else ""
    draft.put(entry, ROUTING, "policy", "routing", comment=f"{was}{like}")


def put_number(
    draft: Draft, entry: Entry | None, *path: str, scale: float = 1.0, plus: float = 0.0, whole: bool = False
) -> None:
    """A number of another unit; what is no positive number is noted."""
    if entry is None:
        return
    given = entry.number
    value = None if given is None else given * scale + plus
    if value is None or value <= 0 or (whole and value != int(value)):
        draft.note(entry, f"left out: expected a {'whole ' if whole else ''}number above 0 for {'.'.join(path)}")
    else:
        entry.used = True
        draft.put(entry, int(value) if whole else value, *path)


def without(why: str = "") -> str:
    """The reason of a setting that has no equivalent."""
    return f"{NO_EQUIVALENT}: {why}" if why else NO_EQUIVALENT
