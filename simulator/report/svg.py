"""Plots as SVG text: lines, areas and points on axes with round ticks. Must not depend on what is plotted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10
from typing import Final

WIDTH: Final = 460
HEIGHT: Final = 230
_LEFT: Final = 52
_RIGHT: Final = 12
_TOP: Final = 22
_BOTTOM: Final = 36
_TICKS: Final = 5
_RADIUS: Final = {"dots": 1.6, "points": 4}
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis. ``text`` writes a tick; on a log axis ticks are decades and their halves."""

    label: str
    text: Callable[[float], str]
    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where *value* lies, 0 to 1."""
        if self.log:
            return (log10(max(value, self.low)) - log10(self.low)) / (log10(self.high) - log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside."""
        if self.log:
            decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            every = (1,) if len(decades) > _TICKS else (1, 3)
            return [m * 10.0**d for d in decades for m in every if self.low <= m * 10.0**d <= self.high * 1.0001]
        step = _round_step((self.high - self.low) / _TICKS)
        first = ceil(self.low / step)
        return [n * step for n in range(first, floor(self.high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** floor(log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something drawn: ``kind`` is line, area, dots (many) or points (few); ``slot`` chooses its colour (0 to 7; -1:
    muted).
    """

    name: str
    points: Points
    slot: int = 0
    kind: str = "line"


def plot(title: str, x: Axis, y: Axis, marks: Sequence[Mark], lines: Sequence[tuple[str, float]] = ()) -> str:
    """A plot with a title; *lines* are vertical references with their labels."""
    body = [_grid(x, y), *(_mark(x, y, mark) for mark in marks), *(_reference(x, *line) for line in lines)]
    inner = "".join(body)
    label = escape(title)
    return (
        f'<figure><figcaption>{label}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label}">{inner}</svg></figure>'
    )


def _px(x: Axis, value: float) -> float:
    return _LEFT + min(1.0, max(0.0, x.at(value))) * (WIDTH - _LEFT - _RIGHT)


def _py(y: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - min(1.0, max(0.0, y.at(value))) * (HEIGHT - _TOP - _BOTTOM)


def _grid(x: Axis, y: Axis) -> str:
    bottom = HEIGHT - _BOTTOM
    parts = []
    for value in y.ticks():
        at = _py(y, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{y.text(value)}</text>')
    for value in x.ticks():
        at = _px(x, value)
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{x.text(value)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x.label)}</text>')
    if y.label:
        parts.append(f'<text class="label" x="{_LEFT + 4}" y="{_TOP - 9}">{escape(y.label)}</text>')
    return "".join(parts)


def _mark(x: Axis, y: Axis, mark: Mark) -> str:
    colour = f"s{mark.slot}" if mark.slot >= 0 else "muted"
    spots = [(_px(x, a), _py(y, b)) for a, b in mark.points if isfinite(a) and isfinite(b)]
    if not spots:
        return ""
    title = f"<title>{escape(mark.name)}</title>"
    if mark.kind in _RADIUS:
        radius = _RADIUS[mark.kind]
        dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>' for a, b in spots)
        return f'<g class="{mark.kind} {colour}">{title}{dots}</g>'
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
    if mark.kind == "area":
        base = HEIGHT - _BOTTOM
        path = f"{path}L{spots[-1][0]:.1f} {base}L{spots[0][0]:.1f} {base}Z"
        return f'<path class="area {colour}" d="{path}">{title}</path>'
    return f'<path class="line {colour}" d="{path}">{title}</path>'


def _reference(x: Axis, label: str, value: float) -> str:
    if not x.low <= value <= x.high:
        return ""
    at = _px(x, value)
    anchor, shift = ("end", -4) if at > WIDTH * 0.8 else ("start", 4)
    return (
        f'<line class="reference" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        f'<text class="referencelabel" x="{at + shift:.1f}" y="{HEIGHT - _BOTTOM - 6}" '
        f'text-anchor="{anchor}">{escape(label)}</text>'
    )
