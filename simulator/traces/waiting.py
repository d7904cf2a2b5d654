"""Entries that wait for the ends of others: their order, and times for them where nothing is played."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from simulator.traces.entry import TraceEntry

TOKEN_S: Final = 0.03
"""Seconds a token, where the length of a reply is all that is known of its duration: a usual TPOT of a chat."""


def waits(entries: Sequence[TraceEntry]) -> bool:
    """Whether some of them wait for others."""
    return any(entry.after for entry in entries)


def in_order(entries: Sequence[TraceEntry]) -> list[TraceEntry]:
    """Each behind those it waits for, else in the order given. Raises ValueError for those that wait for each other."""
    order: list[TraceEntry] = []
    left = {id(entry): len(entry.after) for entry in entries}
    followers: dict[str, list[TraceEntry]] = {}
    for entry in entries:
        for name in entry.after:
            followers.setdefault(name, []).append(entry)
    ready = [entry for entry in reversed(entries) if not entry.after]
    while ready:
        entry = ready.pop()
        order.append(entry)
        for follower in reversed(followers.get(entry.id, ()) if entry.id else ()):
            left[id(follower)] -= 1
            if not left[id(follower)]:
                ready.append(follower)
    if len(order) < len(entries):
        stuck = next(entry for entry in entries if left[id(entry)])
        raise ValueError(f"request {stuck.id!r} waits for {', '.join(stuck.after)}, and that never ends")
    return order


def as_open_loop(entries: Sequence[TraceEntry]) -> list[TraceEntry]:
    """The same requests at times of their own, as if each token of a reply took ``TOKEN_S``; in order of arrival."""
    if not waits(entries):
        return list(entries)
    ends_s: dict[str, float] = {}
    timed: list[TraceEntry] = []
    for entry in in_order(entries):
        at_s = max(ends_s[name] for name in entry.after) + entry.delay_s if entry.after else entry.arrived_s
        ends_s[entry.id] = at_s + TOKEN_S * entry.output_tokens
        timed.append(replace(entry, arrived_s=at_s, after=(), delay_s=0.0))
    return sorted(timed, key=lambda entry: entry.arrived_s)
