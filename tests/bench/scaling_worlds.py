"""The worlds in which scalers are compared: llm-d's published setting, others of that kind, and weeks.

``rate`` is a curve; arrivals are a Poisson process of it. Nothing here depends on who scales. The week of real rates is
the one that a figure is stated of; the weeks that are drawn are kept aside: no constant was chosen by them.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import cos, exp, log, pi
from pathlib import Path
from random import Random
from typing import Final

from router.core.types import Slo
from simulator.pool import Member
from simulator.workload.arrival_times import RateCurve
from simulator.workload.arrivals import SloClass
from simulator.workload.rate_curve import read_curve

Rate = Callable[[float], float]
SLO: Final = Slo(ttft_s=2.0, tpot_s=0.05)
MEMBER: Final = Member("h100x2", "h100", "qwen3-32b", tp=2)
RATES: Final = Path("../shared/data/traces/servegen_rate_10min_days1to7.csv.gz")


@dataclass(frozen=True, slots=True)
class BenchWorld:
    """One model on one variant. ``goal``: the attainment that a static pool or a plan has to reach."""

    name: str
    rate: Rate
    most: float
    until_s: float
    prompt_tokens: int = 4000
    output_tokens: int = 1000
    slo: Slo = SLO
    member: Member = MEMBER
    start_s: float = 60.0
    replicas_min: int = 3
    replicas_max: int = 8
    goal: float = 0.99

    @property
    def classes(self) -> tuple[SloClass, ...]:
        """All requests are chats."""
        return (SloClass("chat", self.slo),)

    def times(self, seed: int) -> Iterator[float]:
        """A Poisson process of the rate, by thinning one of the highest."""
        at_s, draw = 0.0, Random(f"{seed}/{self.name}")
        while True:
            at_s -= log(1.0 - draw.random()) / self.most
            if at_s >= self.until_s:
                return
            if draw.random() * self.most < self.rate(at_s):
                yield at_s


def ramp(at_s: float, low: float = 2.0, high: float = 10.0, end: float = 1.0, half_s: float = 1800.0) -> float:
    """Up in half an hour, and down in another."""
    if at_s < half_s:
        return low + (high - low) * at_s / half_s
    return high - (high - end) * (at_s - half_s) / half_s


def step(at_s: float, low: float = 2.0, high: float = 10.0, end: float = 1.0) -> float:
    """Ten minutes, half an hour, half an hour."""
    return low if at_s < 600.0 else (high if at_s < 2400.0 else end)


def day(at_s: float) -> float:
    """Between 1 and 9 requests a second in a day that lasts 4 hours."""
    return 5.0 - 4.0 * cos(2.0 * pi * at_s / 14_400.0)


def constant(_: float) -> float:
    """6 requests a second."""
    return 6.0


WORLDS: Mapping[str, BenchWorld] = {
    "ramp": BenchWorld("ramp", ramp, 10.0, 3600.0, goal=0.995),
    "step": BenchWorld("step", step, 10.0, 4200.0),
    "onset": BenchWorld("step", step, 10.0, 780.0),  # the same arrivals
    "day": BenchWorld("day", day, 9.0, 14_400.0),
    "constant": BenchWorld("constant", constant, 6.0, 7200.0),
}


def other(seed: int) -> BenchWorld:
    """A ramp or a step of another height, with other lengths, SLOs, cards and cold starts."""
    draw = Random(f"other/{seed}")
    prompt, output = draw.choice([(1000, 300), (2000, 600), (4000, 1000), (8000, 500)])
    member = draw.choice(
        [
            Member("h100x2", "h100", "qwen3-32b", tp=2),
            Member("a100", "a100-80g-sxm", "llama-3-8b"),
            Member("l40s", "l40s", "llama-3-8b"),
        ]
    )
    low = draw.uniform(1.5, 4.0)
    high, end = low * draw.uniform(2.0, 6.0), low * draw.uniform(0.3, 1.0)
    sudden = draw.random() < 0.5
    rate = partial(step, low=low, high=high, end=end) if sudden else partial(ramp, low=low, high=high, end=end)
    return BenchWorld(
        f"{'step' if sudden else 'ramp'} {low:.1f}-{high:.1f}-{end:.1f} {member.name} {prompt}+{output}",
        rate,
        high,
        4200.0 if sudden else 3600.0,
        prompt,
        output,
        Slo(ttft_s=draw.choice([1.0, 2.0, 4.0]), tpot_s=draw.choice([0.05, 0.08])),
        member,
        draw.choice([30.0, 60.0, 120.0, 180.0]),
        replicas_min=1,
        replicas_max=40,
    )


def curve(path: Path, workload: str) -> RateCurve:
    """A week of rates. Raises OSError where the file is absent."""
    return read_curve(path, workload)


def rate_of(of: RateCurve, mean_per_s: float) -> Rate:
    """Its rate by time, at another mean; gaps in the data are as the window before them."""
    rates, before = [], of.mean
    for each in of.rates:
        before = each or before
        rates.append(before)
    scale = mean_per_s / (sum(rates) / len(rates))
    return lambda at_s: scale * rates[min(bisect_right(of.from_s, of.from_s[0] + at_s) - 1, len(rates) - 1)]


# ---- weeks that are drawn ------------------------------------------------------------

DAY_S: Final = 86_400.0
WINDOW_S: Final = 600.0


def of_day(at_s: float) -> float:
    """Between 0.3 and 1.7, the least at four in the morning."""
    return 1.0 - 0.7 * cos(2.0 * pi * (at_s / DAY_S - 4.0 / 24.0))


def office(draw: Random) -> Rate:
    """Two days in seven have a third of the traffic, and so has a holiday."""
    holiday = draw.randrange(7, 12)
    quiet = {*(day for day in range(28) if day % 7 >= 5), holiday}
    return lambda at_s: of_day(at_s) * (0.33 if int(at_s / DAY_S) in quiet else 1.0)


def growth(draw: Random) -> Rate:
    """A day like the one before, with up to 15 % more."""
    more = draw.uniform(0.05, 0.15)
    return lambda at_s: of_day(at_s) * exp(more * at_s / DAY_S)


def walk(draw: Random) -> Rate:
    """Days over which a random walk goes: by 6 % in ten minutes, back to the mean within hours."""
    level, levels = 0.0, []
    for _ in range(28 * 144):
        level = 0.97 * level + draw.gauss(0.0, 0.06)
        levels.append(level)
    return lambda at_s: of_day(at_s) * exp(levels[int(at_s / WINDOW_S)])


def on_off(draw: Random) -> Rate:
    """A batch of some hours, whenever it comes, on top of a fifth."""
    edges, at_s = [], 0.0
    while at_s < 28 * DAY_S:
        at_s += draw.uniform(1.0, 6.0) * 3600.0
        edges.append(at_s)
    return lambda at_s: 1.8 if bisect_right(edges, at_s) % 2 else 0.2


def crowds(draw: Random) -> Rate:
    """Days with crowds that come within five minutes, at up to three times the rate, and go within the hour."""
    starts = sorted(draw.uniform(0.0, 28 * DAY_S) for _ in range(84))
    heights = [draw.uniform(1.5, 3.0) - 1.0 for _ in starts]

    def rate(at_s: float) -> float:
        first = bisect_right(starts, at_s - 4 * 3600.0)
        ages = [(at_s - start, height) for start, height in zip(starts[first:], heights[first:], strict=True)]
        crowd = sum(height * min(age / 300.0, exp(-(age - 300.0) / 1200.0)) for age, height in ages if age > 0.0)
        return of_day(at_s) * (1.0 + crowd)

    return rate


DRAWN: Final[Mapping[str, Callable[[Random], Rate]]] = {
    "office": office,
    "growth": growth,
    "walk": walk,
    "on-off": on_off,
    "crowds": crowds,
}


def drawn(name: str, seed: int, mean_per_s: float, until_s: float) -> Rate:
    """A week that is drawn, at such a mean."""
    rate = DRAWN[name](Random(f"{name}/{seed}"))
    middles = [at * WINDOW_S for at in range(int(until_s / WINDOW_S))]
    scale = mean_per_s * len(middles) / sum(map(rate, middles))
    return lambda at_s: scale * rate(at_s)
