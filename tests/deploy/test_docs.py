"""The documentation: links lead somewhere, the reference has all that there is, and the site can be built."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from deploy.docs import reference
from deploy.docs.links import PAGES, ROOT, anchors, links, rewritten
from router.commands.table import PROGRAM as ROUTER
from router.config.settings import Settings
from simulator.commands.table import PROGRAM as SIMULATOR
from simulator.pool_file import PoolFile
from tests.deploy.test_deploy import SUFFIXES, names_in_code

FOLDERS = ("deploy", "policies", "simulator", "router", ".github")
FOUND = [str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")]
TEXTS = ["README.md", "CHANGELOG.md", *sorted(FOUND)]
_FROM = re.compile(r"<!-- from: (\S+) -->")


def read(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def content(file: str) -> str:
    """The text that a page has: that of the file that it is made from, with its headings."""
    text = read(file)
    found = _FROM.match(text)
    if found:
        return read(found[1])
    for name in re.findall(r"<!-- made: (\w+) -->", text):
        text += getattr(reference, name)()
    return text


@pytest.mark.parametrize("file", TEXTS)
def test_links_lead_to_what_is_there(file: str) -> None:
    """Files, and headings of texts."""
    dead = [
        f"{link.file}#{link.anchor}"
        for link in links(read(file), file)
        if not (ROOT / link.file).exists()
        or (link.anchor and link.file.endswith(".md") and link.anchor not in anchors(content(link.file)))
    ]
    assert dead == []


def test_a_dead_link_is_found() -> None:
    """Also an anchor; not what stands in code."""
    text = "[a](b.md#c) `[no](no.md)`\n```\n[no](no.md)\n```\n[d](../e) [f](https://g.example/h) [i](#j)\n## K l, *m*\n"
    assert [(link.file, link.anchor) for link in links(text, "x/y.md")] == [("x/b.md", "c"), ("e", ""), ("x/y.md", "j")]
    assert anchors(text) == {"k-l-m"}


def test_a_file_of_the_repository_is_beside_the_pages() -> None:
    """A file that is a page is linked as that page, any other as a copy."""
    text = "[p](policies/README.md#routing) [l](LICENSE) [s](#here)"
    made, files = rewritten(
        text, "README.md", "a/index.md", {"policies/README.md": "b/p.md", "README.md": "a/index.md"}.get
    )
    assert made == "[p](../b/p.md#routing) [l](../files/LICENSE) [s](#here)"
    assert files == {"LICENSE"}


def test_every_page_is_in_the_navigation() -> None:
    """And each that is named there exists."""

    def named(node: Any) -> Iterator[str]:
        for each in node.values() if isinstance(node, dict) else node:
            yield from [each] if isinstance(each, str) else named(each)

    nav = yaml.safe_load(read("deploy/docs/mkdocs.yml"))["nav"]
    pages = {str(path.relative_to(ROOT / PAGES)) for path in (ROOT / PAGES).rglob("*.md")}
    assert sorted(named(nav)) == sorted(pages)


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section and all inside of it."""
    yield model

    def inside(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
            yield from sections(annotation)
        for each in get_args(annotation):
            yield from inside(each)

    for field in model.model_fields.values():
        yield from inside(field.annotation)


@pytest.mark.parametrize(("made", "model"), [("config", Settings), ("pool", PoolFile)])
def test_the_reference_has_every_key(made: str, model: type[BaseModel]) -> None:
    """Each in the table of its section, and each section with what its docstring says."""
    text = getattr(reference, made)()
    for section in set(sections(model)):
        rows = [f"| `{name}` | " for name in section.model_fields]
        assert [row for row in rows if row not in text] == []
        first = reference.prose(reference.docstring(section)).split("\n")[0]
        assert section is PoolFile or (first and first in text), section


def test_keys_are_described_as_in_the_example() -> None:
    """By the comments of deploy/router.yaml, what is commented out there included."""
    found = reference.comments(read("deploy/router.yaml"))
    assert found["listen.body_bytes_max"] == "larger bodies get 413"
    assert found["upstream.idle_s"] == "vLLM closes idle connections after 5 s"
    assert found["backends[].seqs_max"] == "vLLM --max-num-seqs"
    assert (
        found["policy.limits.failures_max"] == "consecutive failures before a backend is ejected, at first for eject_s"
    )
    assert found["scrape.down_after"].startswith("failed health checks in a row; a time-out counts only")
    text = reference.config()
    assert "| `idle_s` | number > 0 | `4.0` | vLLM closes idle connections after 5 s |" in text
    assert "| `source` | `engines`, `routers`, `state` | `engines` |" in text


def test_the_reference_has_every_metric() -> None:
    """Of a router and of an autoscaler, whether or not it has samples yet."""
    shown = {SUFFIXES.sub("", name) for name in re.findall(r"^\| `(\w+)`", reference.metrics(), re.MULTILINE)}
    known = {SUFFIXES.sub("", name) for name in names_in_code()}
    assert known - shown == {"headroom_ms"}  # a key of /explain


def test_the_reference_has_every_command_and_option() -> None:
    """As `--help` prints them."""
    for program, text in ((ROUTER, reference.commands()), (SIMULATOR, reference.simulator())):
        for command in program.commands:
            assert (f"\n## {command.name} " in text) != command.hidden
    assert "--from FORMAT" in reference.commands()
    assert "--policy" in reference.simulator()


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra `docs`; `make docs` builds the site")
def test_the_site_can_be_built(tmp_path: Path) -> None:
    """Without a warning: no dead link, no dead anchor, no page that is left out."""
    words = ["mkdocs", "build", "--quiet", "--strict", "-f", "deploy/docs/mkdocs.yml", "-d", str(tmp_path / "site")]
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site/index.html").exists()
    fetched = re.findall(
        r'(?:src|href)="(https?://[^"]+)"[^>]*(?:rel="stylesheet"|></script>)',
        (tmp_path / "site/index.html").read_text("utf-8"),
    )
    assert fetched == []
