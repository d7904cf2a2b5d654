"""HTTP/1.1 heads and chunks as bytes: fields that stop at a hop, an engine's head, chunk framing (RFC 9110, 9112).

llhttp has already refused what is malformed. Must not depend on sockets or requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Final

LAST_CHUNK: Final = b"0\r\n\r\n"
HEAD_END: Final = b"\r\n\r\n"

# RFC 9110 7.6.1, and what older proxies sent
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"proxy-authenticate",
        b"proxy-authorization",
    }
)
_CODINGS: Final[list[list[bytes]]] = [[], [b"chunked"], [b"identity"]]
_KEPT_BYTES_MAX: Final = 2_048  # a longer head is parsed anew each time
NO_BODY: Final = frozenset({204, 304})  # whatever their heads state
# Fields of an engine's answer that the gateway writes itself; so are all of CORS, which is the config's to decide.
_CORS: Final = b"access-control-"
_REWRITTEN: Final = HOP_BY_HOP | {b"content-length", b"x-request-id"}


def _status_line(status: int) -> bytes:
    known = {member.value: member.phrase for member in HTTPStatus}
    return f"HTTP/1.1 {status} {known.get(status, '')}\r\n".encode()


STATUS_LINES: Final = {status: _status_line(status) for status in range(200, 600)}


@dataclass(frozen=True, slots=True)
class Head:
    """An engine's answer up to its body. ``fields``: header lines to forward; ``length`` -1: not stated;
    ``event_stream``: of events that can be read, which those of a compressed one cannot; ``plain``: it
    is not compressed.

    ``until_close``: neither a length nor chunks, so the end of the connection is the end of the body.
    """

    status: int
    fields: bytes
    chunked: bool
    length: int
    event_stream: bool
    plain: bool = True

    @property
    def until_close(self) -> bool:
        return not self.chunked and self.length < 0 and self.status not in NO_BODY


def parse_head(head: bytes) -> Head:
    """Read a head that llhttp has accepted, ``HTTP/1.1 200 OK`` line to empty line included.

    Raises ValueError where the framing of the body is not one that the gateway can pass on.
    """
    return _kept_head(head) if len(head) <= _KEPT_BYTES_MAX else _parsed(head)


@lru_cache(maxsize=512)  # an engine sends the same head for every stream of a second
def _kept_head(head: bytes) -> Head:
    return _parsed(head)


def _parsed(head: bytes) -> Head:
    lines = head.split(b"\r\n")
    named = [(line.partition(b":")[0].lower(), line) for line in lines[1:] if line]
    dropped = _REWRITTEN | _connection_options(named)
    values = {name: line.partition(b":")[2].strip() for name, line in named}
    plain = values.get(b"content-encoding", b"identity").lower() == b"identity"
    codings = [line.partition(b":")[2].strip().lower() for name, line in named if name == b"transfer-encoding"]
    if codings not in _CODINGS:
        raise ValueError("expected no transfer coding but chunked")
    return Head(
        status=int(lines[0][9:12]),
        fields=b"".join(line + b"\r\n" for name, line in named if name not in dropped and not name.startswith(_CORS)),
        chunked=codings == [b"chunked"],
        length=int(values.get(b"content-length", b"-1")),
        event_stream=plain and values.get(b"content-type", b"").lower().startswith(b"text/event-stream"),
        plain=plain,
    )


def _connection_options(named: Sequence[tuple[bytes, bytes]]) -> frozenset[bytes]:
    values = [line.partition(b":")[2] for name, line in named if name == b"connection"]
    return options(values)


def options(connection: Sequence[bytes]) -> frozenset[bytes]:
    """The fields that ``Connection`` names: they stop at this hop too."""
    return frozenset(token.strip().lower() for value in connection for token in value.split(b","))


def chunk(data: bytes) -> bytes:
    """*data* as one chunk; nothing for nothing, since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def dechunked(raw: bytes) -> bytes:
    """The data in chunk-framed *raw*, which starts at a chunk; an incomplete last chunk gives what is there."""
    pieces: list[bytes] = []
    at = 0
    while (end := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:end].partition(b";")[0], 16)
        if size == 0:
            break
        pieces.append(raw[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(pieces)
