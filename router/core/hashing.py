"""Deterministic hashing: the same text has the same hash in every process and on every router.

Python's own ``hash`` of text is salted by process, so policies may not use it.
"""

from hashlib import blake2b
from typing import Final

BLOCK_WORDS: Final = 128  # of 8 bytes each
MULTIPLIER: Final = 0x9E3779B97F4A7C15  # odd, its bits evenly spread: 2**64 over the golden ratio
SHIFT: Final = 32
_BITS: Final = 2**64 - 1


def hash64(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def chain(data: bytes, blocks: int, seed: int) -> tuple[int, ...]:
    """Hashes of so many blocks at the begin of the data, one for each ``BLOCK_WORDS`` words and all before them, below
    2**63: other readers of a record have no larger number. ``_hashing.c`` has the same loop in C.
    """
    words = memoryview(data)[: 8 * BLOCK_WORDS * blocks].cast("Q")
    so_far, hashes = seed, []
    for block in range(blocks):
        for at in range(block * BLOCK_WORDS, block * BLOCK_WORDS + BLOCK_WORDS):
            so_far = ((so_far ^ words[at]) * MULTIPLIER) & _BITS
            so_far ^= so_far >> SHIFT
        hashes.append(so_far >> 1)
    return tuple(hashes)
