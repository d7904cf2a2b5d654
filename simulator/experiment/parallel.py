"""Many cases at once, on all cores of this machine or on a Dask cluster."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from importlib import import_module
from os import cpu_count
from typing import Any

from simulator.experiment.case import Case, bounded, figures
from simulator.experiment.worker_processes import worker_processes


def in_parallel(
    cases: Iterable[Case], executor: Executor, done: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    """The figures of every case, in the order of the cases; *done* is called with the number of finished ones."""
    cases = list(cases)
    futures = [executor.submit(figures, case) for case in cases]
    for count, _ in enumerate(as_completed(futures), 1):
        if done is not None:
            done(count)
    return bounded(cases, [future.result() for future in futures])


@contextmanager
def executor_of(text: str, jobs: int) -> Iterator[Executor]:
    """``processes``, or ``dask://HOST:PORT`` for a Dask cluster, whose client must be installed. Raises ValueError."""
    if text == "processes":
        with worker_processes(jobs or cpu_count() or 1) as pool:
            yield pool
    elif text.startswith("dask://"):
        with _dask(text.removeprefix("dask://")) as executor:
            yield executor
    else:
        raise ValueError(f"--executor: expected 'processes' or dask://HOST:PORT, got {text!r}")


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        distributed = import_module("distributed")  # an optional dependency
    except ImportError:
        raise ValueError("--executor dask://...: `pip install distributed` first") from None
    with distributed.Client(f"tcp://{address}", timeout="10s") as client:
        yield client.get_executor()
