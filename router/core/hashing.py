"""Deterministic hashing: the same text has the same hash in every process and on every router.

Python's own ``hash`` of text is salted by process, so policies may not use it.
"""

from hashlib import blake2b


def hash64(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
