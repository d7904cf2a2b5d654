"""The KV blocks of one engine: how many are in use, and which texts are still cached in the free ones.

As in vLLM's block pool, a full block that is no longer used keeps its content until it is needed again. Free blocks are
taken in this order: those that hold nothing to be found (never used, or not full when they were given back), then full
ones, least recently freed first, and of one sequence its tail first, so that the longest common prefixes live longest.

Blocks are held in runs: neighbouring blocks of one text with the same users. A text is a *unit* of a prefix (traces
name prefixes by units: Mooncake's have 512 tokens a hash), or what a preempted sequence had computed of its own. A run
is split where its blocks get different users. Two runs may hold the same blocks of a text, as two sequences that
compute it side by side do; the older one is found. Must not depend on time, sequences or scheduling.
"""

from collections.abc import Hashable, Sequence
from typing import Final


class Text:
    """Something whose blocks can be found. ``runs``: where they lie, oldest first; ``key``: of a unit."""

    __slots__ = ("key", "runs")

    def __init__(self, key: Hashable | None = None) -> None:
        """Nothing of it is cached yet. Without a key it is one sequence's own."""
        self.key = key
        self.runs: list[Run] = []


class Run:
    """``count`` blocks that hold blocks ``start`` and following of ``text`` (None: content that nobody looks for)."""

    __slots__ = ("count", "newer", "older", "rest", "start", "text", "users")

    def __init__(self, text: Text | None, start: int, count: int, users: int) -> None:
        """In no list yet."""
        self.text = text
        self.start = start
        self.count = count
        self.users = users
        self.rest: Run | None = None  # what was split off its end
        self.older: Run | None = None  # neighbours among the free runs
        self.newer: Run | None = None


Hold = tuple[Run, int]
"""Blocks that a sequence uses: so many from the beginning of the run on, and where it was split, of its rests."""

Found = tuple[Run, int, int]
"""Cached blocks: the run, the first of its blocks, and how many."""


