"""Cells of the grid: workload x promise x tightness x pool x load x seed, each a few facts that make a run.

A cell reads and writes as ``azure-conv/e2e-edge/mixed/0.95/s1``. Bounds are multiples of what an idle median engine of
the pool takes for the workload; rates are multiples of a fluid estimate of what the pool carries within the bounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil, inf
from random import Random
from statistics import median_low
from typing import Final

import numpy as np

from router.core.physics import StepCoefficients, prefill_s
from router.core.step import MEASURABLE, decode_step_s, step_s
from router.core.types import NO_SLO, Slo
from simulator.experiment import Case, Source
from simulator.pool import Member, Pool, Site
from simulator.run.result_table import Floats
from simulator.workload.arrivals import Arrival, SloClass
from simulator.workload.generators import UNIT_TOKENS, Sessions
from simulator.world import Fault, World

WORKLOADS: Final[Mapping[str, str]] = {
    "chat": "gen:poisson:prompt=150,output=250,sigma=0.8",
    "azure-conv": "gen:poisson:lengths=azure-conv",
    "bursty": "gen:gamma:cv=3,lengths=azure-conv",
    "code": "gen:poisson:lengths=azure-code",
    "long-docs": "gen:poisson:prompt=8000,output=60,sigma=0.4",
    "long-replies": "gen:poisson:prompt=150,output=800,sigma=0.4",
    "sessions": "gen:sessions:turns=5,think=10s,system=1500",
}
"""Generators without their rate and count. ``sessions``: rate counts conversations, see ``TURNS``."""

TURNS: Final = {"sessions": 5.0}
PROMISES: Final = ("ttft", "tpot", "e2e", "ttft+tpot", "all", "classes", "none")
TIGHTNESS: Final[Mapping[str, float]] = {"tight": 1.5, "edge": 3.0, "loose": 10.0}
LOADS: Final = ("0.3", "0.7", "0.95", "1.3")
SLOW: Final = 2.0
_A100: Final = "a100-80g-sxm"
_MIXED: Final = (
    Member("h100", "h100-sxm"),
    Member("a100", _A100),
    Member("l40s", "l40s", count=2),
    Member("a10x2", "a10", tp=2, count=2),
)
POOLS: Final[Mapping[str, Pool]] = {
    "one": Pool((Member("a100", _A100),), name="one"),
    "four": Pool((Member("a100", _A100, count=4),), name="four"),
    "four-slow": Pool(
        (Member("a100", _A100, count=4),),
        world=World(faults=(Fault(0.0, "a100-0", "slow", factor=SLOW),)),
        name="four-slow",
    ),
    "mixed": Pool(_MIXED, name="mixed"),
    "mixed32": Pool(tuple(replace(m, count=n) for m, n in zip(_MIXED, (4, 8, 12, 8), strict=True)), name="mixed32"),
}
REQUESTS: Final[Mapping[str, tuple[int, int]]] = {
    "one": (400, 4_000),
    "four": (600, 8_000),
    "four-slow": (600, 8_000),
    "mixed": (600, 8_000),
    "mixed32": (1_500, 12_000),
}
"""The least and the most requests of a run, by pool; between them a run lasts for ``Cell.span_s``."""

SPAN_S: Final = (60.0, 120.0)
SPAN_E2E: Final = 8.0
SESSIONS_SPAN_S: Final = 240.0
OVERLOAD_SPAN_S: Final = 300.0
LEVELS: Final[Mapping[str, Sequence[str]]] = {
    "workload": tuple(WORKLOADS),
    "promise": PROMISES,
    "tightness": tuple(TIGHTNESS),
    "pool": tuple(POOLS),
    "load": LOADS,
}


@dataclass(frozen=True, slots=True)
class Lengths:
    """Means over a workload's requests, tokens. ``new``: prompt tokens that an ideal prefix cache does not hold."""

    prompt: float
    new: float
    output: float
    output_p90: float
    context: float  # held by a sequence that decodes, as time sees it


