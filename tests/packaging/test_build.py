"""A build compiles what has changed and nothing else; one that cannot compile fails."""

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from router.compiled import ROOT

LOOPS = ("router/core/_hashing", "router/core/_kernels")


@pytest.fixture
def project(tmp_path):
    """A copy of the sources, without what was compiled of them."""
    for folder in ("router", "policies", "simulator"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "*.json", "__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build(project, **environment):
    """What a build of the loops returns and prints."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = os.environ | {"HEADROOM_COMPILE": "loops"} | environment
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def built(project):
    """When each of two loops was linked."""
    suffix = EXTENSION_SUFFIXES[0]
    folder = next((project / "build").glob("lib.*"))
    return [(folder / f"{name}{suffix}").stat().st_mtime_ns for name in LOOPS]


def test_what_has_not_changed_is_kept_whatever_its_time(project):
    """The content decides."""
    assert build(project).returncode == 0
    hashing, kernels = built(project)
    for name in LOOPS:
        os.utime(project / f"{name}.c")
    with (project / f"{LOOPS[0]}.c").open("a") as source:
        source.write("/* a change */\n")
    assert build(project).returncode == 0
    assert built(project)[0] != hashing
    assert built(project)[1] == kernels

    # A constant of the Python loops stands in the header of all of them.
    before = built(project)
    with (project / "router/core/hashing.py").open("a") as source:
        source.write("\n_ONE_MORE = 7\n")
    assert build(project).returncode == 0
    assert not set(built(project)) & set(before)


def test_a_build_that_cannot_compile_fails_and_says_why(project):
    """It leaves no extension that would be loaded."""
    failed = build(project, CC="no-such-compiler")
    assert failed.returncode != 0
    assert "no-such-compiler" in failed.stderr
    assert not [*(project / "router").rglob(f"*{EXTENSION_SUFFIXES[0]}")]
