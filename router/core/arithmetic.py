"""What the Python loops have in common, as ``_loops.h`` has it for those in C: the places of arrays, and arithmetic.

Arithmetic is that of IEEE 754: nothing raises, a division by 0 gives inf or nan. Must not depend on numpy, whose own
functions differ from the C library's in the last digit.
"""

import math
from math import copysign, inf, isfinite, isnan, nan
from typing import Protocol


class Cells(Protocol):
    """An array's places: the array itself, or the memoryview of it, whose numbers are Python's own."""

    def __getitem__(self, place: int | tuple[int, ...], /) -> float: ...
    def __setitem__(self, place: int | tuple[int, ...], number: float, /) -> None: ...
    def __len__(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Places(Protocol):
    """The same of whole numbers, of one axis."""

    def __getitem__(self, place: int, /) -> int: ...
    def __len__(self) -> int: ...


class Order(Protocol):
    """The places of numbers by their size, of one axis."""

    def __getitem__(self, rank: int, /) -> int: ...
    def __setitem__(self, rank: int, place: int, /) -> None: ...
    def __len__(self) -> int: ...


def over(a: float, b: float) -> float:
    """``a / b``; of a division by 0, inf with its sign, or nan."""
    if b != 0.0:
        return a / b
    return nan if a == 0.0 or isnan(a) else copysign(inf, a) * copysign(1.0, b)


def root(x: float) -> float:
    """The square root; nan of what is below 0."""
    return nan if x < 0.0 else math.sqrt(x)


def log(x: float) -> float:
    """The logarithm; -inf of 0, nan of what is below."""
    if x > 0.0:
        return math.log(x)
    return -inf if x == 0.0 else nan


def log2(x: float) -> float:
    """The logarithm to base 2; -inf of 0, nan of what is below."""
    if x > 0.0:
        return math.log2(x)
    return -inf if x == 0.0 else nan


def exp(x: float) -> float:
    """e to the x; inf where that is beyond the largest float."""
    try:
        return math.exp(x)
    except OverflowError:
        return inf


def floor(x: float) -> float:
    """The whole number at or below; inf and nan stay."""
    return float(math.floor(x)) if isfinite(x) else x


def ceil(x: float) -> float:
    """The whole number at or above; inf and nan stay."""
    return float(math.ceil(x)) if isfinite(x) else x


def place_below(place: float, most: int) -> int:
    """The place in a table that a number falls on, ``most`` at most; 0 for no number."""
    if place >= most:
        return most
    return int(place) if place > 0.0 else 0
