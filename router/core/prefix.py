"""Which prompt prefixes each backend has lately seen: a fact of the ledger, so no policy needs a memory of its own.

Assumes: an engine keeps the KV blocks of a prompt it was sent until others push them out, least recently used first
(vLLM and SGLang both do). Must not depend on: engines, tokens' text, or whether a hit did happen; an index is a guess,
bounded by what the engine's KV cache can hold, and what rests on it must stay harmless when it is wrong.
"""

from collections.abc import Sequence
from itertools import islice
from math import inf
from typing import Final

import numpy as np

from router.core import loops
from router.core.arrays import Floats, Slots

BLOCKS_MAX: Final = 1 << 19  # of all backends together: at up to 240 bytes each, 126 MB
BLOCKS_EACH_MIN: Final = 64  # that a backend keeps in any case: one long prompt


class PrefixIndex:
    """Block hashes by backend slot, each slot an LRU of bounded size.

    A hash names one block and everything before it, so a prompt's match is the number of its leading hashes that a
    slot holds. Blocks are touched from the last to the first: a shared beginning outlives the ends that branch off it.
    Who holds a block is one whole number, a bit a slot: to compare a thousand backends costs no more than to compare
    ten.

    Memory: each slot has an equal share of ``blocks_max``, less while others still hold more than theirs (they give it
    up with their next send), and never less than ``BLOCKS_EACH_MIN`` blocks.
    """

    __slots__ = ("_blocks", "_count", "_holders", "blocks_max")

    def __init__(self, blocks_max: int = BLOCKS_MAX) -> None:
        self.blocks_max = blocks_max
        self._blocks: dict[int, dict[int, None]] = {}  # insertion order is recency
        self._holders: dict[int, int] = {}  # by block, the slots that hold it, one bit each
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return self._count > 0

    def sent(self, slot: int, prefix: Sequence[int], blocks_max: int) -> None:
        """A prompt with these block hashes goes to a slot that keeps ``blocks_max`` blocks at most."""
        blocks = self._blocks.setdefault(slot, {})
        before, holders, bit = len(blocks), self._holders, 1 << slot
        share = min(self.blocks_max // len(self._blocks), self.blocks_max - self._count + before)
        blocks_max = max(0, min(blocks_max, max(share, BLOCKS_EACH_MIN)))
        for block in reversed(prefix[:blocks_max]):
            if block in blocks:
                del blocks[block]
            else:
                holders[block] = holders.get(block, 0) | bit
            blocks[block] = None
        if len(blocks) > blocks_max:  # the oldest are looked for once: a dict passes over what was deleted in front
            for oldest in list(islice(blocks, len(blocks) - blocks_max)):
                del blocks[oldest]
                self._dropped(bit, oldest)
        self._count += len(blocks) - before

    def forget(self, slot: int) -> None:
        """The backend left or restarted: its cache is gone."""
        blocks, bit = self._blocks.pop(slot, {}), 1 << slot
        for block in blocks:
            self._dropped(bit, block)
        self._count -= len(blocks)

    def _dropped(self, bit: int, block: int) -> None:
        left = self._holders[block] & ~bit
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]

    def matched(
        self, prefix: Sequence[int], slots: Slots, block_tokens: float = 1.0, tokens_most: float = inf
    ) -> Floats | None:
        """Leading tokens of ``prefix``, ``tokens_most`` at most, that each of the slots holds, of which a block has so
        many; None where no slot at all holds any.
        """
        masks: list[int] = []  # who still held all so far, each time that this changed
        runs: list[float] = []  # for how many blocks it was so
        alive = -1
        for block in prefix:
            here = self._holders.get(block, 0)
            both = here if alive < 0 else alive & here
            if not both:
                break
            if both == alive:
                runs[-1] += 1.0
            else:
                masks.append(both)
                runs.append(1.0)
                alive = both
        if not masks:
            return None
        width = (masks[0].bit_length() + 7) >> 3  # who holds a later block holds the first
        held = b"".join([mask.to_bytes(width, "little") for mask in masks])
        tokens = np.empty(len(slots))
        loops.resident(held, runs, slots, block_tokens, tokens_most, tokens)
        return tokens
