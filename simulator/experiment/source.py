"""Where the requests of an experiment come from: trace files or a generator, read and shaped.

Must not depend on policies or on how the requests are played.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from pathlib import Path

from simulator.pool import Pool
from simulator.traces import TraceEntry, read_trace
from simulator.traces.entry import Reading
from simulator.traces.merging import Merged, merged
from simulator.traces.waiting import waits
from simulator.workload.arrivals import Arrival, Shaping, Workload, shape, with_distinct_ids
from simulator.workload.generators import PREFIX, generate, parse_recipe
from simulator.workload.replayed import ReplayedLoops


@dataclass(frozen=True, slots=True)
class Source:
    """The requests of an experiment: trace files or one generator, and the part of them that is played.

    ``names``: what messages call the files, if not by their paths.
    """

    traces: tuple[str, ...]
    rate: float = 1.0
    from_s: float = 0.0
    to_s: float = inf
    limit: int | None = None
    skip_bad: bool = False
    names: tuple[str, ...] = ()

    def arrivals(self, pool: Pool, seed: int) -> Sequence[Arrival] | Workload:
        """The requests to play on *pool*. Raises BadLine, ValueError or OSError."""
        cap = pool.world.clients.output_tokens_max
        how = Shaping(pool.default_model, pool.classes, self.rate, self.from_s, self.to_s, self.limit, cap)
        if self.generated:
            return self._generated(how, seed)
        entries = self.entries()
        return ReplayedLoops(entries, how, seed) if waits(entries) else _shaped(self, how, seed)

    @property
    def generated(self) -> bool:
        """Whether it is a generator."""
        return any(name.startswith(PREFIX) for name in self.traces)

    def _generated(self, how: Shaping, seed: int) -> Sequence[Arrival] | Workload:
        if len(self.traces) > 1:
            raise ValueError("a generator goes alone, without further traces")
        return generate(parse_recipe(self.traces[0]), how, seed)

    def entries(self) -> list[TraceEntry]:
        """The requests of all traces, in order of arrival."""
        return self._merged().entries

    def left_out(self) -> list[str]:
        """What the traces have and a run has not, and what was changed to merge them: a message each."""
        if self.generated:
            return []
        messages = []
        for name, reading in self._read():
            if reading.skipped:
                messages.append(f"{name}: skipped {reading.skipped} bad lines, the first: {reading.first_skipped}")
            if reading.caution:
                messages.append(f"{name}: {reading.caution}")
            there = len(reading.entries) + sum(reading.left_out.values())
            messages += [f"{name}: {n} of {there} requests left out: they {why}" for why, n in reading.left_out.items()]
        return [*messages, *self._merged().notes]

    def _merged(self) -> Merged:
        limit = self.limit if len(self.traces) == 1 and self.to_s == inf and not self.from_s else None
        return _merged(self.traces, self.names or self.traces, self.skip_bad, limit)

    def _read(self) -> list[tuple[str, Reading]]:
        limit = self.limit if len(self.traces) == 1 and self.to_s == inf and not self.from_s else None
        names = self.names or self.traces
        return [(name, _read(path, name, self.skip_bad, limit)) for path, name in zip(self.traces, names, strict=True)]


@lru_cache(maxsize=1)
def _shaped(source: Source, how: Shaping, seed: int) -> Sequence[Arrival]:
    """A trace as requests; cached, for every policy of a comparison is given the same."""
    arrivals = with_distinct_ids(shape(source.entries(), how, seed))
    if not arrivals:
        raise ValueError("--window: no requests in it")
    return arrivals


@lru_cache(maxsize=1)
def _merged(traces: tuple[str, ...], names: tuple[str, ...], skip_bad: bool, limit: int | None) -> Merged:
    return merged([(name, _read(path, name, skip_bad, limit)) for path, name in zip(traces, names, strict=True)])


@lru_cache(maxsize=8)
def _read(path: str, name: str, skip_bad: bool, limit: int | None) -> Reading:
    reading = read_trace(Path(path), skip_bad=skip_bad, limit=limit, name=name)
    if not reading.entries:
        raise ValueError(f"{name}: no requests in this {reading.format} trace{_why(reading)}")
    return reading


def _why(reading: Reading) -> str:
    return "".join(f"; {n} {why}" for why, n in reading.left_out.items())
