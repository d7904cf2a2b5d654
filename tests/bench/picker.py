"""The endpoint picker behind the real Envoy beside the gateway, before the same two unequal engines:
`HEADROOM_ENGINES=FOLDER python -m tests.bench.picker [--rounds 3] [--seconds 30] [--rate 8]`.

The engines are emulated in real time, an h100 and an l4. Half of the load is more than the slower one can take, so
that a choice without a forecast misses SLOs: the gateway with round_robin is measured beside both, as a check of that.
Rounds are interleaved and every contender gets the same requests. Printed: attainment with its 95 % interval,
CPU of every process a request, and what each adds to the first token of an idle engine. Envoy is in FOLDER, where
`python -m tests.real.matrix.environments envoy` installs it. Linux alone: CPU is read in /proc.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from deploy.local import catalog
from tests.real import picker
from tests.real.picker import ENVOY_PORT, GATEWAY_PORT, Parts
from tests.streams import Ask, Seen, Talk, closed_loop, open_loop

MODEL: Final = "tiny"
FAST, SLOW = ("fast", "h100", 8311), ("slow", "l4", 8312)
ROUND_ROBIN_PORT: Final = 8313
TTFT_S, TPOT_S = 1.0, 0.08
RATE: Final = 8.0
PROMPT_TOKENS, REPLY_TOKENS = 600.0, 40
Z: Final = 1.96
ALONE: Final = 200  # requests one after the other, for what is added to a first token
CONFIG: Final[dict[str, Any]] = {
    "scrape": {"period_s": 0.2, "timeout_s": 2.0},
    "backends": [
        {"name": name, "url": f"http://{catalog.HOST}:{port}", "models": [MODEL], "card": card, "model": "llama-3-8b"}
        for name, card, port in (FAST, SLOW)
    ],
    "slo_classes": {"default": {"ttft_ms": TTFT_S * 1e3, "tpot_ms": TPOT_S * 1e3}},
    "policy": {"guard": {"budget_ms": 1000}},  # a busy machine is no fault of the policy
}


@dataclass
class Contender:
    """Whatever answers on a port, and the processes that take part. ``met``: by request, whether its SLO was."""

    name: str
    port: int
    processes: tuple[str, ...]
    met: list[bool] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    shares: dict[str, int] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    added_s: tuple[float, ...] = ()

    @property
    def attainment(self) -> float:
        """Of all requests."""
        return sum(self.met) / len(self.met)

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of that."""
        count, share = len(self.met), self.attainment
        middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
        half = Z / (1 + Z * Z / count) * sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2)
        return middle - half, middle + half

    def line(self) -> str:
        """As printed."""
        low, high = self.interval()
        spent = ", ".join(f"{name} {1e3 * cpu_s / len(self.met):.1f} ms" for name, cpu_s in self.cpu_s.items())
        total = 1e3 * sum(self.cpu_s.values()) / len(self.met)
        first = ", ".join(f"p{q} {1e3 * float(np.nanpercentile(self.ttft_s, q)):.0f} ms" for q in (50, 99))
        added = "".join(f", p{q} +{1e3 * s:.2f} ms idle" for q, s in zip((50, 99), self.added_s, strict=False))
        return (
            f"{self.name:12} {len(self.met)} requests, attainment {self.attainment:.4f} [{low:.4f}, {high:.4f}], "
            f"by backend {self.shares}; CPU a request {total:.1f} ms ({spent}); first token {first}{added}"
        )


def contenders() -> list[Contender]:
    """The control, then the two that are compared."""
    return [
        Contender("round robin", ROUND_ROBIN_PORT, ("round robin",)),
        Contender("gateway", GATEWAY_PORT, ("gateway",)),
        Contender("picker", ENVOY_PORT, ("picker", "envoy")),
    ]


def parts(folder: Path) -> list[catalog.Engine]:
    """All processes, in the order in which they start."""
    blind = {**CONFIG, "policy": {**CONFIG["policy"], "routing": {"name": "round_robin"}}}
    return [
        *(picker.emulated(name, card, port, MODEL) for name, card, port in (FAST, SLOW)),
        picker.picker(folder, CONFIG),
        picker.envoy(folder),
        picker.gateway(folder, CONFIG),
        picker.gateway(folder, blind, "round robin", ROUND_ROBIN_PORT),
    ]


def asks_of(seed: int, rate: float, seconds: float) -> list[Ask]:
    """Poisson arrivals of prompts of varied length."""
    talk, chance, at_s, made = Talk(seed, PROMPT_TOKENS), Random(seed), 0.0, list[Ask]()
    while (at_s := at_s + chance.expovariate(rate)) < seconds:
        made.append(Ask(f"p{len(made)}", talk.prompt(), REPLY_TOKENS, True, at_s, MODEL))
    return made


def met(seen: Seen) -> bool:
    """Whether one kept its SLO; one that was refused or cut did not."""
    return seen.tokens > 0 and seen.ttft_s <= TTFT_S and not seen.tpot_s > TPOT_S


async def one_round(running: Parts, each: Contender, asks: Sequence[Ask]) -> None:
    """The same requests for one contender."""
    before = {name: running.cpu_s(name) for name in each.processes}
    for seen in await open_loop(each.port, asks):
        each.met.append(met(seen))
        each.ttft_s.append(seen.ttft_s)
        place = seen.backend or f"status {seen.status}"
        each.shares[place] = each.shares.get(place, 0) + 1
    for name, was in before.items():
        each.cpu_s[name] = each.cpu_s.get(name, 0.0) + running.cpu_s(name) - was


async def first_tokens(port: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds to the first token of requests that find the fast engine idle."""
    seen = await closed_loop(port, [(1, [Ask(f"a{n}", "hello", 2, True, model=MODEL) for n in range(ALONE)])])
    return np.array([each.ttft_s for each in seen if each.tokens and each.backend in {"", FAST[0]}])


async def measured(running: Parts, rounds: int, seconds: float, rate: float, first_seed: int = 1) -> list[Contender]:
    """All of it; the order changes from round to round."""
    found = contenders()
    direct = await first_tokens(FAST[2])
    for each in found[1:]:
        through = await first_tokens(each.port)
        each.added_s = tuple(float(np.percentile(through, q) - np.percentile(direct, q)) for q in (50, 99))
    for number in range(rounds):
        asks = asks_of(first_seed + number, rate, seconds)
        for place in range(len(found)):
            await one_round(running, found[(place + number) % len(found)], asks)
            await asyncio.sleep(1.0)
    return found


def difference(one: Contender, other: Contender) -> tuple[float, float]:
    """How much more the one attains, and half of the 95 % interval of that: both had the same requests."""
    apart = np.array(one.met, dtype=float) - np.array(other.met, dtype=float)
    return float(apart.mean()), Z * float(apart.std()) / sqrt(len(apart))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.picker", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=RATE)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, picker.up(catalog.home_folder(), *parts(Path(folder))) as running:
        found = asyncio.run(measured(running, given.rounds, given.seconds, given.rate))
    _, gateway, through_envoy = found
    print(*(each.line() for each in found), sep="\n")
    more, half = difference(through_envoy, gateway)
    print(f"the picker attains {100 * more:+.2f} points more than the gateway, within {100 * half:.2f}")
    return 0 if more >= -0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
