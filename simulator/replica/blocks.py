"""The KV blocks of one engine: how many are in use, and which prefixes are still cached in the free ones.

As in vLLM V1's block pool, a block that is no longer used keeps its content until it is needed again; free blocks are
taken least recently freed first, and a request's blocks are freed from its tail, so that the longest common prefixes
live longest. Traces name a prefix by *units* (Mooncake: 512 tokens a hash), so a unit is ``count`` blocks here and
loses them from its own tail.

Two simplifications, both rare: a unit that another request recomputes while it is cached is not cached twice, and a
unit of which only a part was found stays whole while it is in use. Before the first prefix, blocks are only counted.
Must not depend on time, sequences or scheduling.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence


class Unit:
    """``count`` blocks holding one stretch of a prefix, in use by ``users`` sequences."""

    __slots__ = ("count", "users")

    def __init__(self, count: int) -> None:
        """A fresh unit, used by the sequence that computed it."""
        self.count = count
        self.users = 1


class Blocks:
    """The pool. ``used`` blocks belong to sequences; the rest is free, cached content or not."""

    __slots__ = ("_free", "_units", "total", "used")

    def __init__(self, total: int) -> None:
        """All *total* blocks free and empty."""
        self.total = total
        self.used = 0
        self._units: dict[Hashable, Unit] = {}
        self._free: OrderedDict[Hashable, int] = OrderedDict()  # least recently freed first; units by hash

    @property
    def caching(self) -> bool:
        """Whether any prefix lies in the blocks."""
        return bool(self._units)

    def take(self, count: int) -> None:
        """*count* free blocks come into use; whatever prefix they held is forgotten."""
        self.used += count
        if self._units:
            self._evict(count)

    def _evict(self, count: int) -> None:
        free, units = self._free, self._units
        while count:
            key, held = next(iter(free.items()))
            taken = held if held < count else count
            count -= taken
            if taken < held:
                free[key] = held - taken
                if key in units:
                    units[key].count -= taken
            else:
                del free[key]
                units.pop(key, None)

    def give(self, count: int, unit_keys: list[Hashable]) -> None:
        """A sequence lets go of *count* blocks of its own, and of the units it used, tail first."""
        if count:
            self.used -= count
            if self._units:
                self._free[object()] = count
        for key in reversed(unit_keys):
            unit = self._units[key]
            unit.users -= 1
            if not unit.users:
                self.used -= unit.count
                self._free[key] = unit.count

    def found(self, unit_keys: Sequence[Hashable], unit_blocks: Sequence[int], most: int) -> tuple[int, int]:
        """Blocks cached of a prompt's units from the front, *most* at most; how many free ones sharing would use."""
        units, cached, idle = self._units, 0, 0
        for key, whole in zip(unit_keys, unit_blocks, strict=False):
            unit = units.get(key)
            if unit is None or cached >= most:
                break
            cached += min(unit.count, whole)
            if not unit.users:
                idle += unit.count
            if unit.count < whole:
                break
        return min(cached, most), idle

    def share(self, unit_keys: Sequence[Hashable], unit_blocks: Sequence[int], cached: int) -> list[Hashable]:
        """Use the units that hold the first *cached* blocks of a prompt; the keys to give back."""
        shared: list[Hashable] = []
        for key, whole in zip(unit_keys, unit_blocks, strict=False):
            if cached <= 0:
                break
            unit = self._units[key]
            if not unit.users:
                del self._free[key]
                self.used += unit.count
            unit.users += 1
            shared.append(key)
            cached -= whole
        return shared

    def keep(self, key: Hashable, count: int) -> bool:
        """A sequence has computed a unit of *count* of its own blocks: remember it. False: one like it is there."""
        if key in self._units or not count:
            return False
        if not self._units:
            self._free = OrderedDict({object(): self.total - self.used} if self.used < self.total else {})
        self._units[key] = Unit(count)
        return True
