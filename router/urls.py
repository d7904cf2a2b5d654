"""What an HTTP URL of a config has to be. Must not depend on anything of the project."""

from typing import Final
from urllib.parse import SplitResult, urlsplit

_LABEL_MAX: Final = 63  # characters between two dots of a host name (RFC 1035)


def http_url(text: str) -> str:
    """The URL without slashes at its end. Raises ValueError for what is no http or https URL with a host."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and parts.port != 0 and _is_host(parts.hostname or "")
    except ValueError:  # a port that is no number, or half an IPv6 address
        good = False
    if not good or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"expected http://host:port, not {text!r}")
    return text.rstrip("/")


def page_url(text: str) -> str:
    """The same for a page that the router reads itself: nothing in it may be left unused."""
    url = http_url(text)
    _refuse(urlsplit(url), ("username", "password", "fragment"))
    return url


def base_url(text: str) -> str:
    """The same for an address that paths are appended to."""
    url = page_url(text)
    _refuse(urlsplit(url), ("query",))
    return url


def _refuse(parts: SplitResult, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(parts, name):
            raise ValueError(f"a {name} has no use here; expected http://host:port")


def _is_host(name: str) -> bool:
    """Whether the name can be looked up."""
    return all(0 < len(label) <= _LABEL_MAX for label in name.removesuffix(".").split("."))
