"""The matrix itself: one row an engine and endpoint, one cell a column, printed at the end of a run."""

from dataclasses import dataclass, field
from enum import Enum

COLUMNS = ("first token", "tokens", "usage", "TPOT", "error first", "error mid-stream", "cancel", "metrics")


class Verdict(Enum):
    """What a cell says."""

    OK = "ok"
    OFF = "OFF"
    SKIPPED = "skip"


@dataclass(frozen=True, slots=True)
class Cell:
    """``note``: both numbers where they differ, the reason where nothing was checked."""

    verdict: Verdict
    note: str = ""

    @property
    def off(self) -> bool:
        """Whether it fails the run."""
        return self.verdict is Verdict.OFF


OK = Cell(Verdict.OK)
NOT_REACHED = Cell(Verdict.OFF, "the run of this row failed")


def off(note: str) -> Cell:
    """The gateway and the reference differ."""
    return Cell(Verdict.OFF, note)


def skipped(note: str) -> Cell:
    """Nothing could be checked."""
    return Cell(Verdict.SKIPPED, note)


@dataclass(slots=True)
class Matrix:
    """Cells by engine and endpoint, in the order in which they were filled. ``absent``: engines without one."""

    rows: dict[tuple[str, str], dict[str, Cell]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The table, then a line for each cell that is off and for each reason to skip."""
        if not self.rows:
            return []
        rows = {f"{engine} {endpoint}": cells for (engine, endpoint), cells in self.rows.items()}
        width = max(map(len, rows))
        grid = ["  ".join(["".ljust(width), *COLUMNS])]
        notes: dict[str, list[str]] = {}
        for name, found in rows.items():
            cells = {column: found.get(column, NOT_REACHED) for column in COLUMNS}
            marks = [cells[column].verdict.value.ljust(len(column)) for column in COLUMNS]
            grid.append("  ".join([name.ljust(width), *marks]).rstrip())
            for column in COLUMNS:
                if note := cells[column].note:
                    notes.setdefault(f"{cells[column].verdict.value}: {name}: {note}", []).append(column)
        return [
            *grid,
            *(f"{note} ({', '.join(columns)})" for note, columns in notes.items()),
            *(f"cannot run here: {name}: {why}" for name, why in self.absent.items()),
        ]
