"""Builds the C loops, and compiles the hot modules to C extensions (mypyc). Without a C compiler only speed is missing.

The loops (``_name.c``) take a second or two; the modules, which pyproject.toml lists (``tool.headroom.compiled``), some
minutes. ``HEADROOM_COMPILE``: ``auto`` (default) builds what it can and says so where it cannot, ``loops`` the loops
alone, ``no`` nothing, ``must`` fails where it cannot. ``python setup.py build_ext --inplace`` puts the extensions
beside their sources.
"""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE: Final = Path(__file__).parent
WISH: Final = os.environ.get("HEADROOM_COMPILE", "auto")
PACKAGES: Final = ("router", "policies", "simulator")
GROUP: Final = "router.compiled"  # the one library that holds them all is router/compiled__mypyc

LOOPS: Final = (
    "router.core._kernels",
    "router.core._lessons",
    "router.core._hashing",
    "policies.routing._headroom_loops",
)
CONSTANTS_OF: Final = (
    "router.core.columns",
    "router.core.kernels",
    "router.core.lessons",
    "router.core.hashing",
    "policies.routing._headroom",
)
SHARED: Final = "router/core/_loops.h"
FLAGS: Final = [
    "-std=c11",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]  # results stay as they are
HEADER: Final = """
import re, sys
from importlib import import_module
found = {}
for name in sys.argv[1:]:
    for key, value in vars(import_module(name)).items():
        if re.fullmatch("_?[A-Z][A-Z0-9_]*", key) and isinstance(value, int | float | tuple):
            assert found.setdefault(key, value) == value, key
def text(value):
    if isinstance(value, tuple):
        return "{" + ", ".join(map(text, value)) + "}"
    return f"({value.hex()})" if isinstance(value, float) else f"({value}{'ULL' if value >= 2**63 else ''})"
for key, value in sorted(found.items()):
    print(f"#define {key} {text(value)}")
"""


def modules() -> list[str]:
    """The files to compile, as pyproject.toml lists them."""
    told = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["headroom"]["compiled"]
    return [str(path.relative_to(HERE)) for pattern in told for path in sorted(HERE.glob(pattern))]


def loops() -> list[Extension]:
    """One extension for each file of loops."""
    if WISH == "no":
        return []
    try:
        from numpy import get_include  # noqa: PLC0415 - only where something is to be built
    except ImportError:
        return skipped("numpy is not installed: the loops are not built")
    return [
        Extension(
            name,
            [f"{name.replace('.', '/')}.c"],
            include_dirs=[get_include(), "router/core", "build/loops"],
            depends=[SHARED, *(f"{each.replace('.', '/')}.py" for each in CONSTANTS_OF)],
            extra_compile_args=FLAGS,
        )
        for name in LOOPS
    ]


def write_constants() -> None:
    """The constants of the Python loops as a header for those in C: no number stands twice."""
    header = HERE / "build" / "loops" / "_constants.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    interpreted = {**os.environ, "HEADROOM_COMPILE": "no", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    asked = [sys.executable, "-c", HEADER, *CONSTANTS_OF]
    done = subprocess.run(asked, cwd=HERE, env=interpreted, check=True, stdout=subprocess.PIPE, text=True)
    if not header.exists() or header.read_text(encoding="utf-8") != done.stdout:
        header.write_text(done.stdout, encoding="utf-8")


def hot_modules() -> list[Extension]:
    """One a module, and the library they share; none where that is not wanted, or mypy is not there."""
    if WISH in ("no", "loops"):
        return []
    try:
        from mypyc.build import mypycify  # noqa: PLC0415 - only where something is to be compiled
    except ImportError:
        return skipped("mypy is not installed: the modules run interpreted")
    # Checked as strictly as `make check` does it, where numpy can be seen; a build must not fail for want of a stub.
    told = ["--ignore-missing-imports", "--no-warn-unused-ignores", "--no-warn-return-any", *modules()]
    os.chdir(HERE)
    try:
        return mypycify(told, opt_level="3", debug_level="0", group_name=GROUP)
    except SystemExit:  # it has said what it could not translate
        return skipped("not compiled, the modules run interpreted")