@dataclass(frozen=True)
class Cell:
    """One run to be made with every policy; ``tightness`` is empty where nothing is promised.

    A ``small`` one has half of the requests, but no fewer than ``REQUESTS`` gives at least.
    """

    workload: str
    promise: str
    tightness: str
    pool: str
    load: str
    seed: int
    small: bool = False

    def __str__(self) -> str:
        promise = f"{self.promise}-{self.tightness}" if self.tightness else self.promise
        return f"{self.workload}/{promise}/{self.pool}/{self.load}/s{self.seed}"

    def case(self, policy: str) -> Case:
        """The run with *policy*: the same arrivals for every one."""
        pool = replace(POOLS[self.pool], classes=self.classes)
        return Case(Source((self.generator,)), pool, policy, seed=self.seed)

    @cached_property
    def classes(self) -> tuple[SloClass, ...]:
        """What is promised to whom."""
        return promised(self.promise, TIGHTNESS.get(self.tightness, inf), self.workload, self.pool)

    @cached_property
    def capacity_per_s(self) -> float:
        """Requests a second that the pool carries within the bounds, fluid.

        Bounds that no replica keeps even idle (a seed may draw engines that slow) are widened until one does.
        """
        slo, lengths, pool = strictest(self.classes), lengths_of(self.workload), POOLS[self.pool]
        slowed = {fault.backend: fault.factor for fault in pool.world.faults}
        sites = pool.sites(self.seed)
        while not (total := sum(fluid_rate(_true(site, slowed), site, lengths, slo) for site in sites)):
            slo = Slo(slo.ttft_s * 1.25, slo.tpot_s * 1.25, slo.e2e_s * 1.25)
        return total

    @property
    def span_s(self) -> float:
        """Virtual seconds that the run should last: eight idle E2E, 60 to 120.

        Conversations take longer to become many, and the backlog of an overload to reach a loose bound.
        """
        if self.workload in TURNS:
            return SESSIONS_SPAN_S
        span_s = min(max(SPAN_S[0], SPAN_E2E * idle_of(self.workload, self.pool)[2]), SPAN_S[1])
        load = float(self.load)
        bounds = [b for one in self.classes for b in (one.slo.ttft_s, one.slo.e2e_s) if b < inf]
        if load <= 1.0 or not bounds:
            return span_s
        return min(max(span_s, 1.5 * max(bounds) * load / (load - 1.0)), OVERLOAD_SPAN_S)

    @cached_property
    def generator(self) -> str:
        """The workload as the simulator's commands take it."""
        rate = self.capacity_per_s * float(self.load)
        least, most = REQUESTS[self.pool]
        if self.workload in TURNS:
            most //= 2  # long prompts, looked up in every cache: each costs ten times another's request
        share = 0.5 if self.small else 1.0
        count = ceil(max(least, share * min(rate * self.span_s, most)))
        return generator(self.workload, rate, count)


def generator(workload: str, requests_per_s: float, count: int) -> str:
    """*count* requests of *workload* at that rate, as the simulator's commands take it."""
    kind, _, rest = WORKLOADS[workload].removeprefix("gen:").partition(":")
    return f"gen:{kind}:rate={requests_per_s / TURNS.get(workload, 1.0):.6g},requests={count},{rest}"


def parse_cell(text: str) -> Cell:
    """``WORKLOAD/PROMISE-TIGHTNESS/POOL/LOAD/sSEED`` to a cell; ValueError names the part and the choices."""
    parts = text.split("/")
    if len(parts) != 5 or not parts[4].removeprefix("s").isdigit():
        raise ValueError(f"cell {text!r}: expected WORKLOAD/PROMISE-TIGHTNESS/POOL/LOAD/sSEED")
    promise, _, tightness = parts[1].partition("-")
    found = dict(zip(LEVELS, (parts[0], promise, tightness, parts[2], parts[3]), strict=True))
    for name, level in found.items():
        if level not in LEVELS[name] and not (name == "tightness" and promise == "none"):
            raise ValueError(f"cell {text!r}: {name}: expected one of {', '.join(LEVELS[name])}, got {level!r}")
    return Cell(parts[0], promise, tightness, parts[2], parts[3], int(parts[4].removeprefix("s")))


