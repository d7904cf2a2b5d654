"""Both command lines: what they import, what they survive, how they end."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from router.search_path import ROOT, environment, module_command
from router.version import VERSION
from tests.commands import command, router_command, simulator_command
from tests.redis_server import RedisServer, free_port, server_binary

CONFIG = """
listen: {{port: {port}}}
backends:
  - {{name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}}
"""
SHOW_IMPORTS = """
import json, sys
from importlib import import_module
module, *sys.argv = sys.argv[1:]
try:
    import_module(module + ".__main__").main()
except SystemExit as ended:
    assert not ended.code, ended.code
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
SERVERS = {"fastapi", "uvicorn", "uvloop", "httpx", "redis", "prometheus_client", "rich", "watchfiles"}
PROCESSES = len(("resource tracker", "fork server", "worker", "worker"))  # of a command with `--jobs 2`
SLOW = SERVERS | {"numpy", "pydantic", "yaml", "asyncio", "orjson"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config whose engine is not there, on a port that is free."""
    path = tmp_path / "router.yaml"
    path.write_text(CONFIG.format(port=free_port()), encoding="utf-8")
    return path


def imported(*words: str) -> set[str]:
    """The packages that a command line imports."""
    command_ = [sys.executable, "-P", "-c", SHOW_IMPORTS, words[0], "headroom", *words[1:]]
    done = subprocess.run(command_, capture_output=True, text=True, check=True, env=environment())
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "words",
    [
        ("router", "--help"),
        ("router", "--version"),
        ("router", "serve", "--help"),
        ("router", "check", "--help"),
        ("simulator", "--help"),
        ("simulator", "replay", "--help"),
    ],
)
def test_help_imports_nothing_slow(words: tuple[str, ...]) -> None:
    """It is there at once."""
    assert not imported(*words) & SLOW


def test_check_imports_no_server(config: Path) -> None:
    """It reads a file and builds a plan, no more."""
    assert not imported("router", "check", str(config)) & SERVERS


def test_an_emulated_engine_imports_no_server() -> None:
    """Three of them start at once with the demo; it has an HTTP server of its own."""
    show = "import sys, simulator.commands.serve; print(*{name.partition('.')[0] for name in sys.modules})"
    command_ = [sys.executable, "-P", "-c", show]
    done = subprocess.run(command_, capture_output=True, text=True, check=True, env=environment())
    assert not set(done.stdout.split()) & (SERVERS | {"pydantic", "yaml"})


def test_the_version_is_that_of_the_project() -> None:
    """And says which build runs."""
    project = tomllib.loads(Path(ROOT, "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION
    assert router_command(["--version"]).stdout.startswith(f"headroom {VERSION} (")


@pytest.mark.parametrize("run", [router_command, simulator_command])
def test_a_wrong_command_line_is_answered_with_what_is_right(run) -> None:
    """In two lines, with status 2."""
    wrong = run(["serv"])
    assert (wrong.exit_code, "did you mean 'serve'?" in wrong.stderr) == (2, True)
    missing = run(["serve"])
    assert (missing.exit_code, "--help` shows the options" in missing.stderr) == (2, True)
    assert len(missing.stderr.splitlines()) == 2


def test_no_command_shows_the_help() -> None:
    """The first thing that is tried."""
    assert router_command([]).stdout == router_command(["--help"]).stdout


@pytest.mark.parametrize("shadow", ["simulator.py", "policies/__init__.py", "random.py", "yaml.py"])
@pytest.mark.parametrize("module", ["router", "simulator"])
def test_files_in_the_working_folder_shadow_nothing(module: str, shadow: str, tmp_path: Path) -> None:
    """Under ``python -m``, which puts that folder first."""
    if shadow.startswith(module):
        pytest.skip("Python finds that one before any line of ours runs")
    _hostile(tmp_path, shadow)
    words = ["replay", "gen:poisson:rate=4,requests=4", "--policy", "round_robin"]
    words = words if module == "simulator" else ["check", str(Path(ROOT, "deploy", "router.yaml"))]
    done = _ran([sys.executable, "-m", module, *words], tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_router_in_the_working_folder_is_not_ours(tmp_path: Path) -> None:
    """The simulator takes ours, and children are started so that they do."""
    _hostile(tmp_path, "router/__init__.py")
    assert _ran([sys.executable, "-m", "simulator", "--help"], tmp_path).returncode == 0
    assert _ran(module_command("router", "--help"), tmp_path).returncode == 0


def _hostile(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise RuntimeError('hostile')\n", encoding="utf-8")


def _ran(words, folder: Path) -> subprocess.CompletedProcess[str]:
    outside = {name: text for name, text in os.environ.items() if name != "PYTHONSAFEPATH"} | {"PYTHONPATH": ROOT}
    return subprocess.run(words, cwd=folder, env=outside, capture_output=True, text=True, check=False)


# ---- signals -----------------------------------------------------------------------


def _handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for this signal yet (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        for child in map(int, task.read_text(encoding="ascii").split()):
            found += [child, *_descendants(child)]
    return found


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _words(name: str, config: Path) -> tuple[str, list[str]]:
    return {
        "serve": ("router", ["serve", "-c", str(config)]),
        "workers": ("router", ["serve", "-c", str(config), "--workers", "2"]),
        "demo": ("router", ["demo", "--port", str(free_port()), "--speed", "20"]),
        "autoscale": ("router", ["autoscale", "-c", str(config)]),
        "engine": ("simulator", ["serve", "--card", "l4", "--port", "0"]),
        "replay": ("simulator", ["replay", "gen:poisson:rate=50,requests=500000"]),
    }[name]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("later_s", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("name", ["serve", "workers", "demo", "autoscale", "engine", "replay"])
async def test_a_signal_ends_a_command_at_any_moment(
    name: str, later_s: float, number: signal.Signals, config: Path
) -> None:
    """From when it takes signals: status 0, of a command with a result the signal's; no traceback, no child left."""
    module, words = _words(name, config)
    async with command(*words, module=module) as process, asyncio.timeout(60):
        while not _handles(process.pid, signal.SIGTERM):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.001)
        await asyncio.sleep(later_s)  # somewhere in the middle of its start; where, the machine decides
        children = _descendants(process.pid)
        process.send_signal(number)
        _, said = await process.communicate()
        assert process.returncode == (-number if name == "replay" else 0), said
        assert b"Traceback" not in said
        assert b"Exception ignored" not in said
        while any(map(_lives, children)):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("words", [("compare", "--seeds", "2"), ("capacity", "--seeds", "2")])