def skipped(why: str) -> list[Extension]:
    """Nothing is built: said, or a failure where it must be."""
    if WISH == "must":
        raise SystemExit(why)
    sys.stderr.write(f"{why}\n")
    return []


class Build(build_ext):
    """The loops, then the modules, each all or none: a module without the library that all share cannot be imported."""

    def run(self) -> None:
        """Build, or say why not and go on without."""
        every, compiler = self.extensions, self.compiler
        for manifest in HERE.glob("router/compiled.*.json"):
            manifest.unlink()
        made_loops = self.part([each for each in every if each.name in LOOPS], made_of_loops, "the loops run in Python")
        self.compiler = compiler  # a run leaves its own in place of the name
        others = [each for each in every if each.name not in LOOPS]
        made_modules = self.part(others, made_of_modules, "the modules run interpreted")
        recorded = {
            "modules": hashed(inputs()) if made_modules else {},
            "loops": hashed(inputs_of_loops()) if made_loops else {},
        }
        if made_loops or made_modules:
            write_manifest(HERE if self.inplace else Path(self.build_lib), recorded)

    def part(self, extensions: list[Extension], made: Callable[[], list[Path]], otherwise: str) -> bool:
        """Build these in place of what was ``made`` before; whether they were built."""
        for stale in made():
            stale.unlink()
        self.extensions = extensions
        if not extensions:
            return False
        try:
            if extensions[0].name in LOOPS:
                write_constants()
            super().run()
        except Exception as problem:
            for stale in made():
                stale.unlink()
            if WISH == "must":
                raise
            sys.stderr.write(f"not compiled, {otherwise}: {problem}\n")
            return False
        return True


def beside_sources() -> list[Path]:
    """What was compiled in place."""
    folders = {HERE / "router", *((HERE / name).parent for name in [*modules(), *(n.replace(".", "/") for n in LOOPS)])}
    return [made for folder in folders for suffix in ("so", "pyd") for made in folder.glob(f"*.{suffix}")]


def made_of_loops() -> list[Path]:
    """Of these, the loops."""
    return [made for made in beside_sources() if made.name.partition(".")[0] in {n.rpartition(".")[2] for n in LOOPS}]


def made_of_modules() -> list[Path]:
    """And the modules."""
    return [made for made in beside_sources() if made not in made_of_loops()]


def write_manifest(root: Path, recorded: dict[str, dict[str, str]]) -> None:
    """Record the sources of what was compiled, for router/compiled.py to compare."""
    path = root / f"router/compiled{EXTENSION_SUFFIXES[0]}.json"
    path.write_text(json.dumps(recorded, indent=1), encoding="utf-8")


def hashed(names: list[str]) -> dict[str, str]:
    """The hash of each file's content."""
    return {name: sha256((HERE / name).read_bytes()).hexdigest() for name in names}


def inputs_of_loops() -> list[str]:
    """The C of the loops, and where their constants stand."""
    return [
        SHARED,
        *(f"{name.replace('.', '/')}.c" for name in LOOPS),
        *(f"{n.replace('.', '/')}.py" for n in CONSTANTS_OF),
    ]


def inputs() -> list[str]:
    """The compiled modules and all of ours that they import: their constants and types are compiled in."""
    found: set[str] = set()
    left = modules()
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left.extend(imported(HERE / name))
    return sorted(found)


def imported(source: Path) -> Iterator[str]:
    """The files of ours that a source imports."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{name}" for name in names)]
        for name in names:
            path = name.replace(".", "/")
            if path.partition("/")[0] in PACKAGES:
                yield from (file for file in (f"{path}.py", f"{path}/__init__.py") if (HERE / file).is_file())


setup(ext_modules=[*loops(), *hot_modules()], cmdclass={"build_ext": Build})
