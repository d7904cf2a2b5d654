"""What an HTTP URL of a config has to be. Must not depend on anything of the project."""

from urllib.parse import urlsplit


def http_url(text: str) -> str:
    """The URL without slashes at its end. Raises ValueError for what is no http or https URL with a host."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, or half an IPv6 address
        good = False
    if not good:
        raise ValueError(f"expected http://host:port, not {text!r}")
    return text.rstrip("/")
