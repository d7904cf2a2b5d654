"""How many tokens the images, sounds and files of a prompt come to, by what their parts say of them.

A picture's size is read from the first bytes of its file, at most ``_MARKERS_MAX`` places of it: nothing is decoded but
those, and base64 is never counted as text. Must not depend on the model: engines cut pictures up in different ways, so
these are estimates with a wide error (``MEDIA_SIGMA``).
"""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, Final

from router.core.text_size import TEXT_SIGMA, text_tokens

MEDIA_SIGMA: Final = 1.0  # of the log: a picture is 64 tokens to one model and 1,000 to another

# Qwen2-VL and Qwen2.5-VL: a token is a square of 28 x 28 pixels, and a picture is scaled to 4 to 16,384 of them.
PIXELS_PER_TOKEN: Final = 28
IMAGE_TOKENS_MIN: Final = 4
IMAGE_TOKENS_MAX: Final = 16_384
IMAGE_TOKENS: Final = 765  # of a picture whose size is not known: 1024 x 1024 in OpenAI's guide (85 + 4 tiles of 170)
LOW_DETAIL_TOKENS: Final = 85  # the same guide: any picture with detail "low"
AUDIO_TOKENS_PER_S: Final = 25.0  # Qwen2-Audio and Qwen2.5-Omni: a frame of the encoder is 40 ms
AUDIO_BYTES_PER_S: Final = 16_000.0  # of a file that does not say it: 128 kbit/s, as most MP3 files have
AUDIO_S: Final = 30.0  # of a sound that is not there to be looked at: one window of Whisper's encoder
AUDIO_S_MAX: Final = 86_400.0
VIDEO_TOKENS: Final = 16 * IMAGE_TOKENS  # vLLM reads 32 frames of a video by default; Qwen2-VL joins two at a time
PAGE_TOKENS: Final = 2_250  # of a PDF: 1,500 to 3,000 in Anthropic's documentation
PAGE_BYTES: Final = 100_000.0  # of one, text and pictures together
_PAGES_MAX: Final = 1_000.0
_MARKERS_MAX: Final = 64
_HEAD_BYTES: Final = 32
_SIDE_MAX: Final = 1 << 24
_ENCODED: Final = ";base64,"
_UNTYPED: Final = ("image_url", "input_audio", "audio_url", "video_url")  # vLLM takes such parts without a type
_URL_HEAD_MAX: Final = 256  # where the data of a data URL begins


class Sized:
    """Content that is not read as text: about so many tokens, ``sigma`` the standard deviation of the log of that."""

    __slots__ = ("sigma", "tokens")

    def __init__(self, tokens: float, sigma: float) -> None:
        self.tokens = tokens
        self.sigma = sigma


class _Base64:
    """Bytes in base64, of which only those that are asked for are decoded."""

    __slots__ = ("_start", "_text", "size")

    def __init__(self, text: str, start: int = 0) -> None:
        self._text = text
        self._start = start
        self.size = (len(text) - start) * 3 // 4

    def at(self, offset: int, count: int) -> bytes:
        """So many bytes from there; fewer at the end, none where it is no base64 (line breaks in it, say)."""
        first = offset // 3 * 4 + self._start
        groups = (offset % 3 + count + 2) // 3
        text = self._text[first : first + 4 * groups]
        try:
            data = b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (Base64Error, ValueError):
            return b""
        return data[offset % 3 : offset % 3 + count]


def image(url: object, detail: object = None) -> Sized:
    """A picture by its URL, or by what else was given for it."""
    data = _data_of(url)
    size = _picture_size(data) if data is not None else None
    tokens = _tokens_of(*size) if size is not None else IMAGE_TOKENS
    return Sized(float(min(tokens, LOW_DETAIL_TOKENS) if detail == "low" else tokens), MEDIA_SIGMA)


def encoded_image(text: object) -> Sized:
    """A picture as base64 alone."""
    size = _picture_size(_Base64(text)) if isinstance(text, str) else None
    return Sized(float(_tokens_of(*size) if size is not None else IMAGE_TOKENS), MEDIA_SIGMA)


def audio(data: object, *, encoded: bool) -> Sized:
    """A sound as base64 (``encoded``), or by its URL."""
    held = (_Base64(data) if encoded else _data_of(data)) if isinstance(data, str) else None
    seconds = AUDIO_S if held is None else held.size / _bytes_per_s(held)
    return Sized(max(1.0, AUDIO_TOKENS_PER_S * min(seconds, AUDIO_S_MAX)), MEDIA_SIGMA)


def file(data: object) -> Sized:
    """A file as a data URL or base64: a text by its length, any other by its pages; one that is not there is a page."""
    if not isinstance(data, str) or not data:
        return Sized(float(PAGE_TOKENS), MEDIA_SIGMA)
    if data.startswith("data:text/"):
        held = _data_of(data)
        return Sized(held.size / 4.0 if held is not None else text_tokens(data), TEXT_SIGMA)
    pages = min(_PAGES_MAX, ceil(len(data) * 3 / 4 / PAGE_BYTES))
    return Sized(float(PAGE_TOKENS * pages), MEDIA_SIGMA)


