"""The config that an import writes: values with where they came from, and what has no equivalent, as comments.

Every value is checked against the schema before the text is printed. One that it refuses is left out and named with
its line, so that what is printed can be loaded. Must not depend on the format that was imported.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from router.config import models
from router.config.settings import Settings
from router.config.text import document, problems
from router.core.errors import ConfigError
from router.importing.entry import Entry, Key

NO_EQUIVALENT: Final = "no equivalent"
UNKNOWN: Final = "not known to this import"
_KEY_MOST: Final = 200  # characters: as the schema's names, and within what YAML takes as a key of one line
_PLAIN_KEY: Final = re.compile(r"[a-z][a-z0-9]*_[a-z0-9_]+|[a-z]{3,}[a-z0-9]*")
_PLAIN: Final = re.compile(r"[a-z][a-z0-9_-]*[a-z_][a-z0-9_-]*")
_WORDS_OF_YAML: Final = frozenset({"yes", "true", "false", "off", "null"})
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_CLASS: Final = "of requests without an x-slo-... header; the file that was imported has no SLO"
_PLACEHOLDER: Final = "a-placeholder-of-an-import"


@dataclass(frozen=True, slots=True)
class Reference:
    """``${NAME}``: the value stands in the environment, not in the config."""

    variable: str


@dataclass(slots=True)
class Value:
    """A value of the config, the setting that it came from, and what is written behind it."""

    value: object
    entry: Entry | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """A setting that the config does not have, and why."""

    line: int
    key: str
    why: str


Node = dict[str, Any]  # sections, lists of sections, and values at their ends


@dataclass(slots=True)
class Draft:
    """A config in the making. ``name`` is the file it is made of."""

    name: str
    data: Node = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    variables: dict[str, Entry] = field(default_factory=dict)

    # ---- what formats put in ---------------------------------------------------

    def put(self, entry: Entry | None, value: object, *path: str, comment: str = "") -> None:
        """Set the value at that path. The first one counts: a later one that differs is noted."""
        if entry is not None and max(map(len, path)) > _KEY_MOST:
            self.note(entry, "left out: a name of more than 200 characters")
            return
        section = self.data
        for key in path[:-1]:
            section = section.setdefault(key, {})
        before = section.get(path[-1])
        if before is None:
            section[path[-1]] = Value(value, entry, comment)
        elif before.value != value and entry is not None:
            self.note(entry, f"{'.'.join(path)} is set already, by line {before.entry.line if before.entry else '?'}")

    def backend(self, entry: Entry, url: str, facts: Mapping[str, object], name: str = "") -> Node:
        """A backend at *url*, named after it unless *name* is given; the same one where it is there already."""
        key = facts.get("api_key")
        known: Node
        for known in self.data.get("backends", []):
            if known["url"].value == url and (known.get("api_key") is None or known["api_key"].value == key):
                known |= {fact: Value(value, entry) for fact, value in facts.items() if fact not in known}
                return known
        taken = {each["name"].value for each in self.data.get("backends", [])}
        made: Node = {
            "name": Value(_unique(_slug(name or _place(url)), taken), entry),
            "url": Value(url, entry),
        }
        made |= {fact: Value(value, entry) for fact, value in facts.items()}
        self.data.setdefault("backends", []).append(made)
        return made

    def discover(self, entry: Entry, kind: str, source: Mapping[str, object], defaults: Mapping[str, object]) -> None:
        """A source of backends, and what each of them is unless it says otherwise."""
        made: Node = {kind: Value(dict(source), entry)}
        if defaults:
            made["defaults"] = Value(dict(defaults), entry)
        self.data.setdefault("discover", []).append(made)

    def note(self, entry: Entry, why: str) -> None:
        """A setting that is not taken over, with all below it."""
        entry.used = True
        self.notes.append(Note(entry.line, entry.name, why))

    def secret(self, entry: Entry, variable: str) -> Reference:
        """A reference in place of the secret that is the value of *entry*."""
        name = re.sub(r"[^A-Z0-9]+", "_", variable.upper()).strip("_") or "SECRET"
        name = name if name[0].isalpha() else f"KEY_{name}"
        same = (known for known, of in self.variables.items() if of.value == entry.value)
        found = next(same, "") or _unique(name, set(self.variables), "_")
        self.variables.setdefault(found, entry)
        return Reference(found)

    def variable(self, entry: Entry, name: str) -> Reference:
        """A reference to a variable that the file names itself."""
        self.variables.setdefault(name, entry)
        return Reference(name)

    # ---- the text ---------------------------------------------------------------

    def finish(self, title: str) -> str:
        """The config as text. Raises ConfigError where no backend is left."""
        classes = self.data.setdefault("slo_classes", {})
        classes.setdefault("default", Value({"ttft_ms": 2000, "tpot_ms": 100}, None, _CLASS))
        while faults := self._faults():
            for loc, why in faults[:1]:  # one after the other: places change with what is left out
                self._leave_out(loc, why)
        self.notes.sort(key=lambda note: note.line)
        return "".join(f"{line}\n" for line in (*self._head(title), *self._body(), *self._foot()))

    def _faults(self) -> list[tuple[tuple[Key, ...], str]]:
        """What the schema refuses."""
        if not (self.data.get("backends") or self.data.get("discover")):
            lines = [
                f"{self.name}:{note.line}: {note.key}: {note.why}" for note in self.notes if "left out" in note.why
            ]
            raise ConfigError(lines or [f"{self.name}:1: no engine is named in it, so there is nothing to route to"])
        text = document("".join(f"{line}\n" for line in self._body()), self.name)
        data, unresolved = text.resolved(dict.fromkeys(self.variables, _PLACEHOLDER))
        if unresolved:
            return [(each.loc, each.message) for each in unresolved]
        try:
            parsed = Settings.model_validate(data)
        except ValidationError as error:
            return [(each.loc, each.message) for each in problems(error, Settings)]
        known = not parsed.discover and all(each.models for each in parsed.backends)
        served = frozenset(name for each in parsed.backends for name in each.models) if known else frozenset()
        return [(each.loc, each.message) for each in models.faults(parsed.models, served)]

    def _leave_out(self, loc: tuple[Key, ...], why: str) -> None:
        """Take out the value at *loc*, or the smallest section around it that can be without."""
        if loc[0] == "backends" and len(loc) > 1 and loc[2:3] in {(), ("name",), ("url",)}:
            self._leave_out_item("backends", int(loc[1]), why)
        elif loc[0] == "discover" and len(loc) > 1:
            self._leave_out_item("discover", int(loc[1]), why)
        else:
            self._leave_out_key(self.data, loc, why)

    def _leave_out_item(self, section: str, index: int, why: str) -> None:
        item = self.data[section].pop(index)
        first = next(iter(item.values()))
        if first.entry is not None:
            self.notes.append(Note(first.entry.line, first.entry.name, f"left out: {why}"))
        if not self.data[section]:
            del self.data[section]

    def _leave_out_key(self, section: Any, loc: tuple[Key, ...], why: str) -> None:
        key, rest = loc[0], loc[1:]
        inner = section[int(key)] if isinstance(section, list) else section.get(key)
        if rest and isinstance(inner, dict | list):
            self._leave_out_key(inner, rest, why)
            if not inner:
                del section[key]
            return
        for value in _values(inner if inner is not None else section):
            if value.entry is not None:
                self.notes.append(Note(value.entry.line, value.entry.name, f"left out: {why}"))
        if inner is None:  # a key is missing: the section cannot be without it
            section.clear()
        else:
            del section[key]

    def _head(self, title: str) -> Iterator[str]:
        name = _comment(self.name)
        yield f"# Headroom's config, written by `headroom import` from {name}"
        yield f"# ({title}). `headroom check FILE` checks it; deploy/router.yaml explains every key."
        yield "# Cards and models are not in the file that was imported: add `card` and `model` to each backend for"
        yield "# good forecasts from the first request on."
        if self.variables:
            yield "# Set these environment variables first; the file that was imported has the value or its name:"
            yield from (f"#   {known}  ({_place_of(entry)})" for known, entry in self.variables.items())

    def _foot(self) -> Iterator[str]:
        if self.notes:
            yield ""
            yield f"# Of {_comment(self.name)} this is not taken over:"
            yield from (f"#   line {note.line}: {_comment(note.key)}: {_comment(note.why)}" for note in self.notes)

    def _body(self) -> Iterator[str]:
        """The YAML of the values, in the order of the schema."""
        for key in Settings.model_fields:
            if key in self.data:
                yield ""
                yield from _lines(key, self.data[key], 0)


def _values(node: Any) -> Iterator[Value]:
    if isinstance(node, Value):
        yield node
    else:
        for each in node.values() if isinstance(node, dict) else node:
            yield from _values(each)


def _lines(key: str, node: Any, depth: int) -> Iterator[str]:
    indent, quoted = "  " * depth, _key(key)
    if isinstance(node, Value):
        behind = f"   # {_comment(node.comment)}" if node.comment else ""
        yield f"{indent}{quoted}: {_flow(node.value)}{behind}"
    elif isinstance(node, dict):
        yield f"{indent}{quoted}:"
        for inner, value in node.items():
            yield from _lines(inner, value, depth + 1)
    else:
        yield f"{indent}{quoted}:"
        for item in node:
            lines = [line for inner, value in item.items() for line in _lines(inner, value, depth + 2)]
            yield f"{indent}  - {lines[0].lstrip()}"
            yield from lines[1:]


def _flow(value: object) -> str:
    """A value on one line, as YAML that means just that."""
    if isinstance(value, Reference):
        return f'"${{{value.variable}}}"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value not in _WORDS_OF_YAML else _quoted(value.replace("${", "$${"))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else json.dumps(value)


def _key(text: str) -> str:
    return text if _PLAIN_KEY.fullmatch(text) and text not in _WORDS_OF_YAML else _quoted(text)


def _quoted(text: str) -> str:
    """In double quotes; what YAML does not take as it is, as escapes."""
    return _UNPRINTABLE.sub(_escape, json.dumps(text, ensure_ascii=False))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def _comment(text: str) -> str:
    """Text that cannot end a comment."""
    return "".join(char if char.isprintable() else " " for char in text)[:300]


def _place_of(entry: Entry) -> str:
    return f"line {entry.line}: {_comment(entry.name)}"


def _place(url: str) -> str:
    """The host and port of a URL, as a name."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    return f"{parts.netloc}{parts.path}" or url


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:80] or "engine"


def _unique(name: str, taken: set[str], between: str = "-") -> str:
    numbers = iter(range(2, len(taken) + 3))
    found = name
    while found in taken:
        found = f"{name}{between}{next(numbers)}"
    return found
