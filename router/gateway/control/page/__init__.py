"""The operator's page: its files as they are served. uPlot (MIT, ``uPlot.LICENSE.txt``) draws the plots.

Must not depend on what the page shows. Nothing on the page is fetched from elsewhere: the policy below forbids it.
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

INDEX: Final = "index.html"
TYPES: Final[Mapping[str, str]] = {
    "page.css": "text/css; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "plots.js": "text/javascript; charset=utf-8",
    "explain.js": "text/javascript; charset=utf-8",
    "backends.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "uPlot.LICENSE.txt": "text/plain; charset=utf-8",
}
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def text(name: str) -> str:
    """One of the files."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
