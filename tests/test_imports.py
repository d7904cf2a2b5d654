"""No module imports itself by way of others, imports for annotations alone included.

import-linter holds it between the folders of a folder (``pyproject.toml``); this finds circles of any modules.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("router", "simulator", "policies")


def modules() -> dict[str, Path]:
    """Each module's file, by its name."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(tree: ast.AST, known: Mapping[str, object]) -> Iterator[str]:
    """The modules of *known* that any statement of *tree* imports, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in known:
                    yield submodule
                elif node.module in known:
                    yield node.module


def graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Each module with those that it imports."""
    return {name: set(imported(ast.parse(source), sources)) - {name} for name, source in sources.items()}


def test_there_is_no_circle() -> None:
    """The order in which all modules could be read one after another exists."""
    order = TopologicalSorter(graph({name: file.read_text("utf-8") for name, file in modules().items()}))
    order.prepare()  # raises CycleError with the circle


def test_a_circle_through_an_import_for_annotations_is_found() -> None:
    """Such a circle does not fail at run time, so only a check can find it."""
    sources = {
        "router.a": "from router import b",
        "router.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from router.a import A",
    }
    with pytest.raises(CycleError):
        TopologicalSorter(graph(sources)).prepare()
