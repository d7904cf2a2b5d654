"""Finds members of JSON objects in their bytes, so that one can be changed and every other byte stays as it was sent.

The bytes have been parsed before; of bytes that are no JSON nothing is found. Must not depend on what the members mean.
A value is skipped by one regular expression, so that a body of megabytes costs milliseconds and no loop of Python goes
over its bytes; an object that is nested deeper than that expression reaches counts as unreadable.
"""

import re
from typing import Final

import orjson

_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT: Final = rb'[^"\[\]{}]++|' + _STRING  # of a value's inside: all that opens and closes nothing
_DEPTH: Final = 32  # levels that the expression covers


def _nested(depth: int) -> bytes:
    inside = _FLAT
    for _ in range(depth):
        inside = rb"%b|[\[{](?:%b)*+[\]}]" % (_FLAT, inside)
    return inside


_VALUE: Final = re.compile(rb'%b|[\[{](?:%b)*+[\]}]|[^\s,\[\]{}"]++' % (_STRING, _nested(_DEPTH)), re.DOTALL)
_OPENING: Final = re.compile(rb"\s*+\{")
_END: Final = re.compile(rb"\s*+\}")
_NAME: Final = re.compile(rb"\s*+(%b)\s*+:\s*+" % _STRING, re.DOTALL)
_NEXT: Final = re.compile(rb"\s*+(?:,|(?=\}))")


def value_end(data: bytes, at: int) -> int:
    """Where the JSON value that begins at *at* ends; -1: it does not end in *data*, or is nested over 32 levels."""
    found = _VALUE.match(data, at)
    return found.end() if found is not None else -1


def member_span(data: bytes, name: str, start: int = 0) -> tuple[int, int] | None:
    """Begin and end of the value of the member *name* of the object at *start*: the last of that name, as parsers
    take it. None: there is none. Raises ValueError where the object cannot be read to its end.
    """
    opening = _OPENING.match(data, start)
    if opening is None:
        raise ValueError("no JSON object")
    at = opening.end()
    plain, span = b'"%b"' % name.encode(), None
    while _END.match(data, at) is None:
        named = _NAME.match(data, at)
        end = value_end(data, named.end()) if named is not None else -1
        following = _NEXT.match(data, end) if end >= 0 else None
        if named is None or following is None:
            raise ValueError("no JSON object, no whole one, or one that is nested too deep")
        if named[1] == plain or (b"\\" in named[1] and _unescaped(named[1]) == name):
            span = named.end(), end
        at = following.end()
    return span


def _unescaped(text: bytes) -> str | None:
    try:
        return str(orjson.loads(text))
    except orjson.JSONDecodeError:
        return None


def with_member(data: bytes, name: str, value: bytes, start: int = 0) -> bytes:
    """*data* with *value* as the member *name* of the object at *start*: replaced where it is, else put in front.
    Raises ValueError where the object cannot be read.
    """
    span = member_span(data, name, start)
    if span is not None:
        return b"%b%b%b" % (data[: span[0]], value, data[span[1] :])
    return with_new_member(data, name, value, start)


def with_new_member(data: bytes, name: str, value: bytes, start: int = 0) -> bytes:
    """The same where the object is known to have no such member: its values are not looked at."""
    if data.startswith(b'{"', start):  # as most bodies do
        return b'%b{"%b":%b,%b' % (data[:start], name.encode(), value, data[start + 1 :])
    opening = _OPENING.match(data, start)
    if opening is None:
        raise ValueError("no JSON object")
    at = opening.end()
    separator = b"" if _END.match(data, at) else b","
    return b'%b"%b":%b%b%b' % (data[:at], name.encode(), value, separator, data[at:])
