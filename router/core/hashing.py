"""Deterministic hashing: the same text has the same hash in every process and on every router.

Python's own ``hash`` of text is salted by process, so policies may not use it.
"""

from hashlib import blake2b
from typing import Final, Protocol

BLOCK_WORDS: Final = 128  # of 8 bytes each
MULTIPLIER: Final = 0x9E3779B97F4A7C15  # odd, its bits evenly spread: 2**64 over the golden ratio
SHIFT: Final = 32
_BITS: Final = 2**64 - 1


class Words(Protocol):
    """Whole numbers of 64 bits, in an array or the memoryview of one."""

    def __getitem__(self, place: int, /) -> int: ...
    def __setitem__(self, place: int, number: int, /) -> None: ...
    def __len__(self) -> int: ...


def hash64(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def chain(words: Words, seed: int, hashes: Words) -> None:
    """Fill ``hashes``, one for each ``BLOCK_WORDS`` words and all before them, below 2**63: other readers of a record
    have no larger number. ``_hashing.c`` has the same loop in C.
    """
    so_far = seed
    for block in range(len(hashes)):
        for at in range(block * BLOCK_WORDS, block * BLOCK_WORDS + BLOCK_WORDS):
            so_far = ((so_far ^ words[at]) * MULTIPLIER) & _BITS
            so_far ^= so_far >> SHIFT
        hashes[block] = so_far >> 1
