"""Prints a table without cutting a cell: in one where the terminal is wide enough, else in parts below each other.

A file or a pipe has no margin: there the console is made as wide as the table. Columns that may fold do so before the
table is parted.
"""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Column, Table

_WIDE = 10_000
_FOLDED = 24  # what is left of a column that folds


def print_whole(console: Console, table: Table, keys: int = 1) -> None:
    """Print *table*; its first *keys* columns name the rows and begin each part."""
    needed = _width(console, table)
    if needed <= console.width or (console.is_terminal and needed - _foldable(table) <= console.width):
        console.print(table)
    elif not console.is_terminal:
        console.width = needed
        console.print(table)
    else:
        for part in _parts(console, table, keys):
            console.print(part)


def _foldable(table: Table) -> int:
    """How much narrower the table is with its folding columns folded."""
    folds = [column for column in table.columns if column.overflow == "fold" and not column.no_wrap]
    return sum(max(0, max(map(len, [str(column.header), *_cells(column)])) - _FOLDED) for column in folds)


def _width(console: Console, table: Table) -> int:
    return console.measure(table, options=console.options.update(max_width=_WIDE)).maximum


def _parts(console: Console, table: Table, keys: int) -> Iterator[Table]:
    """Tables of as many columns as fit; a column that never fits is folded."""
    left = list(range(keys, len(table.columns)))
    title = table.title
    while left:
        taken = [left.pop(0)]
        while left and _width(console, _part(table, keys, [*taken, left[0]])) <= console.width:
            taken.append(left.pop(0))
        part = _part(table, keys, taken)
        part.title, title = title, None
        if _width(console, part) > console.width:
            for column in part.columns:
                column.no_wrap, column.overflow = False, "fold"
        yield part


def _part(table: Table, keys: int, taken: Sequence[int]) -> Table:
    columns = [table.columns[n] for n in (*range(keys), *taken)]
    part = Table(box=table.box, pad_edge=table.pad_edge, title_justify=table.title_justify)
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=True)
    for row, cells in zip(table.rows, zip(*map(_cells, columns), strict=True), strict=True):
        part.add_row(*cells, style=row.style)
    return part


def _cells(column: Column) -> list[str]:
    return [str(cell) for cell in column.cells]