def of_part(part: Mapping[str, Any]) -> Sized | None:
    """A part of a message in OpenAI's or Anthropic's form; None where it is nothing of the kind, or is empty."""
    kind = part.get("type")
    read = _PARTS.get(kind if isinstance(kind, str) else next((kind for kind in _UNTYPED if kind in part), ""))
    return read(part) if read is not None else None


def _image_part(part: Mapping[str, Any]) -> Sized | None:
    given = part.get("image_url")
    if isinstance(given, dict):
        return image(given.get("url"), given.get("detail"))
    return image(given, part.get("detail"))


def _audio_part(part: Mapping[str, Any]) -> Sized | None:
    given = part.get("input_audio")
    return audio(given.get("data") if isinstance(given, dict) else None, encoded=True)


def _audio_url_part(part: Mapping[str, Any]) -> Sized | None:
    given = part.get("audio_url")
    return audio(given.get("url") if isinstance(given, dict) else given, encoded=False)


def _video_part(_: Mapping[str, Any]) -> Sized | None:
    """Nothing of a video is looked at."""
    return Sized(float(VIDEO_TOKENS), MEDIA_SIGMA)


def _file_part(part: Mapping[str, Any]) -> Sized | None:
    given = part.get("file")
    return file((given if isinstance(given, dict) else part).get("file_data"))


def _sourced(part: Mapping[str, Any]) -> Sized | None:
    """Anthropic's: the source says how it is given. None: there is no source, or it is text."""
    source = part.get("source")
    if not isinstance(source, dict):
        return image(part["image"]) if isinstance(part.get("image"), str) else None
    if source.get("type") in ("text", "content"):
        return None
    data = source.get("data")
    if part.get("type") == "image":
        return encoded_image(data) if isinstance(data, str) else image(source.get("url"))
    return file(data)


_PARTS: Final[Mapping[str, Callable[[Mapping[str, Any]], Sized | None]]] = {
    "image_url": _image_part,
    "input_image": _image_part,
    "image": _sourced,
    "document": _sourced,
    "input_audio": _audio_part,
    "audio_url": _audio_url_part,
    "video_url": _video_part,
    "video": _video_part,
    "file": _file_part,
    "input_file": _file_part,
}


# -- sizes, by the first bytes -----------------------------------------------------------------------------------------


def _data_of(url: object) -> _Base64 | None:
    """What a data URL holds; None for any other."""
    if not isinstance(url, str) or not url.startswith("data:"):
        return None
    at = url.find(_ENCODED, 0, _URL_HEAD_MAX)
    return _Base64(url, at + len(_ENCODED)) if at >= 0 else None


def _tokens_of(width: int, height: int) -> int:
    tokens = ceil(width / PIXELS_PER_TOKEN) * ceil(height / PIXELS_PER_TOKEN)
    return max(IMAGE_TOKENS_MIN, min(tokens, IMAGE_TOKENS_MAX))


def _picture_size(data: _Base64) -> tuple[int, int] | None:
    """Width and height in pixels; None where the file's first bytes do not say."""
    head = data.at(0, _HEAD_BYTES)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        size = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    elif head.startswith((b"GIF87a", b"GIF89a")):
        size = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        size = _webp_size(head)
    elif head.startswith(b"\xff\xd8"):
        size = _jpeg_size(data)
    else:
        return None
    return size if 0 < size[0] <= _SIDE_MAX and 0 < size[1] <= _SIDE_MAX else None


def _webp_size(head: bytes) -> tuple[int, int]:
    """Of the three forms: lossy, lossless, extended. (0, 0): none of them."""
    match head[12:16]:
        case b"VP8 ":
            return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        case _:
            return 0, 0


def _jpeg_size(data: _Base64) -> tuple[int, int]:
    """Of the frame header, which stands behind segments of any length. (0, 0): not found."""
    offset = 2
    for _ in range(_MARKERS_MAX):
        segment = data.at(offset, 9)
        if len(segment) < 9 or segment[0] != 0xFF:  # noqa: PLR2004 - marker, length, precision, height, width
            return 0, 0
        marker = segment[1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # noqa: PLR2004 - the start of a frame
            return int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big")
        offset += 2 + int.from_bytes(segment[2:4], "big")
    return 0, 0


def _bytes_per_s(data: _Base64) -> float:
    """Of a WAV file by its header, else of an MP3 file."""
    head = data.at(0, _HEAD_BYTES)
    if head.startswith(b"RIFF") and head[8:16] == b"WAVEfmt ":
        return max(float(int.from_bytes(head[28:32], "little")), 1_000.0)
    return AUDIO_BYTES_PER_S
