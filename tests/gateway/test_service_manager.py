"""What a router reports to the service manager that started it, over a real socket."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.gateway.service_manager import ServiceManager
from router.search_path import environment, module_command
from tests.redis_server import free_port

CONFIG = """
listen: {{port: {port}}}
backends:
  - {{name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}}
"""


class Manager:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(120)
        self._socket.bind(address)

    async def until(self, first: str) -> dict[str, str]:
        """The next state that has this variable; alive and further texts are skipped."""
        while True:
            datagram = await asyncio.to_thread(self._socket.recv, 4096)
            state = dict(line.split("=", 1) for line in datagram.decode().splitlines())
            if first in state:
                return state
            assert set(state) in ({"WATCHDOG"}, {"STATUS"}), state

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[Manager, str]]:
    address = str(tmp_path / "notify")
    made = Manager(address)
    yield made, address
    made.close()


def test_without_a_manager_nothing_is_reported() -> None:
    """And the variables are gone, so that no child reports in this process's place."""
    given = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1", "PATH": "/bin"}
    none = ServiceManager(given)
    none.ready("serves")
    assert not none
    assert none.watchdog_s == 0.0  # it is of another process
    assert given == {"PATH": "/bin"}


@pytest.mark.parametrize("abstract", [False, True])
async def test_a_state_is_one_datagram(tmp_path: Path, abstract: bool) -> None:
    """To a path, or to an abstract address."""
    name = f"headroom-test-{os.getpid()}"
    manager = Manager(f"\0{name}" if abstract else str(tmp_path / name))
    address = f"@{name}" if abstract else str(tmp_path / name)
    sender = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
    assert sender.watchdog_s == 3.0
    sender.ready("two\nlines")
    assert await manager.until("READY") == {"READY": "1", "STATUS": "two lines"}
    sender.reloading()
    assert (await manager.until("RELOADING"))["MONOTONIC_USEC"].isdecimal()
    manager.close()
    sender.ready("the manager is gone")


async def test_a_changed_status_is_shown_without_a_signal(manager: tuple[Manager, str]) -> None:
    """A config that is taken or refused because its file changed is no reload of the manager's."""
    states, address = manager
    sender, status = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000"}), ["serves config 1"]
    async with sender.watching(lambda: True, lambda: False, lambda: status[0]):
        assert await states.until("READY") == {"READY": "1", "STATUS": "serves config 1"}
        status[0] += "; a changed one is refused"
        assert await states.until("STATUS") == {"STATUS": "serves config 1; a changed one is refused"}
    assert (await states.until("STOPPING"))["STOPPING"] == "1"


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_router_reports_its_start_its_reloads_and_its_end(
    manager: tuple[Manager, str], tmp_path: Path, workers: int
) -> None:
    """Ready when clients can connect, alive in between; with workers, of the parent alone."""
    states, address = manager
    path, port = tmp_path / "r.yaml", free_port()
    path.write_text(CONFIG.format(port=port), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *module_command("router", "serve", "-c", str(path), "--workers", str(workers)),
        env=environment() | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "900000"},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        ready = await states.until("READY")
        assert ready["STATUS"].startswith("serves")
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=10)):
            pass
        await states.until("WATCHDOG")
        if workers == 1:
            path.write_text(CONFIG.format(port=port) + "polcy: {}\n", encoding="utf-8")
            process.send_signal(signal.SIGHUP)
            await states.until("RELOADING")
            refused = await states.until("READY")
            assert "a changed one is refused" in refused["STATUS"]
            assert "did you mean 'policy'?" in refused["STATUS"]
        process.send_signal(signal.SIGTERM)
        await states.until("STOPPING")
        assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
