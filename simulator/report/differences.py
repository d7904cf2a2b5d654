"""Differences between rows of a comparison in the terminal, each with its interval."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from simulator.report.table import CLEAR, FIGURES, difference_text, widen
from simulator.report.whole import print_whole

Key = tuple[str, ...]
Differences = Mapping[tuple[Key, Key], Mapping[str, tuple[float, float]]]
"""By the first and the second row: each figure of the second minus that of the first, with its half width."""

_SHOWN_MOST: Final = 40


def print_differences(
    console: Console,
    keys: Sequence[str],
    between: Differences,
    figures: Sequence[tuple[str, str, Callable[[float], str]]] = FIGURES,
    over: str = "",
) -> None:
    """One row a pair of rows, which differ in one of *keys*; of very many pairs those with a first row of its kind.

    *over*: what the intervals are over, if not over seeds, for the heading.
    """
    if not between:
        return
    widen(console, 130)
    shown = _shown(between)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=_title(between, over), title_justify="left")
    fixed = [n for n in range(len(keys)) if len({pair[0][n] for pair in between} | {p[1][n] for p in between}) > 1]
    for n in fixed:
        table.add_column(keys[n], no_wrap=True)
    for _, heading, _ in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in shown:
        cells = [difference_text(*between[pair][name], text) for name, _, text in figures]
        table.add_row(*(_place(pair, n) for n in fixed), *cells)
    print_whole(console, table, keys=len(fixed))
    if len(shown) < len(between):
        console.print(f"{len(between) - len(shown)} further differences stand in --json", style="dim", highlight=False)


def _title(between: Differences, over: str) -> str:
    halves = [half for of_figures in between.values() for _, half in of_figures.values()]
    if all(isnan(half) for half in halves):
        return "differences, second minus first; one seed has no interval: give --seeds"
    return f"differences, second minus first, {over}+- 95 % confidence ({CLEAR}: without 0)"


def _shown(between: Differences) -> list[tuple[Key, Key]]:
    """All pairs; of too many, those whose first row has the first value where the two differ."""
    every = list(between)
    if len(every) <= _SHOWN_MOST:
        return every
    firsts: dict[tuple[int, Key], str] = {}
    for first, second in every:
        firsts.setdefault(_group(first, second), first[_differing(first, second)])
    return [(a, b) for a, b in every if firsts[_group(a, b)] == a[_differing(a, b)]]


def _differing(first: Key, second: Key) -> int:
    return next(n for n, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)


def _group(first: Key, second: Key) -> tuple[int, Key]:
    """What the two have in common, and which place they differ in."""
    at = _differing(first, second)
    return at, (*first[:at], *first[at + 1 :])


def _place(pair: tuple[Key, Key], n: int) -> str:
    first, second = pair
    return first[n] if first[n] == second[n] else f"{first[n]} -> {second[n]}"
