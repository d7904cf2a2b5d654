"""The wheel as a user has it: installed in a bare environment, run from an empty folder, without a compiler."""

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from router.demo import free_port

pytestmark = pytest.mark.wheel
DIST = Path(__file__).parents[2] / "dist"
CHAT = b'{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
SIZE_MAX = 250e6


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    """A fresh environment with the one wheel of ``make wheel``."""
    (wheel,) = DIST.glob("*.whl")
    folder = tmp_path_factory.mktemp("wheel") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    uv = shutil.which("uv") or shutil.which(DIST.parent / ".venv/uv/bin/uv")
    if not uv:
        subprocess.run([python, "-m", "ensurepip"], check=True, capture_output=True)
    install = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install", "--no-compile"]
    subprocess.run([*install, wheel], check=True, capture_output=True)
    return folder


@pytest.fixture
def bare(venv, tmp_path):
    """What a process needs to run there: its working folder, and an environment that finds no compiler."""
    return {"cwd": tmp_path, "env": {"PATH": str(venv / "bin"), "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}}


def output(venv, bare, command, *arguments):
    """What a command prints; its exit status must be 0."""
    done = subprocess.run(
        [venv / "bin" / command, *arguments], **bare, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_was_installed_is_compiled(venv, bare):
    """The modules and the loops, for any Linux of this processor: the tag says so."""
    (wheel,) = DIST.glob("*.whl")
    assert "manylinux" in wheel.name
    show = "from router import compiled; import router.core.dispatcher as it; print(compiled.state(), it.__file__)"
    state, path = output(venv, bare, "python", "-c", show).split()
    assert state == "compiled"
    assert path.endswith(".so")


@pytest.mark.parametrize("command", ["headroom", "headroom-simulator"])
def test_commands_are_there(venv, bare, command):
    """Both have help."""
    assert "usage:" in output(venv, bare, command, "--help")


def test_a_replay_runs(venv, bare):
    """A trace that is made on the spot, under the default policies."""
    assert "slo_headroom" in output(venv, bare, "headroom-simulator", "replay", "gen:poisson:rate=8,requests=200")


@contextmanager
def running(command, **bare):
    """A process that is ended whatever happens."""
    process = subprocess.Popen(command, **bare, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_demo_streams_a_token_and_ends_on_sigterm(venv, bare):
    """From start to the first token of the curl line that it prints, then to an orderly end."""
    with running([venv / "bin/headroom", "demo", "--port", str(free_port())], **bare) as demo:
        url = next(filter(None, (re.search(r"http://\S+/v1/chat/completions", line) for line in demo.stdout)))
        request = urllib.request.Request(url.group(), CHAT, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert reply.readline().startswith(b"data: {")
        demo.send_signal(signal.SIGTERM)
        demo.stdout.read()
        assert demo.wait(60) == 0


def test_it_is_small(venv):
    """All that is installed, without what Python compiles of it at the first start."""
    files = [Path(folder, name) for folder, _, names in os.walk(venv / "lib") for name in names if ".pyc" not in name]
    assert sum(path.lstat().st_size for path in files) <= SIZE_MAX
