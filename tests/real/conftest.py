"""Fixtures: engines that live as long as the test run, and a gateway for each test that wants one.

A test that needs an engine that is not installed is skipped with the reason.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from deploy.local import catalog, processes
from tests.real.matrix.table import Matrix
from tests.real.world import Engines, Gateway, serving

MATRIX = pytest.StashKey[Matrix]()
Serve = Callable[..., AbstractAsyncContextManager[Gateway]]


def pytest_configure(config: pytest.Config) -> None:
    """An empty matrix; test_wire_matrix.py fills it."""
    config.stash[MATRIX] = Matrix()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print it at the end."""
    if lines := config.stash[MATRIX].lines():
        terminalreporter.section("what the gateway measures against what others see")
        terminalreporter.write_line("\n".join(lines))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is marked real."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    """The engines of this run. The tests keep to the cores that are not the engines'."""
    try:
        home = catalog.home_folder()
    except catalog.EngineError as error:
        pytest.skip(str(error))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processes.RIM_CPUS)
    running = Engines(home)
    try:
        yield running
    finally:
        running.stop(*tuple(running.running))
        os.sched_setaffinity(0, before)


@pytest.fixture
def have(engines: Engines) -> Callable[..., Engines]:
    """`have("vllm-s", "redis")`: those engines ready, or the test skipped with what is not installed."""

    def ready(*names: str) -> Engines:
        missing = [reason for name in names if (reason := catalog.ENGINES[name].missing(engines.home))]
        if missing:
            pytest.skip("; ".join(missing))
        engines.ensure(*names)
        return engines

    return ready


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(backend(...), policy=...) as gateway:` runs a gateway with that config."""
    return partial(serving, tmp_path)
