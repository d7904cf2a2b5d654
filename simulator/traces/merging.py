"""Several trace files as one: names that clash are kept apart, and clocks that have nothing in common begin together.

Ids of requests, sessions and prefix blocks are numbered by each file for itself, so the same ones in two files mean
different things; only hashes of contents (``TraceFormat.shared_hashes``) mean the same everywhere. Files whose times
lie near each other keep their distance. If they lie further apart than an hour and than all of them are long, they
count from different zeros (a date, the begin of a recording): then each group begins at 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from simulator.traces.entry import Reading, TraceEntry

_NEAR_S: Final = 3_600.0
_DAY_S: Final = 86_400.0
_FILE_SHIFT: Final = 80  # above every hash that a file has


@dataclass(frozen=True, slots=True)
class Merged:
    """The entries of all files in order of arrival, and what was changed in order to merge them."""

    entries: list[TraceEntry]
    notes: tuple[str, ...] = ()


def merged(readings: Sequence[tuple[str, Reading]]) -> Merged:
    """The files as one trace; *readings* by their names. One file stays as it is."""
    if len(readings) == 1:
        return Merged(readings[0][1].entries)
    offsets_s, notes = _offsets([(name, reading.entries) for name, reading in readings])
    entries: list[TraceEntry] = []
    taken = _Names()
    for number, (_, reading) in enumerate(readings):
        entries += taken.distinct(reading, number, offsets_s[number])
    return Merged(sorted(entries, key=lambda entry: entry.arrived_s), notes)


class _Names:
    """The names that files so far have used."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._sessions: set[str] = set()
        self._hashes: set[int] = set()

    def distinct(self, reading: Reading, number: int, offset_s: float) -> list[TraceEntry]:
        """The entries of the file with that number, under names of its own where those are taken."""
        entries = reading.entries
        ids = {entry.id for entry in entries if entry.id}
        sessions = {entry.session for entry in entries if entry.session}
        hashes = {block for entry in entries for block in (*entry.prefix, *entry.known_prefix)}
        mark = f"@{number + 1}"
        of_ids = "" if ids.isdisjoint(self._ids) else mark
        of_sessions = "" if sessions.isdisjoint(self._sessions) else mark
        shift = 0 if reading.shared_hashes or hashes.isdisjoint(self._hashes) else number << _FILE_SHIFT
        self._ids |= ids
        self._sessions |= sessions
        self._hashes |= hashes
        if not (of_ids or of_sessions or shift or offset_s):
            return entries
        return [
            replace(
                entry,
                arrived_s=entry.arrived_s - offset_s,
                id=entry.id + of_ids if entry.id else "",
                after=tuple(name + of_ids for name in entry.after),
                session=entry.session + of_sessions if entry.session else "",
                prefix=tuple(block + shift for block in entry.prefix),
                known_prefix=tuple(block + shift for block in entry.known_prefix),
            )
            for entry in entries
        ]


def _offsets(files: Sequence[tuple[str, Sequence[TraceEntry]]]) -> tuple[list[float], tuple[str, ...]]:
    """What to subtract from the times of each file, and a note if that is not 0."""
    spans = [(entries[0].arrived_s, entries[-1].arrived_s) for _, entries in files]
    near_s = max(_NEAR_S, sum(end_s - start_s for start_s, end_s in spans))
    order = sorted(range(len(files)), key=lambda n: spans[n])
    groups = [[order[0]]]
    end_s, widest_s = spans[order[0]][1], 0.0
    for n in order[1:]:
        gap_s = spans[n][0] - end_s
        if gap_s > near_s:
            groups.append([])
            widest_s = max(widest_s, gap_s)
        groups[-1].append(n)
        end_s = max(end_s, spans[n][1])
    if len(groups) == 1:
        return [0.0] * len(files), ()
    offsets_s = [0.0] * len(files)
    for group in groups:
        for n in group:
            offsets_s[n] = spans[group[0]][0]
    names = " | ".join(", ".join(files[n][0] for n in group) for group in groups)
    apart = f"{widest_s / _DAY_S:.0f} days" if widest_s >= _DAY_S else f"{widest_s:.0f} s"
    return offsets_s, (f"the clocks of {names} lie {apart} apart: each counts from its own first request",)
