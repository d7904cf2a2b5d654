"""Lengths of generated requests: published statistics, log-normal about given means, or pairs drawn from a trace."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path
from random import Random
from typing import Final

from simulator.traces import read_trace

Lengths = Callable[[], tuple[int, int]]
"""Draws a pair of prompt and output tokens."""


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A length by its median and the standard deviation of its logarithm."""

    median: float
    sigma: float

    def draw(self, chance: Random) -> int:
        """One length, 1 or more."""
        return max(1, round(self.median * exp(self.sigma * chance.gauss(0.0, 1.0))))


def by_mean_and_p99(mean: float, p99: float) -> LogNormal:
    """The log-normal of that mean and 99th percentile (z = 2.326)."""
    z = 2.326
    sigma = z - sqrt(z * z - 2 * log(p99 / mean))
    return LogNormal(mean * exp(-sigma * sigma / 2), sigma)


def by_mean_and_median(mean: float, median: float) -> LogNormal:
    """The log-normal of that mean and median."""
    return LogNormal(median, sqrt(2 * log(mean / median)))


def about(mean: float, sigma: float) -> LogNormal:
    """The log-normal of that mean, and *sigma* of its logarithm."""
    return LogNormal(mean * exp(-sigma * sigma / 2), sigma)


PUBLISHED: Final = {
    # Azure LLM inference traces 2023 (AzurePublicDataset): prompt and output, mean with p99, or mean with median.
    "azure-conv": (by_mean_and_p99(1155, 4142), by_mean_and_p99(211, 601)),
    "azure-code": (by_mean_and_median(2048, 1500), by_mean_and_median(28, 13)),
}


def lengths_of(named: str, prompt: int, output: int, sigma: float, draw: Random) -> Lengths:
    """Pairs by *prompt* and *output* where they are given (above 0), else by the name of a statistic or a trace file.

    Raises ValueError, which lists the names, or OSError.
    """
    if sigma:
        return _drawn(about(prompt, sigma), about(output, sigma), draw)
    if prompt:
        return lambda: (prompt, output)
    if named in PUBLISHED:
        return _drawn(*PUBLISHED[named], draw)
    path = Path(named)
    if not path.exists():
        raise ValueError(f"lengths={named}: expected {', '.join(PUBLISHED)} or a trace file")
    pairs = [(entry.prompt_tokens, entry.output_tokens) for entry in read_trace(path).entries]
    if not pairs:
        raise ValueError(f"lengths={named}: no requests in this trace")
    return lambda: pairs[int(draw.random() * len(pairs))]


def _drawn(prompts: LogNormal, outputs: LogNormal, draw: Random) -> Lengths:
    return lambda: (prompts.draw(draw), outputs.draw(draw))
