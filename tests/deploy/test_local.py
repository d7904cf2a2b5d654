"""Starting and ending engines, with small programs of Python's own in the engines' place."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from deploy.local import catalog, processes
from deploy.local.catalog import Engine, EngineError

SERVER = """
import http.server, signal, subprocess, sys
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience with what does not end."""
    monkeypatch.setattr(processes, "STOP_S", 0.2)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> dict[str, Engine]:
    """The engines that `up` knows, to be filled by the test."""
    engines: dict[str, Engine] = {}
    monkeypatch.setattr(processes, "ENGINES", engines)
    return engines


def program(port: int, *arguments: str, code: str = SERVER, needs: tuple[str, ...] = ()) -> Engine:
    """An engine that is a Python program with a child."""
    command = [sys.executable, "-c", code, str(port), *arguments]
    return Engine("fake", "", (port,), needs, lambda home: command, ready_path="/", serving_root=True)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that only waits to be buried has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_names_and_groups_are_written_out_once_each() -> None:
    """`vllm` stands for both servers; no name stands for all."""
    assert catalog.expand(["redis", "vllm", "vllm-s"]) == ["redis", "vllm-s", "vllm-l"]
    assert catalog.expand([]) == list(catalog.ENGINES)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """The message names what was wrong and what there is."""
    with pytest.raises(EngineError, match=r"no engine 'tritn'; there are .*triton"):
        catalog.expand(["tritn"])


def test_the_folder_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed into a place that nobody chose."""
    monkeypatch.delenv("HEADROOM_ENGINES", raising=False)
    with pytest.raises(EngineError, match="HEADROOM_ENGINES"):
        catalog.home_folder()


def test_what_is_not_installed_is_said(tmp_path: Path) -> None:
    """By path below the folder, or as a program that is not on PATH."""
    engine = program(1, needs=("vllm/bin/python", "no-such-program", "sh"))
    assert engine.missing(tmp_path) == (
        f"fake is not installed: no vllm/bin/python, no no-such-program in {tmp_path} or on PATH"
    )
    with pytest.raises(EngineError, match="not installed"):
        processes.start(engine, tmp_path)


@pytest.mark.parametrize("how", ["polite", "stubborn"])
@pytest.mark.usefixtures("quick")
def test_an_engine_ends_with_all_its_processes(tmp_path: Path, port: int, named: dict[str, Engine], how: str) -> None:
    """Also one that does not listen to SIGTERM, and what it has started."""
    named["fake"] = program(port, how)
    with processes.up(["fake"], tmp_path) as (running,):
        everyone = [running.process.pid, *processes.descendants(running.process.pid)]
        assert len(everyone) == 2
        assert running.alive
    deadline_s = time.monotonic() + 120  # a killed process of a killed process is buried by init, when it gets to it
    while not all(map(gone, everyone)) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert all(map(gone, everyone))
    assert not processes.listens(port)


def test_what_computes_is_kept_apart_from_what_serves(tmp_path: Path, port: int, named: dict[str, Engine]) -> None:
    """The first process on the lower cores, its children on the upper ones."""
    named["fake"] = program(port)
    with processes.up(["fake"], tmp_path) as (running,):
        (child,) = processes.descendants(running.process.pid)
        assert os.sched_getaffinity(running.process.pid) == set(processes.RIM_CPUS)
        assert os.sched_getaffinity(child) == set(processes.ENGINE_CPUS)


def test_what_answers_already_is_taken_as_it_is(tmp_path: Path, port: int, named: dict[str, Engine]) -> None:
    """`there` starts what is missing, and ends only that."""
    named["fake"] = program(port)
    with processes.there(["fake"], tmp_path) as started:
        assert len(started) == 1
        with processes.there(["fake"], tmp_path) as again:
            assert again == []
        assert processes.listens(port)


def test_an_engine_has_a_group_of_its_own_in_our_session(tmp_path: Path, port: int) -> None:
    """The group is what is ended; a session would have a share of the core for itself (autogroup)."""
    running = processes.start(program(port), tmp_path)
    try:
        pid = running.process.pid
        assert (os.getpgid(pid), os.getsid(pid)) == (pid, os.getsid(0))
    finally:
        running.stop()


def test_an_engine_that_dies_shows_the_end_of_its_log(tmp_path: Path, port: int) -> None:
    """The reason is in the message, not in a file to be looked for."""
    engine = program(port, code="raise SystemExit('no such model')")
    running = processes.start(engine, tmp_path)
    with pytest.raises(EngineError, match=r"(?s)fake ended with status 1.*no such model"):
        processes.wait_ready([running])


def test_an_engine_that_never_answers_is_given_up(tmp_path: Path, port: int) -> None:
    """After the time it was given."""
    running = processes.start(program(port, code="import signal; signal.pause()"), tmp_path)
    try:
        with pytest.raises(EngineError, match="did not answer within 0 s"):
            processes.wait_ready([running], timeout_s=0.05)
    finally:
        running.stop()


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    """Before anything starts: else another server's answer would count as the engine's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"port {port} is taken"):
            processes.start(program(port), tmp_path)


def test_when_one_cannot_start_the_others_end(tmp_path: Path, port: int, named: dict[str, Engine]) -> None:
    """`up` leaves nothing behind."""
    named |= {"fake": program(port), "broken": program(port + 1, needs=("nothing",))}
    with pytest.raises(EngineError, match="not installed"), processes.up(["fake", "broken"], tmp_path):
        pytest.fail("it started")
    assert not processes.listens(port)


@pytest.mark.parametrize(
    ("flags", "wanted"), [("fpu avx512f avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("fpu avx512f", "float32")]
)
def test_vllm_computes_in_what_the_cores_have_instructions_for(tmp_path: Path, flags: str, wanted: str) -> None:
    """Emulated bfloat16 makes a prompt take three times as long."""
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    assert catalog.dtype(str(tmp_path / "cpuinfo")) == wanted
    assert catalog.dtype(str(tmp_path / "absent")) == "bfloat16"
