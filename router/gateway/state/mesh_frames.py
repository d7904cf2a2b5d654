"""How two routers prove to each other that they have the same key, and frames that only they can make.

Each side sends a random number and proves the key over both numbers; a key of this connection alone follows from them.
A frame is a length, a code over the frame's place in the connection and its content, and the content: one that was
changed, repeated, left out or put elsewhere does not fit. Contents are not encrypted. Must not depend on sockets, nor
on what the contents are.
"""

from collections.abc import Iterator
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

from router.core.errors import SkipReason, Unreadable

MAGIC: Final = b"HRM1"
NONCE_BYTES: Final = 16
PROOF_BYTES: Final = 32
_CODE_BYTES: Final = 16
_LENGTH_BYTES: Final = 4
_HEAD_BYTES: Final = _LENGTH_BYTES + _CODE_BYTES


def key_of(text: str) -> bytes:
    """The key that the config's text stands for."""
    return blake2b(text.encode(), digest_size=32, person=b"headroom mesh").digest()


def proof(key: bytes, side: bytes, nonces: bytes) -> bytes:
    """What one side (``dialler``, ``acceptor``) shows for these two numbers."""
    return blake2b(nonces, key=key, digest_size=PROOF_BYTES, person=side).digest()


def proves(given: bytes, key: bytes, side: bytes, nonces: bytes) -> bool:
    """Whether that is what it should be."""
    return compare_digest(given, proof(key, side, nonces))


def session_key(key: bytes, nonces: bytes) -> bytes:
    """The key of one connection."""
    return blake2b(nonces, key=key, digest_size=32, person=b"session").digest()


def _code(key: bytes, number: int, content: bytes) -> bytes:
    made = blake2b(number.to_bytes(8, "big"), key=key, digest_size=_CODE_BYTES)
    made.update(content)
    return made.digest()


class FrameWriter:
    """Makes the frames of one connection, in their order."""

    __slots__ = ("_key", "_number")

    def __init__(self, key: bytes) -> None:
        """*key*: of the connection."""
        self._key, self._number = key, 0

    def frame(self, content: bytes) -> bytes:
        """The next frame."""
        self._number += 1
        return b"%b%b%b" % (len(content).to_bytes(4, "big"), _code(self._key, self._number, content), content)


class FrameReader:
    """Takes bytes as they come and gives the contents of whole frames."""

    __slots__ = ("_buffer", "_bytes_most", "_key", "_number")

    def __init__(self, key: bytes, bytes_most: int) -> None:
        """*key*: of the connection; ``bytes_most``: of one content."""
        self._key, self._bytes_most, self._number, self._buffer = key, bytes_most, 0, bytearray()

    def contents(self, data: bytes) -> Iterator[bytes]:
        """Those that are whole now. Raises Unreadable at a frame that does not fit: nothing after it can be read."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEAD_BYTES:
            length = int.from_bytes(buffer[:_LENGTH_BYTES], "big")
            if length > self._bytes_most:
                raise Unreadable(SkipReason.TOO_LARGE, f"a frame of {length} bytes; at most {self._bytes_most}")
            if len(buffer) < _HEAD_BYTES + length:
                return
            code, content = bytes(buffer[_LENGTH_BYTES:_HEAD_BYTES]), bytes(buffer[_HEAD_BYTES : _HEAD_BYTES + length])
            del buffer[: _HEAD_BYTES + length]
            self._number += 1
            if not compare_digest(code, _code(self._key, self._number, content)):
                raise Unreadable(SkipReason.UNREADABLE, "a frame whose code does not fit")
            yield content
