"""Where the requests of an experiment come from: trace files or a generator, read and shaped.

Must not depend on policies or on how the requests are played.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from pathlib import Path

from simulator.pool import Pool
from simulator.traces import TraceEntry, read_trace
from simulator.workload.arrivals import Arrival, Shaping, Workload, shape, with_distinct_ids
from simulator.workload.generators import PREFIX, generate, parse_recipe


@dataclass(frozen=True, slots=True)
class Source:
    """The requests of an experiment: trace files or one generator, and the part of them that is played."""

    traces: tuple[str, ...]
    rate: float = 1.0
    from_s: float = 0.0
    to_s: float = inf
    limit: int | None = None
    skip_bad: bool = False

    def arrivals(self, pool: Pool, seed: int) -> Sequence[Arrival] | Workload:
        """The requests to play on *pool*. Raises BadLine, ValueError or OSError."""
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
        """The requests of all traces, in order of arrival."""
        limit = self.limit if len(self.traces) == 1 and self.to_s == inf and not self.from_s else None
        read = [_read(name, self.skip_bad, limit) for name in self.traces]
        return sorted((entry for part, _, _ in read for entry in part), key=lambda entry: entry.arrived_s)

    def skipped(self) -> list[str]:
        """One message for each trace of which bad lines were left out."""
        files = [name for name in self.traces if not name.startswith(PREFIX)]
        read = [(name, *_read(name, self.skip_bad, self.limit if len(files) == 1 else None)) for name in files]
        return [f"{name}: skipped {count} bad lines, the first: {first}" for name, _, count, first in read if count]


@lru_cache(maxsize=1)
def _shaped(source: Source, how: Shaping, seed: int) -> Sequence[Arrival]:
    """A trace as requests; cached, for every policy of a comparison is given the same."""
    arrivals = with_distinct_ids(shape(source.entries(), how, seed))
    if not arrivals:
        raise ValueError("--window: no requests in it")
    return arrivals


@lru_cache(maxsize=8)
def _read(name: str, skip_bad: bool, limit: int | None) -> tuple[list[TraceEntry], int, str]:
    reading = read_trace(Path(name), skip_bad=skip_bad, limit=limit)
    if not reading.entries:
        raise ValueError(f"{name}: no requests in this {reading.format} trace")
    return reading.entries, reading.skipped, reading.first_skipped
