"""Which prompt prefixes each backend has lately seen: a fact of the ledger, so no policy needs a memory of its own.

Believes: an engine keeps the KV blocks of a prompt it was sent until others push them out, least recently used first
(vLLM and SGLang both do). Must not know: engines, tokens' text, or whether a hit did happen; an index is a guess,
bounded by what the engine's KV cache can hold, and what rests on it must stay harmless when it is wrong.
"""

from collections.abc import Sequence


class PrefixIndex:
    """Block hashes by backend slot, each slot an LRU of bounded size.

    A hash names one block and everything before it, so a prompt's match is the number of its leading hashes that a
    slot holds. Blocks are touched from the last to the first: a shared beginning outlives the ends that branch off it.
    """

    __slots__ = ("_blocks", "_holders")

    def __init__(self) -> None:
        self._blocks: dict[int, dict[int, None]] = {}  # insertion order is recency
        self._holders: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return sum(len(blocks) for blocks in self._blocks.values())

    def sent(self, slot: int, prefix: Sequence[int], blocks_max: int) -> None:
        """A prompt with these block hashes goes to a slot that keeps ``blocks_max`` blocks at most."""
        blocks = self._blocks.setdefault(slot, {})
        for block in reversed(prefix[: max(blocks_max, 0)]):
            blocks.pop(block, None)
            blocks[block] = None
            self._holders.setdefault(block, set()).add(slot)
        while len(blocks) > blocks_max:
            oldest = next(iter(blocks))
            del blocks[oldest]
            self._dropped(slot, oldest)

    def forget(self, slot: int) -> None:
        """The backend left or restarted: its cache is gone."""
        for block in self._blocks.pop(slot, ()):
            self._dropped(slot, block)

    def _dropped(self, slot: int, block: int) -> None:
        holders = self._holders[block]
        holders.discard(slot)
        if not holders:
            del self._holders[block]

    def matched(self, prefix: Sequence[int]) -> dict[int, int]:
        """Leading blocks of ``prefix`` that each slot holds; slots without any are left out."""
        match: dict[int, int] = {}
        alive: set[int] | None = None
        for depth, block in enumerate(prefix):
            here = self._holders.get(block)
            alive = set() if here is None else here if alive is None else alive & here
            if not alive:
                break
            match.update(dict.fromkeys(alive, depth + 1))
        return match