async def test_a_signal_leaves_no_worker_process(words: tuple[str, ...], number: signal.Signals) -> None:
    """Ctrl-C in a terminal reaches workers too, SIGTERM the command alone; neither shows a worker's traceback."""
    line = [*words, "gen:poisson:rate=50,requests=500000", "--jobs", "2"]
    process = await asyncio.create_subprocess_exec(
        *module_command("simulator", *line), stdout=PIPE, stderr=PIPE, env=environment(), start_new_session=True
    )
    try:
        async with asyncio.timeout(120):
            while len(children := _descendants(process.pid)) < PROCESSES:  # noqa: ASYNC110 - others
                await asyncio.sleep(0.01)
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            _, said = await process.communicate()
            assert process.returncode == -number
            assert said.strip() == b""
            while any(map(_lives, children)):  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_sidecar(number: signal.Signals, config: Path) -> None:
    """With status 0 and no traceback, whether or not it has read an engine by then."""
    async with RedisServer() as redis:
        _append(config, f"state: {{redis_url: '{redis.url}'}}\n")
        async with command("sidecar", "--config", str(config)) as process, asyncio.timeout(60):
            while not _handles(process.pid, signal.SIGTERM):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.001)
            process.send_signal(number)
            _, said = await process.communicate()
            assert process.returncode == 0, said
            assert b"Traceback" not in said


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


async def test_a_signal_at_once_ends_a_command(config: Path) -> None:
    """Before Python runs a line of ours the signal itself does."""
    async with command("serve", "-c", str(config)) as process, asyncio.timeout(60):
        process.send_signal(signal.SIGTERM)
        _, said = await process.communicate()
        assert process.returncode in {0, -signal.SIGTERM}
        assert b"Traceback" not in said


# ---- ports -------------------------------------------------------------------------


async def test_the_demo_says_that_its_port_is_taken() -> None:
    """One that was chosen is not replaced by another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with command("demo", "--port", str(port)) as process, asyncio.timeout(60):
            _, said = await process.communicate()
    assert process.returncode == 1
    assert f"port {port} is in use; choose another with --port" in said.decode()
