"""What the formats of proxies have in common: engines by address, times with units. Must not depend on any one."""

import re
from typing import Final

from router.importing.draft import Draft
from router.importing.entry import Entry

_TIME: Final = re.compile(r"(\d{1,12})\s*(us|ms|s|m|h|d|w|)")
_UNITS_S: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SIZE: Final = re.compile(r"(\d{1,12})([kmg]?)", re.IGNORECASE)
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def seconds(text: str, unit: str) -> float | None:
    """A time as proxies write it (``500ms``, ``1m30s``); *unit*: of a bare number. None where it is none, or 0."""
    found = _TIME.findall(text)
    if not found or "".join(f"{number}{given}" for number, given in found) != text.replace(" ", ""):
        return None
    return sum(int(number) * _UNITS_S[given or unit] for number, given in found) or None


def size_bytes(text: str) -> int | None:
    """``8m``; None where it is no size, or 0, which means that there is no limit."""
    found = _SIZE.fullmatch(text)
    return int(found[1]) * _BYTES[found[2].lower()] or None if found else None


def put_time(draft: Draft, entry: Entry, text: str, unit: str, *path: str) -> None:
    """A time in seconds."""
    value = seconds(text, unit)
    if value is None:
        draft.note(entry, f"left out: expected a time above 0 for {'.'.join(path)}")
    else:
        entry.used = True
        draft.put(entry, float(f"{value:.9g}"), *path)


def without_version(url: str) -> str:
    """The address of a server: the paths of OpenAI's API, which begin with /v1, are appended to it."""
    return re.sub(r"/v1/*$", "", url.strip()).rstrip("/")


def address_url(address: str, scheme: str) -> str | None:
    """The URL of ``host:port``; None for a socket of Unix, a variable and what is no address."""
    if not address or address.startswith(("unix", "/", "abns@", "$", "{")) or "$" in address:
        return None
    return f"{scheme}://{address}"
