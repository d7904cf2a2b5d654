"""Traces with closed loops: requests that arrive only some time after others have ended.

Those that wait for none arrive at their times, which a rate shortens; delays after an end are a client's or a tool's
and stay as they are. A window keeps the loops that begin in it, whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from simulator.traces import TraceEntry
from simulator.traces.waiting import in_order
from simulator.workload.arrivals import Arrival, Shaper, Shaping


class ReplayedLoops:
    """The requests of a trace, of which some follow from others."""

    def __init__(self, entries: Sequence[TraceEntry], how: Shaping, seed: int) -> None:
        """*entries* in order of arrival. Raises ValueError: none begins in the window, or some wait for each other."""
        self.pending = 0
        kept = _in_window(in_order(entries), how)
        if not kept:
            raise ValueError("--window: no requests begin in it")
        starts_s = [entry.arrived_s for entry in kept if not entry.after]
        self.paced = max(starts_s) > min(starts_s)
        if how.rate != 1.0 and not self.paced:
            raise ValueError("--rate: every request of this trace begins at once or follows from an end")
        zero_s, shaper = _first(entries) + how.from_s, Shaper(how, seed)
        named = {entry.id for entry in kept}
        self._first: list[Arrival] = []
        self._followers: dict[str, list[_Follower]] = {}
        for entry in kept:
            arrival = shaper.arrival(entry, (entry.arrived_s - zero_s) / how.rate, entry.known_prefix)
            if not entry.id and arrival.request.id in named:
                arrival = replace(arrival, request=replace(arrival.request, id=f"{arrival.request.id}#"))
            if entry.after:
                follower = _Follower(arrival, entry.delay_s, len(entry.after))
                for name in entry.after:
                    self._followers.setdefault(name, []).append(follower)
            else:
                self._first.append(arrival)
        self._count = len(kept)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self._first)

    def after(self, arrival: Arrival, ended_s: float) -> list[Arrival]:
        """Those that waited for this one last."""
        name = arrival.request.id.rsplit("~", arrival.tries)[0] if arrival.tries else arrival.request.id
        ready = []
        for follower in self._followers.pop(name, ()):
            follower.left -= 1
            if not follower.left:
                request = replace(follower.arrival.request, arrived_s=ended_s + follower.delay_s)
                ready.append(replace(follower.arrival, request=request))
        self.pending += len(ready)
        return ready


class _Follower:
    """A request that waits for ``left`` others."""

    __slots__ = ("arrival", "delay_s", "left")

    def __init__(self, arrival: Arrival, delay_s: float, left: int) -> None:
        self.arrival, self.delay_s, self.left = arrival, delay_s, left


def _first(entries: Sequence[TraceEntry]) -> float:
    return min(entry.arrived_s for entry in entries if not entry.after)


def _in_window(entries: Sequence[TraceEntry], how: Shaping) -> list[TraceEntry]:
    """Those that begin in the window or follow from such, at most ``limit``; *entries* behind those they wait for."""
    first_s = _first(entries) if entries else 0.0
    start_s, end_s = first_s + how.from_s, first_s + how.to_s
    kept: list[TraceEntry] = []
    names: set[str] = set()
    for entry in entries:
        inside = names.issuperset(entry.after) if entry.after else start_s <= entry.arrived_s < end_s
        if inside and (how.limit is None or len(kept) < how.limit):
            kept.append(entry)
            names.add(entry.id)
    return kept
