"""A sweep on a real Dask cluster: a scheduler and a worker of their own, on this machine."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.redis_server import free_port

SWEEP = ("gen:poisson:rate=5,requests=200", "--policy", "round_robin", "--policy", "slo_headroom", "--seeds", "2")


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """The address of a scheduler with one worker."""
    if find_spec("distributed") is None:
        pytest.skip("Dask is not installed: pip install distributed")
    address = f"127.0.0.1:{free_port()}"
    common = ("--host", "127.0.0.1", "--no-dashboard")
    parts = (
        ("scheduler", "--port", address.rpartition(":")[2], *common),
        ("worker", f"tcp://{address}", "--nworkers", "1", "--nthreads", "1", *common),
    )
    running = [
        subprocess.Popen([sys.executable, "-m", "dask", *part], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for part in parts
    ]
    try:
        yield address
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def _compared(folder: Path, *more: str) -> object:
    out = folder / "out.json"
    command = [sys.executable, "-m", "simulator", "compare", *SWEEP, "--json", str(out), *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [(row["policy"], row["intervals"]) for row in json.loads(out.read_text())]


def test_a_cluster_finds_what_this_machine_finds(tmp_path: Path) -> None:
    """The same cases, the same figures."""
    with cluster() as address:
        assert _compared(tmp_path, "--executor", f"dask://{address}") == _compared(tmp_path)
