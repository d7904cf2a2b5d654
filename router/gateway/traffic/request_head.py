"""Heads of requests beyond what llhttp checks: the target's path, and what two servers might read differently.

Must not depend on sockets, or on what a path stands for.
"""

import re
from collections.abc import Sequence
from typing import Final

from router.gateway.protocols.answers import Problem
from router.gateway.traffic.http import options

_ONE_HOST: Final = Problem(400, "expected exactly one Host header")
_ONE_CODING: Final = Problem(400, "Transfer-Encoding: expected chunked, once, over HTTP/1.1")
_NO_PROXY: Final = Problem(501, "CONNECT: this server is no proxy")
NO_PATH: Final = Problem(400, "request target: expected a path, or http://host/path")
_AFTER_AUTHORITY: Final = re.compile(rb"[/?#]")

Fields = Sequence[tuple[bytes, bytes]]


def origin_form(target: bytes) -> bytes | None:
    """The target as path and query, without scheme and authority where it has them (RFC 9112 3.2); None: it has no
    path.
    """
    if target.startswith(b"/") or target == b"*":
        return target
    scheme, _, rest = target.partition(b"://")
    if scheme.lower() not in {b"http", b"https"}:
        return None
    end = _AFTER_AUTHORITY.search(rest)
    authority, path = (rest[: end.start()], rest[end.start() :]) if end else (rest, b"")
    if not authority:
        return None
    return path if path.startswith(b"/") else b"/" + path


def problem(
    method: bytes,
    target: bytes | None,
    version: str,
    named: dict[bytes, bytes],
    fields: Fields,
    read_bytes: int,
    bytes_max: int,
) -> Problem | None:
    """Why no request can be read from a head that llhttp let pass, if so (RFC 9112 3.2, 6.1, 11.2).

    *target*: its ``origin_form``; *named*: *fields* by name; *read_bytes*: of the reads it came in, and so at least its
    own size.
    """
    if version not in {"1.0", "1.1"}:
        return Problem(505, f"HTTP/{version} is not supported; expected HTTP/1.1")
    if target is None or method == b"CONNECT":  # whatever its target: what follows its head is no body and no request
        return _NO_PROXY if method == b"CONNECT" else NO_PATH
    hosts = 1 if len(named) == len(fields) and b"host" in named else _count(fields, b"host")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return _ONE_HOST
    encoding = named.get(b"transfer-encoding")
    if encoding is not None and (
        encoding.strip().lower() != b"chunked" or version == "1.0" or _count(fields, b"transfer-encoding") > 1
    ):
        return _ONE_CODING
    if read_bytes > bytes_max and sum(len(name) + len(value) for name, value in fields) > bytes_max:
        return too_large(bytes_max)
    return None


def too_large(bytes_max: int) -> Problem:
    """The answer to a head over its bound."""
    return Problem(431, f"the head is over {bytes_max} bytes")


def _count(fields: Fields, name: bytes) -> int:
    return sum(each == name for each, _ in fields)


def without_upgrade(method: bytes, target: bytes, version: str, fields: Fields) -> bytes:
    """The head again, without ``Upgrade`` and the options of ``Connection`` beside ``close``.

    llhttp takes no body of a request that offers an upgrade, whether or not the server takes it up (RFC 9110 7.8).
    """
    named = options([value for name, value in fields if name == b"connection"])
    kept = [(name, value) for name, value in fields if name not in {b"upgrade", b"connection"}]
    if b"close" in named:
        kept.append((b"connection", b"close"))
    lines = b"".join(b"%b: %b\r\n" % field for field in kept)
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode(), lines)
