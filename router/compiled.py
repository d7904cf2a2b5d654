"""Which code runs: what ``make fast`` compiled, or the Python sources.

A build leaves a manifest beside this file: the files that went into it, each with the hash of its content. While every
hash fits, the compiled modules run. Once one source has changed, none of them does: compiled modules share struct
layouts and inlined constants, so one that is out of date makes all of them wrong. Of the Python loops, whose constants
stand in the C ones too, docstrings and comments may change. ``HEADROOM_COMPILE=no`` runs the
sources in any case, the Python loops in place of those in C too.

``router/__init__.py`` calls ``choose`` before any other module of the project is imported. Imports none itself.
"""

import json
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from os import environ
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

ROOT: Final = Path(__file__).parents[1]
MANIFEST: Final = f"router/compiled{EXTENSION_SUFFIXES[0]}.json"  # a build serves one version of Python
PACKAGES: Final = ("router", "policies", "simulator")

State = Literal["compiled", "interpreted", "stale"]


@cache
def state() -> State:
    """What runs in this process; ``stale`` runs the sources, and no command starts with it."""
    if not _wanted() or not _manifest().get("modules"):
        return "interpreted"
    return "stale" if changed() else "compiled"


@cache
def changed() -> tuple[str, ...]:
    """The files that are not what was compiled, by path from the root of the project."""
    return (*_changed("modules"), *_changed("loops")) if _wanted() else ()


def refuse_stale() -> None:
    """End the process with what to do, where compiled files are out of date. Every command begins with it."""
    if not (paths := changed()):
        return
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    build = "fast" if _changed("modules") else "env"  # which builds the loops alone, in a second or two
    raise SystemExit(
        f"compiled files are out of date: {paths[0]}{more} changed since. `make {build}` compiles again, "
        "`make clean` removes them, HEADROOM_COMPILE=no runs the sources"
    )


def choose() -> None:
    """Hide compiled modules from the import system, unless they are to run."""
    if state() != "compiled":
        sys.meta_path.insert(0, Sources())


class Sources:
    """Finds modules of the project as sources, whatever was compiled beside them.

    Loops written in C have no source of the same name. They run with interpreted modules too, unless
    ``HEADROOM_COMPILE=no`` or a change since the build forbids it: the Python loops then serve in their place.
    """

    def __init__(self) -> None:
        self._finders: dict[str, FileFinder] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a source; None, so that the next finder looks, for everything else."""
        if path is None or name.partition(".")[0] not in PACKAGES:
            return None
        found = (self._in(folder).find_spec(name, target) for folder in path)
        spec = next(filter(None, found), None)
        if spec is None and (not _wanted() or changed()):
            raise ModuleNotFoundError(f"no source of {name}, and extensions are not to be used", name=name)
        return spec

    def _in(self, folder: str) -> FileFinder:
        if folder not in self._finders:
            self._finders[folder] = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))
        return self._finders[folder]


def digest(path: Path) -> str:
    """The hash of a file's content. Not its time of change: a checkout of git sets that anew."""
    return sha256(path.read_bytes()).hexdigest()


def code_digest(path: Path) -> str:
    """The hash of a source without its comments and docstrings."""
    import ast  # noqa: PLC0415 - after an edit alone: most starts do without

    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return sha256(ast.dump(tree).encode()).hexdigest()


def _changed(part: str) -> list[str]:
    return [name for name, recorded in sorted(_manifest().get(part, {}).items()) if not _fits(part, name, recorded)]


def _fits(part: str, name: str, recorded: str) -> bool:
    path = ROOT / name
    try:
        if digest(path) == recorded:
            return True
        code = _manifest().get("code", {}).get(name) if part == "loops" else None
        return code is not None and code_digest(path) == code
    except FileNotFoundError:
        return path.suffix in {".c", ".h"}  # an installation holds no C
    except SyntaxError:
        return False


def _wanted() -> bool:
    return environ.get("HEADROOM_COMPILE") != "no"


@cache
def _manifest() -> dict[str, dict[str, str]]:
    try:
        recorded: dict[str, dict[str, str]] = json.loads((ROOT / MANIFEST).read_bytes())
    except FileNotFoundError:
        return {}
    return recorded
