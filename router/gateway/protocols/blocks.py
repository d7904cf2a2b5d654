"""A prompt's beginning as hashes of its blocks: what an engine's prefix cache should hold.

An engine's prefix cache matches when model, salt and text are the same to the byte. Must not depend on any
protocol. A hash names one block and all before it. It keeps no secret: two prompts with one name can be made on
purpose, and the gain is a wrong estimate of a cache; by chance it happens once in 2**63 pairs.

The loop takes 8 bytes at a time (a multiplication and a shift, as in the mixers of splitmix and wyhash), so a block
costs a fifth of a microsecond; 1 KB through ``hashlib.blake2b`` takes a whole one.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from router.core import loops
from router.core.hashing import BLOCK_WORDS

_KEPT_CHARS_MAX: Final = 512
BLOCK_BYTES: Final = 8 * BLOCK_WORDS
NO_BLOCKS: Final[tuple[tuple[int, ...], float]] = ((), 0.0)


def blocks_of(pieces: Sequence[str], model: str, salt: str, blocks_max: int) -> tuple[tuple[int, ...], float]:
    """Hashes of the text's successive whole blocks, ``blocks_max`` at most, and how many characters one block has on
    average. ``salt``: prompts of different salts never match (vLLM's ``cache_salt``).
    """
    text = "".join(pieces)[: blocks_max * BLOCK_BYTES]
    data = text.encode("utf-8", "surrogatepass")
    count = min(len(data) // BLOCK_BYTES, blocks_max)
    if not count:
        return NO_BLOCKS
    return loops.chain(data, count, _seed(model, salt)), BLOCK_BYTES * len(text) / len(data)


def _seed(model: str, salt: str) -> int:
    """Where the hashes of a model's prompts start; below 2**63. Clients name both, so that long ones are not kept."""
    return _kept_seed(model, salt) if len(model) + len(salt) <= _KEPT_CHARS_MAX else _hashed(model, salt)


@lru_cache(maxsize=1024)
def _kept_seed(model: str, salt: str) -> int:
    return _hashed(model, salt)


def _hashed(model: str, salt: str) -> int:
    named = f"{model}\0{salt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(named, digest_size=8).digest(), "little") >> 1
