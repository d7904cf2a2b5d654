"""What the gateway measures, engine by engine and endpoint by endpoint, held to what others see of the same streams.

Prints the matrix at the end of the run (`make real`). A cell is ok, off, with both numbers, or skipped with a reason.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from deploy.local import catalog, processes
from tests.real.conftest import MATRIX, Serve
from tests.real.matrix.bench import Bench
from tests.real.matrix.checks import CHECKS, fill
from tests.real.matrix.engines import ABSENT, ALL
from tests.real.matrix.frames import Dialect
from tests.real.matrix.relay import Relay
from tests.real.matrix.table import Matrix, skipped
from tests.real.matrix.under_test import EngineUnderTest

SCRAPE = {"period_s": 0.2, "timeout_s": 2.0, "models_s": 0.5}
ROWS = [(engine, dialect) for engine in ALL for dialect in engine.endpoints]


class Stage:
    """At most one engine at a time: a machine of two cores runs no more without that they disturb each other."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._failed: dict[str, str] = {}
        self._on: EngineUnderTest | None = None
        self._running: list[processes.Running] = []
        self._ends = ExitStack()

    @contextmanager
    def also(self, *parts: catalog.Engine) -> Iterator[None]:
        """These too, for as long as the block runs."""
        with ExitStack() as ends:
            for part in parts:
                _start(part, self.home, ends)
            yield

    def start(self, engine: EngineUnderTest) -> None:
        """Have this one run, and no other; as new where one of its processes has ended."""
        if reason := self._failed.get(engine.name):
            pytest.fail(reason)  # a start that failed takes minutes: once is enough
        whole = all(running.alive and processes.answers(running.engine) for running in self._running)
        if self._on is not None and engine.parts == self._on.parts and whole:
            return
        self.clear()
        try:
            if engine.prepare:
                engine.prepare(self.home)
            for part in engine.parts:
                self._running.append(_start(part, self.home, self._ends))
        except catalog.EngineError as error:
            self._failed[engine.name] = str(error)
            raise
        self._on = engine

    def kill(self, word: str) -> None:
        """Kill those of the engine's processes that have *word* in their command."""
        for running in self._running:
            for pid in [running.process.pid, *processes.descendants(running.process.pid)]:
                with suppress(OSError):
                    if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)

    def clear(self) -> None:
        """End what runs."""
        self._on = None
        self._running = []
        self._ends.close()


def _start(part: catalog.Engine, home: Path, ends: ExitStack) -> processes.Running:
    running = processes.start(part, home)
    ends.callback(running.stop)
    processes.wait_ready([running])
    return running


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Where engines run, from HEADROOM_ENGINES; those that need no installation also without it."""
    try:
        home = catalog.home_folder()
    except catalog.EngineError:
        home = tmp_path_factory.mktemp("engines")
    stage = Stage(home)
    try:
        yield stage
    finally:
        stage.clear()


@pytest.mark.parametrize(("engine", "dialect"), ROWS, ids=[f"{engine.name}-{it.path}" for engine, it in ROWS])
async def test_what_the_gateway_measures_is_what_others_see(
    pytestconfig: pytest.Config, stage: Stage, serve: Serve, engine: EngineUnderTest, dialect: Dialect
) -> None:
    """No cell of the row is off."""
    matrix: Matrix = pytestconfig.stash[MATRIX]
    matrix.absent.update(ABSENT)
    row = matrix.rows.setdefault((engine.name, dialect.path), {})
    if reason := engine.missing(stage.home):
        row.update(dict.fromkeys(CHECKS, skipped(reason)))
        pytest.skip(reason)
    stage.start(engine)
    async with (
        httpx.AsyncClient(timeout=60.0, verify=False) as client,
        Relay(engine.port) as relay,
        serve(engine.config(relay.url), scrape=SCRAPE) as gateway,
    ):
        before = [] if engine.front is None else [engine.front(gateway.port)]
        bench = Bench(engine, dialect, gateway, relay, client, stage)
        with stage.also(*before):
            await (bench.load_adapter() if engine.adapter else bench.routable(engine.model))
            row.update(await fill(bench))
    off = {column: cell.note for column, cell in row.items() if cell.off}
    assert not off
