"""Deterministic ranks: the same key ranks the same backends alike in every process and on every router."""

import numpy as np
from numpy.typing import NDArray

from router.core import hash64


def ranks(key: str, name_hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Indices of the names with these hashes (``hash64``) in the order in which ``key`` prefers them.

    Highest random weight (Thaler and Ravishankar 1998): each name's order depends on the key and on that name alone,
    so a backend that joins or leaves moves only its own keys. Mixing is SplitMix64's finaliser (Steele et al. 2014).
    """
    mixed = name_hashes ^ np.uint64(hash64(key))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")
