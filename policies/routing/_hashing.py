"""Deterministic hashing: the same key ranks the same backends alike in every process and on every router.

Python's own ``hash`` of text is salted a process, so it may not be used here.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=65_536)
def hash64(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def ranks(key: str, names: Sequence[str]) -> NDArray[np.intp]:
    """Indices of ``names`` in the order in which ``key`` prefers them.

    Highest random weight (Thaler and Ravishankar 1998): each name's order depends on the key and on that name alone,
    so a backend that joins or leaves moves only its own keys. Mixing is SplitMix64's finaliser (Steele et al. 2014).
    """
    mixed = np.array([hash64(name) for name in names], dtype=np.uint64) ^ np.uint64(hash64(key))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")
