"""This gateway beside the compiled ones, and two thousand streams at once on one worker. `make bench` prints them.

Longer, or beside some alone: `python -m tests.bench.side_by_side --rounds 5 --beside haproxy`.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.bench import side_by_side
from tests.redis_server import free_port

pytestmark = pytest.mark.benchmark

STREAMS = 2_000
TOKENS, GAP_MS = 60, 100
KIB_A_STREAM_MAX = 30.0


@pytest.fixture(autouse=True)
def _tools() -> None:
    try:
        side_by_side.tools()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


def test_what_a_token_and_a_request_cost_beside_the_compiled_gateways(tmp_path: Path) -> None:
    """All of it on: config, cards, slo_headroom, metrics. One interleaved round; every request is answered."""
    contenders = side_by_side.line_up(tmp_path, side_by_side.loads(side_by_side.tools()))
    figures = side_by_side.measured(contenders, 1)
    print(f"\n{side_by_side.table(figures)}")
    for kind, told in figures.items():
        assert told["headroom"]["errors"] == 0, kind


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


def _most_kib(pid: int, load: "subprocess.Popen[str]") -> Iterator[int]:
    while load.poll() is None:
        yield _resident_kib(pid)
        sleep(0.2)


def test_two_thousand_streams_at_once_on_one_worker(tmp_path: Path) -> None:
    """All complete, none is starved, and each costs less than 30 KB of resident memory."""
    side_by_side.compiled(tmp_path)
    ports = (free_port(), free_port())
    gateway = side_by_side.headroom(tmp_path, {"streams": (ports,)})
    port, script = gateway.port["streams"], ("20", str(GAP_MS), str(TOKENS))
    with side_by_side.engines(tmp_path / "engine", ports, script):
        command = gateway.command.format(a=ports[0], b=ports[1]).split()[1:]
        running = subprocess.Popen(command, cwd=side_by_side.ROOT, stderr=subprocess.DEVNULL)
        try:
            load = [tmp_path / "load", str(port)]
            until_s = monotonic() + 60
            while subprocess.run([*load, "50", "50", "500"], capture_output=True, check=False).returncode:
                assert monotonic() < until_s
                sleep(0.5)
            before = _resident_kib(running.pid)
            told = subprocess.Popen(
                [*load, str(STREAMS), str(STREAMS), "500", str(TOKENS + 1)], text=True, stdout=subprocess.PIPE
            )
            each = (max(_most_kib(running.pid, told)) - before) / STREAMS
            said = dict(part.split("=") for part in told.communicate()[0].split())
        finally:
            running.kill()
            running.wait()
    nominal_ms = 20 + (TOKENS - 1) * GAP_MS
    print(
        f"\n{said['done']} of {STREAMS} streams, {each:.1f} KiB each; all over after p50 {said['e2e_ms_p50']} and p99"
        f" {said['e2e_ms_p99']} ms, {nominal_ms} at the engine; first token p50 {said['ttft_ms_p50']} ms"
    )
    assert int(said["done"]) == STREAMS
    assert each < KIB_A_STREAM_MAX
    assert float(said["e2e_ms_p99"]) < 1.5 * nominal_ms
