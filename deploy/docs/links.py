"""Links between texts of the repository: where they lead, and how the site follows those that leave its own pages.

A text links to files beside it, as on a hosting service. On the site a file that is a page becomes a link to that page,
and any other file a copy of it below ``files/``. Must not depend on MkDocs.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from posixpath import normpath, relpath
from typing import Final, NamedTuple
from urllib.parse import urlsplit

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = "deploy/docs/pages"
_LINK: Final = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_FENCE: Final = re.compile(r"(?m)^ *```.*?^ *```[ \t]*$", re.DOTALL)
_CODE: Final = re.compile(r"`[^`\n]*`")
_HEADING: Final = re.compile(r"(?m)^#{1,6} +(.+?)(?: +\{#([\w-]+)\})?$")


class Link(NamedTuple):
    """A relative link of a text: where it starts and ends there, the file from the root, and the anchor."""

    start: int
    end: int
    file: str
    anchor: str


def links(text: str, source: str) -> Iterator[Link]:
    """The relative links of the text at *source*; not those in code."""
    hidden = [span for pattern in (_FENCE, _CODE) for span in (found.span() for found in pattern.finditer(text))]
    for found in _LINK.finditer(text):
        target = urlsplit(found[1])
        inside = any(start <= found.start() < end for start, end in hidden)
        if not (target.scheme or target.netloc or inside):
            beside = normpath(f"{source.rpartition('/')[0] or '.'}/{target.path}") if target.path else source
            yield Link(*found.span(1), beside, target.fragment)


def anchors(text: str) -> set[str]:
    """What a link to a heading of the text may name."""
    plain = _FENCE.sub("", text)
    found: set[str] = set()
    for heading in _HEADING.finditer(plain):
        name = heading[2] or slug(heading[1])
        number = 1
        while name in found:
            name, number = f"{heading[2] or slug(heading[1])}_{number}", number + 1
        found.add(name)
    return found


def slug(heading: str) -> str:
    """A heading as an anchor, as hosting services and MkDocs make it of plain words."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def rewritten(text: str, source: str, page: str, page_of: Callable[[str], str | None]) -> tuple[str, set[str]]:
    """The text as a page at *page* of the site, and the files that it needs beside it.

    *source*: the file it is from; *page_of*: the page that a file of the repository is, None for one that is none.
    """
    files: set[str] = set()
    made, last = [], 0
    for link in links(text, source):
        target = page_of(link.file)
        if target is None and (ROOT / link.file).is_file():
            files.add(link.file)
            target = f"files/{link.file}"
        if target is None and (ROOT / link.file).is_dir():
            target = page_of(f"{link.file}/README.md")
        if target is None:
            continue  # as it is: the build refuses it
        to = "" if target == page else relpath(target, page.rpartition("/")[0] or ".")
        made += [text[last : link.start], to, f"#{link.anchor}" if link.anchor else "" if to else "#"]
        last = link.end
    return "".join([*made, text[last:]]), files
