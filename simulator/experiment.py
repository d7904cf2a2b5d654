"""One case of an experiment: a workload, a pool, a policy, a seed; and many of them on all cores.

A case is plain data and can be sent to another process or machine. Must not know: how results are shown.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from math import inf, sqrt
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from time import process_time
from typing import Any, Final

import policies
from router import loading
from router.core import Admission, Routing
from simulator.bounds.clairvoyant import PORTFOLIO, Clairvoyant, Strategy
from simulator.bounds.gpu_seconds import gpu_seconds_least
from simulator.pool import BUILT_IN, Pool, load_pool
from simulator.report.summary import summarise
from simulator.run.play import Played, Progress, Stop, play
from simulator.traces import TraceEntry, read_trace
from simulator.workload.arrivals import Arrival, Shaping, Workload, distinct, parse_seconds, parse_slo, shape
from simulator.workload.generators import PREFIX, generate, parse_recipe

CLAIRVOYANT: Final = "clairvoyant"
"""The name under which the bound stands beside the policies."""
_STRATEGY: Final = f"{CLAIRVOYANT}:strategy="


@dataclass(frozen=True, slots=True)
class Source:
    """Where requests come from: trace files or one generator, and what is made of them."""

    traces: tuple[str, ...]
    rate: float = 1.0
    from_s: float = 0.0
    to_s: float = inf
    limit: int | None = None
    skip_bad: bool = False

    def arrivals(self, pool: Pool, seed: int) -> Sequence[Arrival] | Workload:
        """A fresh workload; BadLine, ValueError or OSError when there can be none."""
        how = Shaping(pool.default_model, pool.classes, self.rate, self.from_s, self.to_s, self.limit)
        if any(name.startswith(PREFIX) for name in self.traces):
            return self._generated(how, seed)
        return _shaped(self, how, seed)

    def _generated(self, how: Shaping, seed: int) -> Sequence[Arrival] | Workload:
        if len(self.traces) > 1:
            raise ValueError("a generator goes alone, without further traces")
        recipe = parse_recipe(self.traces[0])
        if self.limit is not None:
            recipe = replace(recipe, requests=min(recipe.requests, self.limit))
        return generate(recipe, how, seed)

    def entries(self) -> list[TraceEntry]:
        """All lines of all traces in order of time."""
        limit = self.limit if len(self.traces) == 1 and self.to_s == inf and not self.from_s else None
        read = [_read(name, self.skip_bad, limit) for name in self.traces]
        return sorted((entry for part, _, _ in read for entry in part), key=lambda entry: entry.arrived_s)

    def skipped(self) -> list[str]:
        """What was left out of each trace, in words."""
        files = [name for name in self.traces if not name.startswith(PREFIX)]
        told = [(name, *_read(name, self.skip_bad, self.limit if len(files) == 1 else None)) for name in files]
        return [f"{name}: skipped {count} bad lines, the first: {first}" for name, _, count, first in told if count]


@lru_cache(maxsize=1)
def _shaped(source: Source, how: Shaping, seed: int) -> Sequence[Arrival]:
    """A trace as requests, kept: every policy of a comparison is asked the same."""
    arrivals = distinct(shape(source.entries(), how, seed))
    if not arrivals:
        raise ValueError("--window: no requests in it")
    return arrivals


@lru_cache(maxsize=8)
def _read(name: str, skip_bad: bool, limit: int | None) -> tuple[list[TraceEntry], int, str]:
    reading = read_trace(Path(name), skip_bad=skip_bad, limit=limit)
    if not reading.entries:
        raise ValueError(f"{name}: no requests in this {reading.format} trace")
    return reading.entries, reading.skipped, reading.first_skipped


@dataclass(frozen=True, slots=True)
class Case:
    """One run to be made. ``policy`` and ``admission`` as they were typed; ``policy`` may be the clairvoyant bound."""

    source: Source
    pool: Pool
    policy: str
    admission: str = "deadline"
    seed: int = 0

    def same_world(self, other: "Case") -> bool:
        """Whether both play the same workload on the same pool."""
        return self.source == other.source and self.pool == other.pool

    def play(
        self,
        progress: Progress | None = None,
        sample_s: float = 0.0,
        stop: Stop | None = None,
        *,
        enough: float = 1.0,
    ) -> Played:
        """Make it; *stop*: see ``run.play``. The bound's is the best of several runs, of which no further one is made
        once one attains *enough*.
        """
        strategies = strategies_of(self.policy)
        if not strategies:
            return self._played(routing_of(self.policy), progress, sample_s, stop)
        best: Played | None = None
        for strategy in strategies:
            played = self._played(strategy, progress, sample_s, stop)
            if best is None or _kept(played) > _kept(best):
                best = played
            if _kept(played) and _kept(played) >= enough * len(played.books):
                break
        assert best is not None
        return best

    def _played(
        self, routing: Routing | Strategy, progress: Progress | None, sample_s: float, stop: Stop | None
    ) -> Played:
        arrivals = self.source.arrivals(self.pool, self.seed)
        strategy = routing if isinstance(routing, Strategy) else None
        gc.freeze()  # they live as long as the run does: not to be looked through again and again
        try:
            played = play(
                arrivals,
                self.pool,
                routing_of("round_robin") if isinstance(routing, Strategy) else routing,
                admission_of(self.admission),
                self.seed,
                progress,
                sample_s=sample_s,
                clairvoyant=partial(Clairvoyant, strategy=strategy) if strategy is not None else None,
                stop=stop,
            )
        finally:
            gc.unfreeze()
        return replace(played, strategy=_STRATEGY + strategy.name) if strategy is not None else played


def _kept(played: Played) -> int:
    return int(played.books.met().sum())


def figures(case: Case) -> dict[str, Any]:
    """Make the run and sum it up: what a worker sends back."""
    began_s = process_time()
    return told(case, case.play(), began_s)


def told(case: Case, played: Played, began_s: float) -> dict[str, Any]:
    """The figures of a run that is over, with its cost in CPU since *began_s*."""
    strategy = {"strategy": played.strategy} if played.strategy else {}
    return {
        **summarise(played),
        **strategy,
        "gpu_seconds_least": gpu_seconds_least(played),
        "cpu_s": process_time() - began_s,
    }


def bounded(cases: Sequence[Case], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The *results* of *cases*, where each of the bound is that of the best run of the same workload, pool and seed:
    what a policy attained can be attained. ``strategy`` names the policy then.
    """
    return [
        _best_beside(case, result, cases, results) if case.policy == CLAIRVOYANT else result
        for case, result in zip(cases, results, strict=True)
    ]


