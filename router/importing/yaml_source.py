"""YAML and JSON as trees of settings, one a document. Must not depend on what a key means.

Read node by node, since values alone have no lines. Aliases and merge keys (``<<``) are followed, within bounds: a
file of a few lines can stand for millions of values.
"""

from collections.abc import Iterator
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from router.core.errors import ConfigError
from router.importing.entry import Entry, Key

SETTINGS_MOST: Final = 20_000
_DEEP_MOST: Final = 50
_MERGE: Final = "tag:yaml.org,2002:merge"
_SCALARS: Any = yaml.SafeLoader("")


def documents(text: str, name: str, first_line: int = 1) -> list[Entry]:
    """The documents of *text*, whose first line is *first_line* of the file. Raises ConfigError."""
    try:
        nodes: list[Node | None] = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = (mark.line if mark else 0) + first_line
        raise ConfigError([f"{name}:{line}: not valid YAML: {error.problem}"]) from None
    except RecursionError:
        raise ConfigError([f"{name}:{first_line}: nested too deep"]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([f"{name}:{first_line}: not valid YAML: {error}"]) from None
    walk = _Walk(name, first_line)
    return [walk.document(node) for node in nodes if node is not None]


class _Walk:
    def __init__(self, name: str, first_line: int) -> None:
        self._name, self._first_line, self._settings = name, first_line, 0

    def document(self, node: Node) -> Entry:
        entry = Entry(self._line(node))
        self._fill(entry, node, 0)
        return entry

    def _line(self, node: Node) -> int:
        return int(node.start_mark.line) + self._first_line

    def _fill(self, entry: Entry, node: Node, depth: int) -> None:
        """Give *entry* what *node* has."""
        self._count(node, depth)
        if isinstance(node, ScalarNode):
            entry.value = _scalar(node)
        elif isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                self._fill(entry.add(index, self._line(item)), item, depth + 1)
        elif isinstance(node, MappingNode):
            for key, line, value in self._pairs(node, 0):
                self._fill(entry.add(key, line), value, depth + 1)

    def _count(self, node: Node, depth: int) -> None:
        self._settings += 1
        if depth > _DEEP_MOST or self._settings > SETTINGS_MOST:
            limit = f"more than {SETTINGS_MOST} settings, or nested deeper than {_DEEP_MOST}"
            raise ConfigError([f"{self._name}:{self._line(node)}: {limit}: an alias inside of what it names?"])

    def _pairs(self, node: MappingNode, depth: int) -> Iterator[tuple[Key, int, Node]]:
        """Keys with their lines and values; keys of merged mappings after the own ones, which take precedence."""
        own = [(key, value) for key, value in node.value if key.tag != _MERGE]
        names = [_key(key) for key, _ in own]
        for name, (key, value) in zip(names, own, strict=True):
            yield name, self._line(key), value
        for key, value in node.value:
            if key.tag == _MERGE:
                for merged in value.value if isinstance(value, SequenceNode) else [value]:
                    if isinstance(merged, MappingNode):
                        self._count(merged, depth)
                        inherited = self._pairs(merged, depth + 1)
                        yield from (pair for pair in inherited if pair[0] not in names)


def _key(node: Node) -> str:
    return str(node.value) if isinstance(node, ScalarNode) else "(a key that is no text)"


def _scalar(node: ScalarNode) -> object:
    """A text, a number, a boolean or None; what YAML takes for anything else stays text."""
    if node.tag == "tag:yaml.org,2002:str":
        return str(node.value)
    try:
        value = _SCALARS.construct_object(node)
    except (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, OverflowError):
        return str(node.value)
    return value if value is None or isinstance(value, bool | int | float) else str(node.value)


def text_block(entry: Entry, name: str) -> list[Entry]:
    """The documents of a text that is the value of *entry* (``file.yaml: |`` of a ConfigMap). Raises ConfigError."""
    return documents(entry.text, name, entry.line + 1)
