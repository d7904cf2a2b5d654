"""The data in a stretch of a chunk-framed body, with the place of every byte of it in the raw bytes.

So that events can be found in the data, and cut out of the raw bytes, whatever chunks the engine put them in. Must not
depend on what the data means.
"""

import re
from bisect import bisect_right
from typing import Final

from router.gateway.traffic.http import chunk

_SIZE_LINE: Final = rb"([0-9a-fA-F]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n"
_OPENING: Final = re.compile(_SIZE_LINE)
CHUNK_SEAM: Final = re.compile(rb"\r\n" + _SIZE_LINE)
_SEAM_SO_FAR: Final = re.compile(rb"(?<!\r)\n(\r\n[0-9a-fA-F]{0,16}\r?)\Z")
_SEAM_BYTES: Final = 24
_NO_HEADER: Final = -1
_CRLF: Final = b"\r\n"
_CR: Final = 13
_LF: Final = 10
_SIZE_LINE_BYTES: Final = 18


class ChunkView:
    """``data`` is ``raw`` without its framing. A line of hexadecimal digits alone is a chunk's size: no event has one.

    ``last_chunk``: where in ``raw`` the chunk that ends the body begins; its length where that is not there.
    """

    __slots__ = ("_begins", "_framed", "_headers", "_places", "_sizes", "_whole", "data", "last_chunk", "raw")

    def __init__(self, raw: bytes, *, framed: bool, inside: bool = False) -> None:
        """*framed*: *raw* is chunk-framed, and begins where a chunk does, or inside of one's data; *inside*: certainly
        the latter, so that ``da`` is the begin of a line and no size.
        """
        self.raw = raw
        self._framed = framed
        self.last_chunk = len(raw)
        # of each piece: its begin in data, its place in raw, and begin and size of the chunk if that begins here
        self._begins, self._places, self._headers, self._sizes = [0], [0], [_NO_HEADER], [0]
        whole = self._chunks() if framed and not inside else b""
        self._whole = bool(whole)  # then the line end after the last chunk is no part of the data
        self.data = whole or (self._pieces(inside) if framed else raw)

    def _chunks(self) -> bytes:
        """The data, where ``raw`` is nothing but whole chunks, as most reads are; else nothing."""
        raw, at, length = self.raw, 0, 0
        begins: list[int] = []
        places: list[int] = []
        headers: list[int] = []
        sizes: list[int] = []
        pieces: list[bytes] = []
        while at < len(raw):
            line_end = raw.find(_CRLF, at, at + _SIZE_LINE_BYTES)
            size = _size(raw[at:line_end]) if line_end > at else -1
            place = line_end + 2
            stop = place + size
            if size < 0 or stop + 2 > len(raw) or raw[stop] != _CR or raw[stop + 1] != _LF:
                return b""
            begins.append(length)
            places.append(place)
            headers.append(at)
            sizes.append(size)
            pieces.append(raw[place:stop])
            length += size
            at = stop + 2
        if not length:
            return b""
        self._begins, self._places, self._headers, self._sizes = begins, places, headers, sizes
        if not sizes[-1]:
            self.last_chunk = headers[-1]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _pieces(self, inside: bool) -> bytes:
        raw = self.raw
        opening = None if inside else _OPENING.match(raw)
        if opening is not None:
            self._places[0], self._headers[0], self._sizes[0] = opening.end(), 0, int(opening[1], 16)
        at, length = self._places[0], 0
        pieces: list[bytes] = []
        while (seam := self._seam(at)) is not None:
            pieces.append(raw[at : seam.start()])
            length += seam.start() - at
            at = seam.end()
            self._begins.append(length)
            self._places.append(at)
            self._headers.append(seam.start() + 2)
            self._sizes.append(int(seam[1], 16))
        if self._headers[-1] >= 0 and self._sizes[-1] == 0:
            self.last_chunk = self._headers[-1]
        return b"".join([*pieces, raw[at:]])

    def _seam(self, at: int) -> re.Match[bytes] | None:
        """The end of the chunk whose data begins at *at*, and the begin of the next: where its size says, if that is
        known, else wherever one is.
        """
        size = self._sizes[-1]
        seam = CHUNK_SEAM.match(self.raw, at + size) if size else None
        return seam if seam is not None else CHUNK_SEAM.search(self.raw, at)

    @property
    def after_chunk(self) -> int:
        """How many bytes at the end of ``data`` are the line end of the last chunk, and of a next one's size so far.

        Where the chunk began before ``raw`` its size is not known: then a line end that is not the stream's own is one.
        """
        if self._whole:
            return 0
        if self._headers[-1] >= 0:
            return max(len(self.raw) - self._places[-1] - self._sizes[-1], 0)
        found = _SEAM_SO_FAR.search(self.raw, max(len(self.raw) - _SEAM_BYTES, 0)) if self._framed else None
        return len(found[1]) if found is not None else 0

    def _piece(self, at: int) -> int:
        return bisect_right(self._begins, at) - 1

    def cut(self, at: int) -> int:
        """Where ``raw`` ends if the data ends at *at*: after the whole chunk where one ends there."""
        if self._whole and at == len(self.data):
            return len(self.raw)
        piece = self._piece(at)
        if self._begins[piece] == at and self._headers[piece] >= 0:
            return self._headers[piece]
        return self._places[piece] + at - self._begins[piece]

    def until(self, at: int) -> bytes:
        """``raw`` up to data[at], as whole chunks where the last of them begins here."""
        piece = self._piece(at)
        header = self._headers[piece]
        if header < 0:
            return self.raw[: self.cut(at)]
        return self.raw[:header] + chunk(self.data[self._begins[piece] : at])

    def lacks_end(self, begin: int, end: int) -> bool:
        """Whether data[begin:end] is a chunk's whole data, and the line end after it has not come."""
        piece = self._piece(begin)
        whole = self._begins[piece] == begin and self._sizes[piece] == end - begin
        return whole and self._places[piece] + end - begin + 2 > len(self.raw)

    def removal(self, begin: int, end: int, *, sized: bool) -> tuple[int, int, bytes]:
        """How to take the event data[begin:end] out of ``raw``: begin and end there, and what to put instead.

        A chunk of its own goes as a whole. An event that shares its chunk, or stands in a body whose size was stated
        (*sized*), becomes a comment of the same length, which clients skip: that size may have been sent before.
        """
        if not (self._framed or sized):
            return begin, end, b""
        first, last = self._piece(begin), self._piece(end - 1)
        place, stop = self._places[first] + begin - self._begins[first], self._places[last] + end - self._begins[last]
        whole = first == last and self._begins[first] == begin and self._sizes[first] == end - begin
        if whole and self.raw[stop : stop + 2] == b"\r\n":
            return self._headers[first], stop + 2, b""
        text = self.data[begin:end]
        ends = text[len(text.rstrip(b"\r\n")) :]
        comment = b":" + b" " * (len(text) - len(ends) - 1) + ends
        made = bytearray(self.raw[place:stop])
        for piece in range(first, last + 1):
            since = max(self._begins[piece], begin)
            until = min(self._begins[piece + 1], end) if piece < last else end
            at = self._places[piece] + since - self._begins[piece] - place
            made[at : at + until - since] = comment[since - begin : until - begin]
        return place, stop, bytes(made)


def _size(line: bytes) -> int:
    """The size that a chunk's size line without extensions states; -1: it is none."""
    if not line.isalnum() or line[:2] in (b"0x", b"0X"):  # int() takes signs, blanks and underscores too
        return -1
    try:
        return int(line, 16)
    except ValueError:
        return -1
