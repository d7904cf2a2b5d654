"""Config text to frozen values, every fault named by file, line and key.

Believes: YAML 1.1 as PyYAML reads it, and pydantic's word on what a value may be. Must not know what any key means:
that is ``settings.py``. A file is refused whole, with all its faults at once, so that one edit can mend it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from yaml.nodes import MappingNode, Node, SequenceNode

from router.config import references
from router.config.section import Section
from router.core.errors import ConfigError
from router.spelling import suggestion

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where it is: a reload holds up streams less

# By kind of fault, in YAML's words where pydantic has those of Python.
_EXPECTED: Final = dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "expected a list") | (
    dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "expected keys with values")
)

Key = str | int
Loc = tuple[Key, ...]
Value = TypeVar("Value", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One fault: the key's path and what was expected there."""

    loc: Loc
    message: str


def key_path(loc: Loc) -> str:
    """``backends[0].url`` for ("backends", 0, "url")."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".") or "(the whole file)"


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML text, with the position of every key."""

    name: str
    root: Node
    data: Any
    text: str = ""
    _resolved: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)  # when it was parsed

    def line(self, loc: Loc) -> int:
        """The line (from 1) of the key at ``loc``, or of the nearest thing around it that the text has."""
        node, line = self.root, self.root.start_mark.line + 1
        for part in loc:
            found = _child(node, part)
            if found is not None:
                node, line = found
        return line

    def error(self, problems: Iterable[ConfigProblem]) -> ConfigError:
        """The faults with their places, in the order of the text."""
        placed = sorted(((self.line(p.loc), p) for p in problems), key=lambda pair: (pair[0], key_path(pair[1].loc)))
        return ConfigError([f"{self.name}:{line}: {key_path(p.loc)}: {p.message}" for line, p in placed])

    def parse(self, model: type[Value]) -> Value:
        """The values of this document. Raises ConfigError naming each fault."""
        parsed = self.parse_or_problems(model)
        if isinstance(parsed, list):
            raise self.error(parsed)
        return parsed

    def parse_or_problems(self, model: type[Value]) -> Value | list[ConfigProblem]:
        """The values of this document, or every fault in it. A fault shows the reference, not what it stands for."""
        self._resolved.clear()
        data, unresolved = self.resolved()
        self._resolved.extend((data, unresolved))
        if unresolved:
            return unresolved
        try:
            return model.model_validate(data)
        except ValidationError as error:
            return list(problems(error, model, written=self.data))

    def resolved(self, environment: Mapping[str, str] = os.environ) -> tuple[Any, list[ConfigProblem]]:
        """The data with what its references stand for, and those that lead nowhere: as they were when the document was
        parsed, if it was. A file that changes meanwhile must not make the values and the version of a config differ.
        """
        if self._resolved:
            return self._resolved[0], self._resolved[1]
        if "${" not in self.text:
            return self.data, []
        unresolved: list[ConfigProblem] = []
        folder = Path(self.name).parent
        data = references.resolved(
            self.data, environment, folder, lambda loc, why: unresolved.append(ConfigProblem(loc, why))
        )
        return data, unresolved


def read(path: Path) -> Document:
    """The document in the file. Raises ConfigError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    return document(text, str(path))


def document(text: str, name: str) -> Document:
    """The document in ``text``. Raises ConfigError on broken YAML, a key given twice, or a top that is no mapping."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if not isinstance(root, MappingNode):
            raise ConfigError([f"{name}:1: expected keys with values (backends, ...)"])
        faults = [f"{name}:{line}: key {key!r} is given twice" for line, key in _twice(root)]
        if faults:
            raise ConfigError(faults)
        return Document(name, root, loader.construct_document(root), text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        raise ConfigError([f"{name}:{line + 1}: not valid YAML: {_yaml_problem(error, text, line)}"]) from None
    except RecursionError:
        raise ConfigError([f"{name}:1: an alias (*name) stands inside of what it names, or too deep"]) from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"{name}:1: not valid YAML: {error}"]) from None


def _yaml_problem(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    """What is wrong with the YAML of that line, counted from 0."""
    lines = text.splitlines()
    here = lines[line] if line < len(lines) else ""
    if "\t" in here[: len(here) - len(here.lstrip())]:
        return "the line is indented with a tab; YAML takes spaces alone"
    return str(error.problem)


def _child(node: Node, part: Key) -> tuple[Node, int] | None:
    """The node under a key or index, with the line where it is named."""
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item, item.start_mark.line + 1
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value, key.start_mark.line + 1
    return None


def _twice(node: Node) -> Iterator[tuple[int, str]]:
    """Keys that a mapping names more than once; YAML would let the last one win in silence."""
    if isinstance(node, SequenceNode):
        for item in node.value:
            yield from _twice(item)
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, key.value
            seen.add(str(key.value))
            yield from _twice(value)


def problems(
    error: ValidationError, model: type[BaseModel], at: Loc = (), written: Any = None
) -> Iterator[ConfigProblem]:
    """The faults that *error* lists. *at*: the place of a *model* that is a part of the file; *written*: the values as
    they stand there, with their references.
    """
    for fault in error.errors(include_url=False):
        loc = (*at, *fault["loc"])
        match fault["type"]:
            case "extra_forbidden":
                section = _section_at(model, fault["loc"][:-1])
                instead = section.renamed.get(str(loc[-1])) if issubclass(section, Section) else None
                said = f"is now {instead}" if instead else unknown("key", str(loc[-1]), section.model_fields)
                yield ConfigProblem(loc, said)
            case "missing":
                yield ConfigProblem(loc, "is required and missing")
            case "value_error":
                said = fault["msg"].removeprefix("Value error, ")
                hidden = references.refers(_as_written(written, loc, None))
                yield ConfigProblem(loc, said.partition(", not ")[0] if hidden else said)
            case kind:
                message = _EXPECTED.get(kind) or fault["msg"][0].lower() + fault["msg"][1:]
                yield ConfigProblem(loc, f"{message}, not {_short(_as_written(written, loc, fault['input']))}")


def _as_written(written: Any, loc: Loc, value: object) -> object:
    """The value at that place, or what stands there where that has references."""
    for part in loc:
        if isinstance(written, dict):
            written = written.get(part)
        elif isinstance(written, list) and isinstance(part, int) and part < len(written):
            written = written[part]
    return written if references.refers(written) else value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - one line of a terminal


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """The message for a *word* that is not among the *known* ones."""
    return f"unknown {what}; {suggestion(word, sorted(known))}"


def _section_at(model: type[BaseModel], loc: Loc) -> type[BaseModel]:
    """The section at ``loc``, found by walking the annotations."""
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every section class inside an annotation such as ``tuple[Backend, ...] | None``."""
    if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