class Blocks:
    """The pool. ``used`` blocks belong to sequences; the rest is free, cached content or not."""

    __slots__ = ("_blank", "_edge", "_findable", "_units", "total", "used")

    def __init__(self, total: int) -> None:
        """All *total* blocks free and empty."""
        self.total: Final = total
        self.restart(0)

    def restart(self, used: int) -> None:
        """*used* blocks belong to sequences, and no free one holds anything to be found."""
        self.used = used
        self._blank = self.total - used
        self._units: dict[Hashable, Text] = {}
        self._findable = 0  # runs with a text
        self._edge = edge = Run(None, 0, 0, 0)  # between the newest free run and the oldest
        edge.older = edge.newer = edge

    @property
    def caching(self) -> bool:
        """Whether anything that can be found lies in the blocks."""
        return self._findable > 0

    # ---- taking and giving -------------------------------------------------------

    def take(self, count: int) -> None:
        """*count* free blocks come into use; whatever they held is forgotten."""
        self.used += count
        if count <= self._blank:
            self._blank -= count
            return
        count -= self._blank
        self._blank = 0
        edge = self._edge
        while count > 0:
            oldest = edge.newer
            assert oldest is not None
            assert oldest is not edge
            if count < oldest.count:
                oldest.count -= count
                return
            count -= oldest.count
            _unlink(oldest)
            self._forget(oldest)

    def give_blank(self, count: int) -> None:
        """*count* used blocks that hold nothing to be found are free: the next ones to be taken."""
        self.used -= count
        self._blank += count

    def give_full(self, count: int) -> None:
        """*count* full blocks are free that nobody will look for; they are taken in their turn all the same."""
        if not count:
            return
        self.used -= count
        newest = self._edge.older
        assert newest is not None
        if newest.text is None and newest is not self._edge:
            newest.count += count
        else:
            self._append(Run(None, 0, count, 0))

    def give_own(self, text: Text, start: int, count: int) -> None:
        """A preempted sequence gives back *count* full blocks of its own text, which it may find again."""
        self.used -= count
        run = Run(text, start, count, 0)
        text.runs.append(run)
        self._findable += 1
        self._append(run)

    def give_holds(self, holds: list[Hold]) -> None:
        """A sequence gives back what it used of units, tail first."""
        for run, count in reversed(holds):
            for part in reversed(_parts(run, count)):
                part.users -= 1
                if not part.users:
                    self.used -= part.count
                    self._append(part)

    def disown(self, text: Text) -> None:
        """A sequence is over: nobody will look for its own text again."""
        for run in text.runs:
            run.text = None
            self._findable -= 1
        text.runs = []

    # ---- finding -----------------------------------------------------------------

    def find(
        self, unit_keys: Sequence[Hashable], unit_blocks: Sequence[int], own: Text | None, most: int
    ) -> tuple[list[Found], int, int]:
        """What is cached of a text from its front on, at most *most* blocks: where, how many, how many of them free.

        The text: its units, of so many blocks each, then what is the sequence's *own*.
        """
        found: list[Found] = []
        at, units = 0, self._units
        for key, whole in zip(unit_keys, unit_blocks, strict=False):
            if at >= most or not whole:
                break
            text = units.get(key)
            got = 0 if text is None else _find(text, min(whole, most - at), found)
            at += got
            if got < whole:
                own = None
                break
        if own is not None and at < most:
            at += _find(own, most - at, found)
        return found, at, sum([count for run, _, count in found if not run.users])

    def share(self, found: list[Found]) -> list[Hold]:
        """Use what was found; what to give back of units. What a sequence finds of its own is its own again."""
        holds: list[Hold] = []
        for run, first, count in reversed(found):  # a split leaves what lies before it as it was
            part = self._split(run, first) if first else run
            if count < part.count:
                self._split(part, count)
            if not part.users:
                _unlink(part)
                self.used += count
            if part.text is not None and part.text.key is None:
                self._forget(part)
                continue
            part.users += 1
            holds.append((part, count))
        holds.reverse()
        return holds

    def publish(self, holds: list[Hold], key: Hashable, start: int, count: int) -> None:
        """A sequence has computed *count* blocks of a unit, from its block *start* on, in blocks that it holds."""
        text = self._units.get(key)
        if text is None:
            text = self._units[key] = Text(key)
        elif start and len(text.runs) == 1 and holds:
            run, held = holds[-1]
            if run is text.runs[0] and run.users == 1 and run.rest is None:
                run.count += count
                holds[-1] = (run, held + count)
                return
        run = Run(text, start, count, 1)
        text.runs.append(run)
        self._findable += 1
        holds.append((run, count))

    # ---- the runs ----------------------------------------------------------------

    def _append(self, run: Run) -> None:
        """*run* is the most recently freed."""
        _link(run, self._edge)

    def _forget(self, run: Run) -> None:
        """Nothing is found in *run* any more."""
        text = run.text
        if text is None:
            return
        run.text = None
        self._findable -= 1
        text.runs.remove(run)
        if text.key is not None and not text.runs:
            del self._units[text.key]

    def _split(self, run: Run, at: int) -> Run:
        """Cut *run* before its block *at*; returns what follows. Of free ones that is taken first."""
        rest = Run(run.text, run.start + at, run.count - at, run.users)
        rest.rest, run.rest = run.rest, rest
        run.count = at
        if run.text is not None:
            runs = run.text.runs
            runs.insert(runs.index(run) + 1, rest)
            self._findable += 1
        if not run.users:
            _link(rest, run)
        return rest


def _find(text: Text, most: int, found: list[Found]) -> int:
    """Cached blocks of *text* from its first on, added to *found*; how many."""
    runs, at = text.runs, 0
    while at < most:
        end = most
        for run in runs:
            if run.start <= at < run.start + run.count:
                end = min(end, run.start + run.count)
                found.append((run, at - run.start, end - at))
                at = end
                break
            if at < run.start < end:
                end = run.start
        else:
            break
    return at


def _parts(run: Run, count: int) -> list[Run]:
    """The runs that *count* blocks from the beginning of *run* on have become."""
    parts = [run]
    count -= run.count
    while count > 0 and run.rest is not None:
        run = run.rest
        parts.append(run)
        count -= run.count
    return parts


def _link(run: Run, newer: Run) -> None:
    """Put *run* among the free ones, just before *newer*."""
    older = newer.older
    assert older is not None
    run.older, run.newer = older, newer
    older.newer = newer.older = run


def _unlink(run: Run) -> None:
    older, newer = run.older, run.newer
    assert older is not None
    assert newer is not None
    older.newer, newer.older = newer, older
    run.older = run.newer = None