def _best_beside(
    bound: Case, result: dict[str, Any], cases: Sequence[Case], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    best = result
    for case, other in zip(cases, results, strict=True):
        same = case.same_world(bound) and case.seed == bound.seed
        if same and (other["attainment"] or 0.0) > (best["attainment"] or 0.0):
            best = {**other, "strategy": case.policy}
    return best


# ---- many of them --------------------------------------------------------------


def in_parallel(
    cases: Iterable[Case], executor: Executor, done: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    """Every case's figures, in the order of the cases; those of the bound as ``bounded`` has them."""
    cases = list(cases)
    futures = [executor.submit(figures, case) for case in cases]
    for count, _ in enumerate(as_completed(futures), 1):
        if done is not None:
            done(count)
    return bounded(cases, [future.result() for future in futures])


@contextmanager
def executor_of(text: str, jobs: int) -> Iterator[Executor]:
    """``processes``, or ``dask://HOST:PORT`` for a Dask cluster (its client has to be installed)."""
    if text == "processes":
        # Workers look for garbage as seldom as this process does.
        with ProcessPoolExecutor(
            jobs or cpu_count() or 1, get_context("forkserver"), gc.set_threshold, gc.get_threshold()
        ) as pool:
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


# ---- several seeds ---------------------------------------------------------------

# Student's t at 97.5 %, by degrees of freedom 1 to 10, then 15, 20, 30 (any table of it).
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T_BEYOND: Final = ((15, 2.131), (20, 2.086), (30, 2.042))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval (0 for a single value)."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, 0.0
    spread = sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, _student(n - 1) * spread / sqrt(n)


def _student(freedom: int) -> float:
    if freedom <= len(_T):
        return _T[freedom - 1]
    return next((t for bound, t in reversed(_T_BEYOND) if freedom >= bound), _T[-1])


# ---- what is typed -----------------------------------------------------------------


def strategies_of(text: str) -> tuple[Strategy, ...]:
    """Of ``clairvoyant`` all, of ``clairvoyant:strategy=NAME`` that one, of a policy none; ValueError names them."""
    if text == CLAIRVOYANT:
        return PORTFOLIO
    if text.partition(":")[0] != CLAIRVOYANT:
        return ()
    named = tuple(strategy for strategy in PORTFOLIO if text == _STRATEGY + strategy.name)
    if not named:
        names = ", ".join(strategy.name for strategy in PORTFOLIO)
        raise ValueError(f"policy {text!r}: expected {_STRATEGY}NAME with a NAME among {names}")
    return named


def routing_of(text: str) -> Routing:
    """``NAME:key=value,...``, or a file of one's own in the name's place; ValueError names the choices."""
    routing: Routing = _policy("routing", text)
    return routing


def admission_of(text: str) -> Admission:
    """The same for admission."""
    admission: Admission = _policy("admission", text)
    return admission


def _policy(kind: str, text: str) -> Any:
    name, _, rest = text.partition(":")
    parameters = dict(_parameter(part, text) for part in rest.split(",") if part)
    if name.endswith(".py"):
        return loading.load(kind, loading.read(Path(name)), parameters)
    return policies.find(kind, name, parameters)


def _parameter(part: str, text: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals:
        raise ValueError(f"policy {text!r}: expected key=value, got {part!r}")
    return key.strip(), _value(value.strip())


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def pool_of(path: Path | None, slos: Sequence[str]) -> Pool:
    """The pool of the file, or the built-in one; SLOs that were typed take the place of its own."""
    pool = BUILT_IN if path is None else load_pool(path)
    return replace(pool, classes=tuple(parse_slo(text) for text in slos)) if slos else pool


def rate_of(text: str) -> float:
    """``x2`` or ``2`` to 2.0."""
    try:
        rate = float(text.removeprefix("x"))
    except ValueError:
        rate = -1.0
    if not 0 < rate < inf:
        raise ValueError(f"--rate: expected a factor such as x2, got {text!r}")
    return rate


def window_of(text: str) -> tuple[float, float]:
    """``5m-10m``, ``5m-`` or ``-10m`` to seconds."""
    if not text:
        return 0.0, inf
    start, dash, end = text.partition("-")
    if not dash:
        raise ValueError(f"--window: expected FROM-TO such as 5m-10m, got {text!r}")
    from_s = parse_seconds(start) if start else 0.0
    to_s = parse_seconds(end) if end else inf
    if to_s <= from_s:
        raise ValueError(f"--window: {text!r} ends before it begins")
    return from_s, to_s
