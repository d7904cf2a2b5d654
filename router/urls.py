"""What a URL of a config has to be. Must not depend on anything of the project."""

import re
from typing import Final
from urllib.parse import SplitResult, parse_qs, urlsplit

_LABEL_MAX: Final = 63  # characters between two dots of a host name (RFC 1035)
_OF_A_REQUEST: Final = re.compile(
    r"(/v1(/(chat/)?completions|/models|/embeddings|/responses|/messages)?|/health|/metrics)$"
)


def host_port(host: str, port: int | str) -> str:
    """Host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def http_url(text: str) -> str:
    """The URL without slashes at its end. Raises ValueError for what is no http or https URL with a host."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and parts.port != 0 and _is_host(parts.hostname or "")
    except ValueError:  # a port that is no number, or half an IPv6 address
        good = False
    if not good or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"expected http://host:port, not {_without_password(text)!r}")
    return text.rstrip("/")


def shown_url(text: str) -> str:
    """A URL for the log: without a password, and without its query, which may have a key."""
    return _without_password(text.partition("?")[0].partition("#")[0])


def page_url(text: str) -> str:
    """The same for a page that the router reads itself: nothing in it may be left unused."""
    url = http_url(text)
    _refuse(urlsplit(url), ("username", "password", "fragment"))
    return url


def base_url(text: str) -> str:
    """The same for an address that paths are appended to."""
    url = page_url(text)
    parts = urlsplit(url)
    _refuse(parts, ("query",))
    if (end := _OF_A_REQUEST.search(parts.path)) is not None:  # as clients of OpenAI's API have it, or an example
        shown = url.removesuffix(end[0])
        raise ValueError(f"expected the address without {end[0]}, since each request brings its path: {shown}")
    return url


def redis_url(text: str) -> str:
    """The URL as it is. Raises ValueError for one that names no server, or in which a part has no use."""
    try:
        parts = urlsplit(text)
        place = parts.path if parts.scheme == "unix" else parts.hostname
        good = parts.scheme in {"redis", "rediss", "unix"} and parts.port != 0 and bool(place) and redis_db(text) >= 0
    except ValueError:  # a port or a database that is no number, or half an IPv6 address
        good = False
    if not good or not text.isprintable() or " " in text:
        shown = _without_password(text)
        raise ValueError(f"expected redis://host:port/db (rediss:// for TLS, unix:///path for a socket), not {shown!r}")
    options = set(parse_qs(parts.query)) - ({"db"} if parts.scheme == "unix" else set())
    if options or parts.fragment:
        raise ValueError("options have no use here; expected redis://host:port/db, and the rest as keys of state.redis")
    return text


def redis_db(url: str) -> int:
    """The database that a Redis URL names; 0 where it names none. Raises ValueError for what is no number."""
    parts = urlsplit(url)
    named = parse_qs(parts.query).get("db", ["0"])[0] if parts.scheme == "unix" else parts.path.strip("/") or "0"
    if not named.isascii() or not named.isdecimal():
        raise ValueError(named)
    return int(named)


def _without_password(text: str) -> str:
    """The text for an error, without what may be a password."""
    scheme, there, rest = text.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if there else text


def _refuse(parts: SplitResult, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(parts, name):
            raise ValueError(f"a {name} has no use here; expected http://host:port")


def _is_host(name: str) -> bool:
    """Whether the name can be looked up."""
    return all(0 < len(label) <= _LABEL_MAX for label in name.removesuffix(".").split("."))
