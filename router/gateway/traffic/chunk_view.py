"""The data in a stretch of a chunk-framed body, with the place of every byte of it in the raw bytes.

So that events can be found in the data, and cut out of the raw bytes, whatever chunks the engine put them in. Must not
depend on what the data means.
"""

import re
from bisect import bisect_left, bisect_right
from typing import Final

from router.gateway.traffic.http import chunk

_SIZE_LINE: Final = rb"([0-9a-fA-F]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n"
_OPENING: Final = re.compile(_SIZE_LINE)
CHUNK_SEAM: Final = re.compile(rb"\r\n" + _SIZE_LINE)
_SEAM_SO_FAR: Final = re.compile(rb"(?<!\r)\n(\r\n[0-9a-fA-F]{0,16}\r?)\Z")
_SEAM_BYTES: Final = 24
_SIZE_LINE_BYTES_MAX: Final = 4096  # with a chunk's extensions
_NO_HEADER: Final = -1
_CRLF: Final = b"\r\n"
_CR: Final = 13
_LF: Final = 10
_SIZE_LINE_BYTES: Final = 18

# How many bytes of a chunk's data are still to come at some place. 0: its line end is, from the begin.
AT_SIZE: Final = -1  # the next chunk's size begins there
UNKNOWN: Final = -2


Removal = tuple[int, int, bytes]
"""Begin and end of what is taken out of raw bytes, and what is put there instead."""


def without(raw: bytes, removals: list[Removal]) -> bytes:
    """*raw* with its removed events gone."""
    for begin, end, instead in reversed(removals):
        raw = raw[:begin] + instead + raw[end:]
    return raw


