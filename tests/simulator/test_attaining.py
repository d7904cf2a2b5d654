"""One run against a goal: what it attains, and when it is broken off."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from simulator.experiment import attained

REQUESTS = 1_000


@dataclass
class Table:
    """So many requests have ended; the first of them missed their SLO."""

    ended: int
    missed: int

    def __len__(self) -> int:
        return self.ended

    def met(self) -> Any:
        return np.arange(self.ended) >= self.missed

    def column(self, name: str) -> Any:
        return np.linspace(0.0, 10.0, self.ended)


@dataclass
class Run:
    table: Table
    strategy: str = ""
    faults_outside: tuple[()] = ()


class Played:
    """A case that has *missed* misses after half of its requests, and *later* more in the other half."""

    pool, seed = None, 0

    def __init__(self, missed: int, later: int) -> None:
        self.source, self.missed, self.later = self, missed, later

    def arrivals(self, pool: Any, seed: int) -> range:
        return range(REQUESTS)

    def play(self, stop: Callable[[Table], bool], enough: float) -> Run:
        half = Table(REQUESTS // 2, self.missed)
        return Run(half if stop(half) else Table(REQUESTS, self.missed + self.later))


@pytest.mark.parametrize("goal", [0.6, 0.7, 0.8, 0.9, 0.93, 0.95, 0.99, 0.999])
def test_as_many_misses_as_the_goal_allows_are_attained_and_one_more_is_not(goal: float) -> None:
    """A run with just as many so far goes on: what comes may miss too."""
    allowed = round((1 - goal) * REQUESTS)
    case: Any = Played(allowed, 0)
    assert attained(case, goal).attainment == goal
    case = Played(allowed, allowed)
    assert attained(case, goal).attainment < goal
    assert attained(case, 0.0).attainment == pytest.approx(1 - 2 * allowed / REQUESTS)
    case = Played(allowed + 1, 0)
    found = attained(case, goal)
    assert found.attainment < goal
    assert found.requests_per_s == REQUESTS / 2 / 10.0  # it ended half way
