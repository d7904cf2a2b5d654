"""CORS: which pages of other origins a browser may let call this router (fetch.spec.whatwg.org, "CORS protocol").

Only by config; without it nothing of this is sent. Keys travel in headers, so cookies are never allowed. Must not
depend on sockets or the config file.
"""

import re
from collections.abc import Mapping
from typing import Final

ANY: Final = "*"
# What a script may read of a reply beside its body.
EXPOSED: Final = (
    b"x-request-id", b"x-headroom-backend", b"x-headroom-predicted-ttft-ms", b"x-headroom-slo-clamped",
    b"x-headroom-model", b"x-headroom-fallback",
    b"x-headroom-dropped-reason", b"x-should-retry", b"retry-after",
    b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests",
    b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens",
)  # fmt: skip
_REQUESTED: Final = re.compile(rb"[-A-Za-z0-9!#$%&'*+.^_`|~, ]{1,2048}")  # names of fields with commas between


class Cors:
    """The rules of one config. ``origins``: as browsers send them, or ``*``; ``headers``: fields that a script may
    send, empty: all that it names.
    """

    __slots__ = ("_any", "_headers", "_max_age_s", "_origins", "_reply")

    def __init__(self, origins: frozenset[str], headers: tuple[str, ...] = (), max_age_s: int = 600) -> None:
        self._origins = frozenset(origin.lower().encode() for origin in origins)
        self._any = ANY in origins
        self._headers = ", ".join(headers).encode()
        self._max_age_s = max_age_s
        self._reply = b"access-control-expose-headers: %b\r\n" % b", ".join(EXPOSED)

    def reply_fields(self, fields: Mapping[bytes, bytes]) -> bytes:
        """Header lines of every reply to a request with these fields."""
        return self._allowed(fields, self._reply)

    def preflight_fields(self, fields: Mapping[bytes, bytes], methods: bytes) -> bytes:
        """Header lines of the answer to a preflight; for an origin that is not allowed they allow nothing."""
        requested = fields.get(b"access-control-request-headers", b"")
        headers = self._headers or (requested if _REQUESTED.fullmatch(requested) else b"")
        lines = b"access-control-allow-methods: %b\r\naccess-control-max-age: %d\r\n" % (methods, self._max_age_s)
        if headers:
            lines += b"access-control-allow-headers: %b\r\n" % headers
        return self._allowed(fields, lines)

    def _allowed(self, fields: Mapping[bytes, bytes], lines: bytes) -> bytes:
        if self._any:
            return b"access-control-allow-origin: *\r\n" + lines
        origin = fields.get(b"origin", b"")
        if origin.lower() not in self._origins:
            return b"vary: origin\r\n"  # a cache must not give this reply to an origin that is allowed
        return b"access-control-allow-origin: %b\r\nvary: origin\r\n%b" % (origin, lines)


def is_preflight(method: bytes, fields: Mapping[bytes, bytes]) -> bool:
    """Whether a browser asks by this request what another one may do."""
    return method == b"OPTIONS" and b"origin" in fields and b"access-control-request-method" in fields