def drawn(count: int, seed: int, only: Mapping[str, Sequence[str]]) -> list[Cell]:
    """*count* cells in which every level of every dimension comes equally often (a Latin hypercube).

    *only* names the levels of a dimension that are to be drawn from. Seeds are *seed* and the next; a cell that came
    before gets a later one.
    """
    draw = Random(f"{seed}/cells")
    columns = [_column(only.get(name, levels), count, draw) for name, levels in LEVELS.items()]
    seeds = _column(("0", "1"), count, draw)
    cells: dict[Cell, None] = {}
    for workload, promise, tightness, pool, load, number in zip(*columns, seeds, strict=True):
        cell = Cell(workload, promise, "" if promise == "none" else tightness, pool, load, seed + int(number))
        while cell in cells:
            cell = replace(cell, seed=cell.seed + 2)
        cells[cell] = None
    return list(cells)


def _column(levels: Sequence[str], count: int, draw: Random) -> list[str]:
    rounds = [level for _ in range(ceil(count / len(levels))) for level in draw.sample(levels, len(levels))]
    column = rounds[:count]
    draw.shuffle(column)
    return column


# ---- bounds ----------------------------------------------------------------------------


def promised(promise: str, times: float, workload: str, pool: str) -> tuple[SloClass, ...]:
    """The SLO classes of a promise: *times* what an idle engine takes.

    ``classes``: half of the requests have TTFT and TPOT, half an E2E three times as loose.
    """
    if promise == "none":
        return (SloClass("default", NO_SLO),)
    ttft_s, tpot_s, e2e_s = (times * idle_s for idle_s in idle_of(workload, pool))
    if promise == "classes":
        return (
            SloClass("interactive", Slo(ttft_s=ttft_s, tpot_s=tpot_s), 0.5),
            SloClass("batch", Slo(e2e_s=3.0 * e2e_s), 0.5),
        )
    bounds = {"ttft": {"ttft_s": ttft_s}, "tpot": {"tpot_s": tpot_s}, "e2e": {"e2e_s": e2e_s}}
    names = tuple(bounds) if promise == "all" else promise.split("+")
    return (SloClass("default", Slo(**{key: s for name in names for key, s in bounds[name].items()})),)


def strictest(classes: Sequence[SloClass]) -> Slo:
    """The least of each bound over all classes."""
    slos = [one.slo for one in classes]
    return Slo(min(s.ttft_s for s in slos), min(s.tpot_s for s in slos), min(s.e2e_s for s in slos))


@lru_cache
def idle_of(workload: str, pool: str) -> tuple[float, float, float]:
    """TTFT, TPOT and E2E in seconds on the median engine of *pool*, idle, by its data sheet.

    TTFT: a mean prompt, after the step of one that decodes; TPOT: alone; E2E: a reply of the 90th percentile.
    """
    lengths = lengths_of(workload)
    found = []
    for site in POOLS[pool].sites(0):
        c = site.backend.prior
        tpot_s = float(decode_step_s(c, 1.0, lengths.context))
        ttft_s = tpot_s + prefill_s(c, lengths.prompt, site.limits.chunk_tokens) + site.backend.network_s
        found.append((ttft_s, tpot_s, ttft_s + lengths.output_p90 * tpot_s))
    return median_low(found)


@lru_cache
def lengths_of(workload: str) -> Lengths:
    """What 2,000 requests of *workload* look like."""
    source = Source((generator(workload, 1.0, 2_000),))
    rows = np.array(_rows(list(_every(source)))).T
    prompt, new, output = rows
    context = float((output * (prompt + output / 2)).sum() / output.sum())
    return Lengths(
        float(prompt.mean()), float(new.mean()), float(output.mean()), float(np.percentile(output, 90)), context
    )


