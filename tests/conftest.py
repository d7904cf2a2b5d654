"""Compiled modules are what their sources say; with ``HEADROOM_COMPILE=no`` the sources themselves are tested."""

import importlib
import sys
import tomllib
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from os import environ
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("router", "policies", "simulator")


class Sources:
    """Finds the project's modules as sources, whatever was compiled beside them."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """The spec of a module of ours; None, so that others look, for any other."""
        if path is None or name.partition(".")[0] not in PACKAGES:
            return None
        found = (FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name) for folder in path)
        return next(filter(None, found), None)


def stale():
    """The sources that were changed after they were compiled."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["headroom"]["compiled"]
    for source in (path for pattern in told for path in ROOT.glob(pattern)):
        for made in source.parent.glob(f"{source.stem}.*.so"):
            if made.stat().st_mtime < source.stat().st_mtime:
                yield source.relative_to(ROOT)


def pytest_configure(config):
    """Before anything of ours is imported."""
    if environ.get("HEADROOM_COMPILE") == "no":
        sys.meta_path.insert(0, Sources)
    elif changed := ", ".join(map(str, stale())):
        pytest.exit(f"compiled before it was changed: {changed}; `make env` compiles anew", returncode=2)
    compiling = importlib.import_module("router.core.compiling")
    compiling.checked = config.getoption("markexpr") != "benchmark"  # figures are of loops as they serve
