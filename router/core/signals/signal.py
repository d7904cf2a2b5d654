"""What a signal is, and the ways in which it is read from an engine's metrics page.

A reading is data, so that it works both ways: the gateway reads a page by it, and the emulated engine writes its page
by it. Must not depend on how a page is parsed or on the simulator: both are Protocols here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import nan
from typing import NamedTuple, Protocol


class Share(NamedTuple):
    """Two counters: ``part`` of ``whole`` since the engine began. The signal's value is the share since the last page,
    as a lifetime mean would hide a change; ``otherwise`` where nothing was counted since then, or the engine restarted.
    """

    part: float
    whole: float
    otherwise: float = nan


Value = float | Share
"""What one page, or one simulated engine, gives for a signal."""


def value_since(now: Value, before: Value | None) -> float:
    """The signal's value. *before*: what the last page gave (None: this is the first)."""
    if not isinstance(now, Share):
        return now
    if not isinstance(before, Share):
        return now.otherwise
    whole, part = now.whole - before.whole, now.part - before.part
    return part / whole if whole > 0 and 0 <= part <= whole else now.otherwise


class Page(Protocol):
    """A metrics page. With several *names* the first that the page has counts, so give the newest first. With data
    parallelism a page has one sample a rank.
    """

    def total(self, *names: str, **labels: str) -> float:
        """Sum over the samples with these labels; nan when there is none."""
        ...

    def mean(self, *names: str, **labels: str) -> float:
        """Mean over the samples with these labels; nan when there is none."""
        ...

    def labels(self, *names: str) -> list[Mapping[str, str]]:
        """The labels of each sample."""
        ...


class Sample(NamedTuple):
    """A line of an emulated engine's page; ``kind``: gauge or counter."""

    name: str
    kind: str
    value: float


class Reading(ABC):
    """How one engine kind's page shows a signal."""

    @abstractmethod
    def read(self, page: Page) -> Value:
        """What the page gives; nan where it has nothing of it."""

    @abstractmethod
    def samples(self, value: Value) -> tuple[Sample, ...]:
        """The lines by which an emulated engine of the kind shows the value, for ``read`` to find."""


@dataclass(frozen=True, slots=True)
class Gauge(Reading):
    """A gauge of one of these names, averaged over ranks."""

    names: tuple[str, ...]

    def read(self, page: Page) -> Value:
        """Its mean."""
        return page.mean(*self.names)

    def samples(self, value: Value) -> tuple[Sample, ...]:
        """One line of the newest name."""
        return (Sample(self.names[0], "gauge", value_since(value, None)),)


@dataclass(frozen=True, slots=True)
class Ratio(Reading):
    """Two counters, summed over ranks, each of one of its names; ``otherwise``: see ``Share``."""

    part: tuple[str, ...]
    whole: tuple[str, ...]
    otherwise: Callable[[Page], float] = lambda _: nan

    def read(self, page: Page) -> Value:
        """Both counts."""
        return Share(page.total(*self.part), page.total(*self.whole), self.otherwise(page))

    def samples(self, value: Value) -> tuple[Sample, ...]:
        """One line for each counter."""
        assert isinstance(value, Share)
        return Sample(self.whole[0], "counter", value.whole), Sample(self.part[0], "counter", value.part)


@dataclass(frozen=True, slots=True)
class Computed(Reading):
    """Computed from samples that an emulated engine's page has anyway."""

    compute: Callable[[Page], Value]

    def read(self, page: Page) -> Value:
        """As computed."""
        return self.compute(page)

    def samples(self, value: Value) -> tuple[Sample, ...]:
        """None of its own."""
        return ()


class SimulatedLimits(Protocol):
    """What a simulated engine was started with, as far as signals read it."""

    @property
    def seqs_max(self) -> int:
        """Sequences it runs at once."""
        ...

    @property
    def kv_blocks(self) -> int:
        """Blocks of its KV cache."""
        ...

    @property
    def prefix_caching(self) -> bool:
        """Whether it keeps prefixes."""
        ...


class SimulatedEngine(Protocol):
    """What a signal can read of a simulated engine; counters are since it began."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int

    @property
    def limits(self) -> SimulatedLimits:
        """What it was started with."""
        ...

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        ...

    @property
    def waiting(self) -> int:
        """Sequences in its queue."""
        ...

    def kv_usage(self) -> float:
        """Share of its KV blocks in use."""
        ...


@dataclass(frozen=True, slots=True)
class Signal:
    """One number that engines report and policies read as ``fleet.signal(name)``.

    ``name``: in reports, records and JSON; ``metric`` and ``help``: the gateway's own gauge of it. A value outside
    ``least`` to ``most`` is dropped at the boundary, but what exceeds ``most`` by at most ``rounding`` is clipped.
    ``absent``: the value where an engine reports none. ``live``: by name of the engine kind, how its page is read;
    ``simulated``: how the simulated engine has it. ``row``: of the ledger's columns, where compiled loops or older
    policies read it by number; else it gets one at their end.
    """

    name: str
    metric: str
    help: str
    least: float
    most: float
    live: Mapping[str, Reading] = field(default_factory=dict)
    simulated: Callable[[SimulatedEngine], Value] | None = None
    rounding: float = 0.0
    absent: float = nan
    row: int | None = None

    def __post_init__(self) -> None:
        """A policy that reads a signal must run the same live and simulated, so both readings are needed."""
        if not self.name.isidentifier():
            raise ValueError(f"signal {self.name!r}: the name has to be an identifier")
        if not self.live:
            raise ValueError(f"signal {self.name!r} has no live reading: give one for an engine kind at least")
        if self.simulated is None:
            raise ValueError(f"signal {self.name!r} has no simulated reading: give simulated, a function of the engine")

    def of(self, engine: SimulatedEngine) -> Value:
        """What the simulated engine gives."""
        assert self.simulated is not None
        return self.simulated(engine)
