"""Compiles the hot modules to C extensions (mypyc). Without mypy or a C compiler nothing is missing but speed.

Everything else about the package stands in pyproject.toml, the list of modules (``tool.headroom.compiled``) too.
``HEADROOM_COMPILE``: ``auto`` (default) compiles where it can and says so where it cannot, ``no`` never does,
``must`` fails where it cannot. ``python setup.py build_ext --inplace`` puts the extensions beside their sources.
"""

import ast
import json
import os
import sys
import tomllib
from collections.abc import Iterator
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


def modules() -> list[str]:
    """The files to compile, as pyproject.toml lists them."""
    told = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["headroom"]["compiled"]
    return [str(path.relative_to(HERE)) for pattern in told for path in sorted(HERE.glob(pattern))]


def extensions() -> list[Extension]:
    """One a module, and the library they share; none where that is not wanted, or mypy is not there."""
    if WISH == "no":
        return []
    try:
        from mypyc.build import mypycify  # noqa: PLC0415 - only where something is to be compiled
    except ImportError:
        if WISH == "must":
            raise
        sys.stderr.write("mypy is not installed: nothing is compiled\n")
        return []
    # Checked as strictly as `make check` does it, where numpy can be seen; a build must not fail for want of a stub.
    told = ["--ignore-missing-imports", "--no-warn-unused-ignores", "--no-warn-return-any", *modules()]
    os.chdir(HERE)
    try:
        return mypycify(told, opt_level="3", debug_level="0", group_name=GROUP)
    except SystemExit:  # it has said what it could not translate
        if WISH == "must":
            raise
        sys.stderr.write("not compiled, the modules run interpreted\n")
        return []


class AllOrNone(build_ext):
    """An extension without the library that they share cannot be imported: when one fails, all are left out."""

    def run(self) -> None:
        """Build, or say why not and go on without."""
        self.forget()
        try:
            super().run()
        except Exception as problem:
            self.forget()
            if WISH == "must":
                raise
            sys.stderr.write(f"not compiled, the modules run interpreted: {problem}\n")
            self.extensions: list[Extension] = []
        if self.extensions:
            write_manifest(HERE if self.inplace else Path(self.build_lib))

    def forget(self) -> None:
        """Remove what an earlier build left beside the sources: it would be imported in their place."""
        for stale in (*beside_sources(), *HERE.glob("router/compiled.*.json")):
            stale.unlink()


def beside_sources() -> list[Path]:
    """What was compiled in place."""
    folders = {HERE / "router", *((HERE / name).parent for name in modules())}
    return [made for folder in folders for suffix in ("so", "pyd") for made in folder.glob(f"*.{suffix}")]


def write_manifest(root: Path) -> None:
    """Record the sources of what was compiled, for router/compiled.py to compare."""
    hashes = {name: sha256((HERE / name).read_bytes()).hexdigest() for name in inputs()}
    path = root / f"router/compiled{EXTENSION_SUFFIXES[0]}.json"
    path.write_text(json.dumps({"modules": hashes}, indent=1), encoding="utf-8")


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


setup(ext_modules=extensions(), cmdclass={"build_ext": AllOrNone})
