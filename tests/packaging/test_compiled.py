"""Compiled modules run while they fit their sources, and no longer."""

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from router import compiled

MODULE = "router/core/hashing.py"
SHOW = "from router import compiled; import router.core.hashing as it; print(compiled.state(), it.__file__)"
REFUSE = "from router import compiled; compiled.refuse_stale(); print('started')"


@pytest.fixture
def project(tmp_path):
    """A project of one module, and a compiled file beside it that no Python could load."""
    for name in ("router/__init__.py", "router/compiled.py", "router/search_path.py"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(Path(compiled.ROOT, name), target)
    source = tmp_path / MODULE
    source.parent.mkdir()
    source.write_text("WORD = 1\n")
    (source.parent / "__init__.py").touch()
    source.with_suffix(EXTENSION_SUFFIXES[0]).touch()
    return tmp_path


def record(project, **parts):
    """A manifest, as a build leaves it: files by part, as they are now."""
    hashes = {part: {name: sha256((project / name).read_bytes()).hexdigest()} for part, name in parts.items()}
    (project / compiled.MANIFEST).write_text(json.dumps(hashes))


def run(project, code, wish=None):
    """What a fresh process prints, on either stream."""
    environment = {key: value for key, value in os.environ.items() if key != "HEADROOM_COMPILE"}
    environment |= {"HEADROOM_COMPILE": wish} if wish else {}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_without_a_manifest_the_sources_run(project):
    """A compiled file that no build vouches for is not loaded."""
    assert run(project, SHOW) == f"interpreted {project / MODULE}\n"


def test_what_fits_its_sources_runs(project):
    """The compiled file is taken: here it cannot be loaded, and says so."""
    record(project, modules=MODULE)
    assert "ImportError" in run(project, SHOW)
    assert run(project, REFUSE) == "started\n"


def test_no_runs_the_sources_whatever_was_compiled(project):
    """``HEADROOM_COMPILE=no`` wins over compiled files that fit, and over stale ones."""
    record(project, modules=MODULE)
    assert run(project, SHOW, "no") == f"interpreted {project / MODULE}\n"
    (project / MODULE).write_text("WORD = 2\n")
    assert run(project, REFUSE, "no") == "started\n"


def test_a_changed_source_is_refused_at_start(project):
    """The message names the file and what to do; code that imports the package all the same gets the sources."""
    record(project, modules=MODULE)
    (project / MODULE).write_text("WORD = 2\n")
    assert run(project, SHOW) == f"stale {project / MODULE}\n"
    refused = run(project, REFUSE)
    assert MODULE in refused
    assert "make fast" in refused
    assert "started" not in refused


def test_the_time_of_a_source_does_not_matter(project):
    """A checkout of git sets every time anew, and changes nothing."""
    record(project, modules=MODULE)
    os.utime(project / MODULE)
    assert run(project, REFUSE) == "started\n"


def test_a_source_that_is_gone_is_a_change(project):
    """Its compiled file would be imported still."""
    record(project, modules=MODULE)
    (project / MODULE).unlink()
    assert MODULE in run(project, REFUSE)


def test_loops_of_an_older_source_are_not_used(project):
    """The loops are C with a manifest of their own; the Python loops serve instead, and the start is refused."""
    loops = project / "router/core/_loops.c"
    loops.write_text("/* 1 */")
    loops.with_suffix(EXTENSION_SUFFIXES[0]).touch()
    record(project, loops="router/core/_loops.c")
    assert "ModuleNotFoundError" not in run(project, "import router.core._loops")
    loops.write_text("/* 2 */")
    assert "ModuleNotFoundError" in run(project, "import router.core._loops")
    refused = run(project, REFUSE)
    assert "_loops.c" in refused
    assert "make env" in refused
    loops.unlink()  # as where a wheel was installed
    assert run(project, REFUSE) == "started\n"


def test_a_docstring_of_the_python_loops_may_change_and_their_code_may_not(project):
    """What is compared then is the code, as the build recorded it."""
    source = project / MODULE
    source.write_text('"""Before."""\nWORD = 1  # before\n')
    hashes = {"loops": {MODULE: compiled.digest(source)}, "code": {MODULE: compiled.code_digest(source)}}
    (project / compiled.MANIFEST).write_text(json.dumps(hashes))
    source.write_text('"""After."""\n\nWORD = 1\n')
    assert run(project, REFUSE) == "started\n"
    source.write_text('"""After."""\n\nWORD = 2\n')
    assert MODULE in run(project, REFUSE)
    source.write_text("WORD =\n")
    assert MODULE in run(project, REFUSE)