class ChunkView:
    """``data`` is ``raw`` without its framing.

    ``last_chunk``: where in ``raw`` the chunk that ends the body begins; its length where that is not there. ``left``:
    of the chunk in which the last ``cut`` is, as ``AT_SIZE`` and ``UNKNOWN`` say.
    """

    __slots__ = (
        "_begins", "_framed", "_headers", "_left", "_places", "_sizes", "_whole", "data", "last_chunk", "left", "raw",
    )  # fmt: skip

    def __init__(self, raw: bytes, *, framed: bool, left: int = AT_SIZE) -> None:
        """*framed*: *raw* is chunk-framed; *left*: how many bytes of a chunk's data are to come at its begin. Where
        that is unknown, the first line of hexadecimal digits alone is taken for a chunk's size: no event has one.
        """
        self.raw = raw
        self._framed = framed
        self._left = self.left = left
        self.last_chunk = len(raw)
        # of each piece: its begin in data, its place in raw, begin and size of the chunk if that begins here (else how
        # many bytes of one that began before are to come)
        self._begins, self._places, self._headers, self._sizes = [0], [0], [_NO_HEADER], [UNKNOWN]
        whole = self._chunks() if framed and left < 0 else b""
        self._whole = bool(whole)
        self.data = whole or ((self._guessed() if left == UNKNOWN else self._known(0, left, b"")) if framed else raw)

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

    def _guessed(self) -> bytes:
        """The data where it is not known in which chunk *raw* begins."""
        raw = self.raw
        opening = _OPENING.match(raw)
        if opening is not None and self._fits(opening.end() + int(opening[1], 16)):
            return self._known(0, AT_SIZE, b"")
        at = 0
        while (seam := CHUNK_SEAM.search(raw, at)) is not None:
            if self._fits(seam.end() + int(seam[1], 16)):
                return self._known(seam.start(), 0, raw[: seam.start()])
            at = seam.start() + 1
        return raw

    def _fits(self, end: int) -> bool:
        """Whether a chunk's data may end there: its line end follows, as far as that has come."""
        return b"\r\n".startswith(self.raw[end : end + 2])

    def _known(self, at: int, left: int, before: bytes) -> bytes:
        """The data of the chunks from *at* on, where *left* bytes of one are to come, and *before* it."""
        raw, size = self.raw, len(self.raw)
        pieces, length = [before], len(before)
        if left > 0:
            self._sizes[0] = left
            pieces.append(raw[:left])
            length = at = min(left, size)
            left -= length
        while left <= 0:
            if left == 0:
                if raw[at : at + 2] != b"\r\n":
                    break
                at += 2
            opening = _OPENING.match(raw, at)
            if opening is None:
                if size - at > _SIZE_LINE_BYTES_MAX:  # not kept until it ends
                    self._piece_begins(length, at, at, UNKNOWN)
                    pieces.append(raw[at:])
                break
            left = int(opening[1], 16)
            if left == 0:  # of what follows no chunk is
                self.last_chunk = at
                self._piece_begins(length, opening.end(), at, UNKNOWN)
                pieces.append(raw[opening.end() :])
                break
            self._piece_begins(length, opening.end(), at, left)
            at = opening.end()
            data = raw[at : at + left]
            pieces.append(data)
            length += len(data)
            at += len(data)
            left -= len(data)
        return b"".join(pieces)

    def _piece_begins(self, begin: int, place: int, header: int, size: int) -> None:
        if begin == 0:  # the first is empty
            self._begins, self._places, self._headers, self._sizes = [], [], [], []
        self._begins.append(begin)
        self._places.append(place)
        self._headers.append(header)
        self._sizes.append(size)

    @property
    def after_chunk(self) -> int:
        """How many bytes at the end of ``data`` are the line end of a chunk of unknown size, and of a next one's size
        so far: a line end that is not the stream's own is one.
        """
        if not self._framed or self._sizes[0] != UNKNOWN or len(self._sizes) > 1 or self._left != UNKNOWN:
            return 0
        found = _SEAM_SO_FAR.search(self.raw, max(len(self.raw) - _SEAM_BYTES, 0))
        return len(found[1]) if found is not None else 0

    def _piece(self, at: int) -> int:
        return bisect_right(self._begins, at) - 1

    def cut(self, at: int) -> int:
        """Where ``raw`` ends if the data ends at *at*: after the whole chunk where one ends there. Sets ``left``."""
        if self._whole and at == len(self.data):
            self.left = AT_SIZE
            return len(self.raw)
        if at == 0:
            self.left = self._left
            return 0
        piece = bisect_left(self._begins, at) - 1
        place = self._places[piece] + at - self._begins[piece]
        if self._sizes[piece] == UNKNOWN:
            ends = piece + 1 < len(self._begins) and at == self._begins[piece + 1]
            self.left = 0 if ends else UNKNOWN
        else:
            self.left = self._sizes[piece] + self._begins[piece] - at
        if self.left == 0 and self.raw[place : place + 2] == _CRLF:
            self.left = AT_SIZE
            return place + 2
        return place

    def until(self, at: int, removals: list[Removal]) -> bytes:
        """``raw`` up to data[at], as whole chunks where the last of them begins here, and without what is removed from
        those before it.
        """
        piece = self._piece(at)
        header = self._headers[piece]
        if header < 0:
            return without(self.raw[: self.cut(at)], removals)
        place = self._places[piece]
        before = without(self.raw[:header], [each for each in removals if each[1] <= header])
        return before + chunk(self.raw[place : place + at - self._begins[piece]])

    def lacks_end(self, begin: int, end: int) -> bool:
        """Whether data[begin:end] is a chunk's whole data, and the line end after it has not come."""
        piece = self._piece(begin)
        whole = self._begins[piece] == begin and self._sizes[piece] == end - begin
        return whole and self._places[piece] + end - begin + 2 > len(self.raw)

    def removal(self, begin: int, end: int, *, sized: bool, instead: bytes = b"") -> Removal:
        """How to take the event data[begin:end] out of ``raw``: begin and end there, and what to put there: the line
        *instead*, if it is no longer.

        A chunk of its own goes as a whole. An event that shares its chunk, or stands in a body whose size was stated
        (*sized*), becomes a comment of the same length, which clients skip: that size may have been sent before.
        """
        text = self.data[begin:end]
        ends = text[len(text.rstrip(b"\r\n")) :]
        room = len(text) - len(ends)
        line = instead if len(instead) <= room else b""
        if not (self._framed or sized):
            return begin, end, line and line + ends
        first, last = self._piece(begin), self._piece(end - 1)
        place, stop = self._places[first] + begin - self._begins[first], self._places[last] + end - self._begins[last]
        whole = first == last and self._begins[first] == begin and self._sizes[first] == end - begin
        if whole and not line and self.raw[stop : stop + 2] == b"\r\n":
            return self._headers[first], stop + 2, b""
        made_of = (line or b":").ljust(room) + ends
        made = bytearray(self.raw[place:stop])
        for piece in range(first, last + 1):
            since = max(self._begins[piece], begin)
            until = min(self._begins[piece + 1], end) if piece < last else end
            at = self._places[piece] + since - self._begins[piece] - place
            made[at : at + until - since] = made_of[since - begin : until - begin]
        return place, stop, bytes(made)


def _size(line: bytes) -> int:
    """The size that a chunk's size line without extensions states; -1: it is none."""
    if not line.isalnum() or line[:2] in (b"0x", b"0X"):  # int() takes signs, blanks and underscores too
        return -1
    try:
        return int(line, 16)
    except ValueError:
        return -1