def _every(source: Source) -> list[Arrival]:
    """All arrivals, those that follow from others as well."""
    workload = source.arrivals(POOLS["one"], 0)
    found: list[Arrival] = []
    for arrival in workload:
        chain = [arrival]
        if isinstance(workload, Sessions):
            for turn in chain:  # grows while it is walked
                chain.extend(workload.after(turn, turn.request.arrived_s))
        found.extend(chain)
    return found


def _rows(arrivals: Sequence[Arrival]) -> list[tuple[float, float, float]]:
    """Prompt, new prompt and output tokens of each; what a session has said before is not new."""
    said: dict[str, tuple[object, ...]] = {}
    rows = []
    for arrival in arrivals:
        request = arrival.request
        before = said.get(request.session, ())
        known = sum(a == b for a, b in zip(before, request.prefix, strict=False)) * UNIT_TOKENS
        if request.session:
            said[request.session] = arrival.known_prefix
        rows.append((float(request.prompt_tokens), float(request.prompt_tokens - known), float(arrival.output_tokens)))
    return rows


# ---- capacity --------------------------------------------------------------------------


def _true(site: Site, slowed: Mapping[str, float]) -> StepCoefficients:
    """A replica's true step, with the fault that slows it."""
    true = site.truth.coefficients
    factor = slowed.get(site.name, 1.0)
    return replace(true, **{name: getattr(true, name) * factor for name in MEASURABLE if name != "first_token_s"})


def fluid_rate(c: StepCoefficients, site: Site, lengths: Lengths, slo: Slo) -> float:
    """Requests a second that one replica carries in steady state with the mean request within *slo*.

    With b sequences decoding a request takes ``output`` decode steps, each stretched by the prompts that come in
    between: ``tpot = step(b) + b / output * prompt``, where ``prompt`` is what a prompt's chunks add to the steps they
    are in. So the rate is ``b / (output * tpot)``. Of all b the best whose batch and context fit into the engine, and
    whose mean TTFT (the step under way, an M/M/1 queue of prompts, the prompt itself), TPOT and E2E of a reply of the
    90th percentile keep the bounds. 0 where none does.
    """
    most = min(site.limits.seqs_max, 0.95 * site.backend.kv_tokens_max / lengths.context)
    b = np.geomspace(0.05, max(most, 0.05), 80)
    batch = np.maximum(b, 1.0)
    decode_s = np.asarray(decode_step_s(c, batch, batch * lengths.context))
    prompt_s = _prompt_s(c, batch, site.limits.chunk_tokens, lengths)
    tpot_s = decode_s + b / lengths.output * prompt_s
    rate = b / (lengths.output * tpot_s)
    busy = rate * (prompt_s + decode_s * ceil(lengths.new / site.limits.chunk_tokens))
    queued_s = (prompt_s + decode_s) / np.maximum(1.0 - busy, 1e-9)
    ttft_s = decode_s / 2 + queued_s + c.first_token_s + site.backend.network_s
    e2e_s = ttft_s + tpot_s * lengths.output_p90
    within = (busy < 1.0) & (ttft_s <= slo.ttft_s) & (tpot_s <= slo.tpot_s) & (e2e_s <= slo.e2e_s)
    return float(rate[within].max(initial=0.0))


def _prompt_s(c: StepCoefficients, batch: Floats, chunk_tokens: int, lengths: Lengths) -> Floats:
    """Seconds that the chunks of one prompt add to the steps they are in, for each *batch* of decoding sequences."""
    context = batch * lengths.context
    before = lengths.prompt - lengths.new
    left, added_s = lengths.new, np.zeros_like(batch)
    while left > 0:
        chunk = min(left, float(chunk_tokens))
        added_s += step_s(c, batch, context, chunk, before) - decode_step_s(c, batch, context)
        before, left = before + chunk, left - chunk
    return added_s
