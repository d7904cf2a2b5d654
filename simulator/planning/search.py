"""Finds the cheapest candidates that attain the goals: simulates, always the cheapest that is not decided.

Each family has a bracket: the largest number that is known to miss (below the fluid bound nothing is played) and the
smallest that attains. A number attains when it does under every seed, and by their spread would under a further one.
So the answer is the cheapest candidate unless the bound, which is optimistic, excluded it. Rounds have a fixed size, so
that the result does not depend on how many processes play. Must not depend on how results are shown.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from math import ceil, inf
from statistics import mean, stdev
from typing import Final

from simulator.experiment import interval
from simulator.planning.families import Family
from simulator.planning.trial import Load, Trial, seeded, trial
from simulator.planning.variants import Mix

_ROUND: Final = 4
_COARSE: Final = 8
_DEVIATIONS: Final = 2.0
_MORE: Final = 1.5  # times as many replicas that leave
_STUCK: Final = 0.75  # of the gap to the goal or more: others will not close it


@dataclass(frozen=True, slots=True)
class Played:
    """A candidate and its trials, the first seed first."""

    mix: Mix
    trials: tuple[Trial, ...]

    @property
    def attained(self) -> dict[str, tuple[float, float]]:
        """The share within each bound: mean over seeds, half width of its 95 % confidence interval."""
        labels = self.trials[0].attained
        return {label: interval([one.attained.get(label, 0.0) for one in self.trials]) for label in labels}

    @property
    def margin(self) -> float:
        """Of the worst seed."""
        return min(one.margin for one in self.trials)

    @property
    def met(self) -> bool:
        """Whether the goals are met under every seed, and by two standard deviations of them under a further one."""
        margins = [one.margin for one in self.trials]
        spread = stdev(margins) if len(margins) > 1 else 0.0
        return all(one.met for one in self.trials) and mean(margins) >= _DEVIATIONS * spread


@dataclass(slots=True)
class Bracket:
    """What is known of a family. ``high`` 0: no number is known to attain."""

    family: Family
    low: int
    high: int = 0
    best: Played | None = None
    failed: Played | None = None
    margins: dict[int, float] = field(default_factory=dict)  # of the numbers that miss

    @property
    def next(self) -> int:
        """The number to play next; 0: decided."""
        if self._stuck:
            return 0
        if self.high:
            return (self.low + self.high) // 2 if self.high - self.low > 1 else 0
        step = 1 if self.low < _COARSE else ceil(self.low / _COARSE)
        return self.low + step if self.low + step <= self.family.most else 0

    @property
    def hopeless(self) -> bool:
        """Whether no number attains."""
        return not self.high and not self.next

    @property
    def cost(self) -> tuple[float, int, str]:
        """Of the candidate to play next: the least that the family can cost, as far as is known."""
        return self.family.mix(self.low + 1).order

    def add(self, count: int, played: Played) -> None:
        """Take in what came of *count*."""
        if played.met:
            self.high, self.best = count, played
        else:
            self.low, self.failed = count, played
            self.margins[count] = played.margin

    @property
    def _stuck(self) -> bool:
        """Whether the last replicas that were added hardly helped."""
        if self.high or self.low < self.family.least + 2:
            return False
        gap = -self.margins[self.low]
        return any(gap >= _STUCK * -before for count, before in self.margins.items() if self.low >= _MORE * count)


@dataclass(slots=True)
class Search:
    """The state of a search. ``requests_left``: how many may still be simulated."""

    load: Load
    brackets: list[Bracket]
    seeds: tuple[int, ...]
    answers: int
    requests_left: int
    known: dict[str, Played] = field(default_factory=dict)  # by label: two families may have a candidate in common

    @property
    def every(self) -> list[Played]:
        """All that was played."""
        return list(self.known.values())

    @property
    def found(self) -> list[Bracket]:
        """Families of which a number attains, the cheapest first."""
        there = [bracket for bracket in self.brackets if bracket.best is not None]
        return sorted(there, key=lambda b: b.best.mix.order if b.best else (inf, 0, ""))

    @property
    def undecided(self) -> list[Bracket]:
        """Families to be played next, the cheapest first: those that may cost less than the answers there are."""
        found = [bracket.best.mix.order for bracket in self.found if bracket.best]
        most = found[self.answers - 1] if len(found) >= self.answers else (inf, 0, "")
        there = [bracket for bracket in self.brackets if bracket.next and bracket.cost < most]
        return sorted(there, key=lambda bracket: bracket.cost)

    @property
    def complete(self) -> bool:
        """Whether it ended because nothing cheaper was left, and not because the simulations were used up."""
        return not self.undecided


def search(
    families: Sequence[Family],
    load: Load,
    executor: Executor,
    *,
    seed: int,
    seeds: int,
    answers: int,
    budget: int,
    done: Callable[[int], None],
) -> Search:
    """Search until *answers* families attain and no other can be cheaper, or *budget* requests have been simulated.

    *done* is called with the number of requests so far.
    """
    brackets = [Bracket(family, family.least - 1) for family in families]
    state = Search(load, brackets, tuple(range(seed, seed + seeds)), answers, budget)
    while (chosen := state.undecided[:_ROUND]) and state.requests_left > 0:
        counts = [bracket.next for bracket in chosen]
        mixes = [bracket.family.mix(count) for bracket, count in zip(chosen, counts, strict=True)]
        fresh = {mix.label: mix for mix in mixes if mix.label not in state.known}
        for one in _played(state, list(fresh.values()), executor):
            state.known[one.mix.label] = one
            state.requests_left -= sum(each.requests for each in one.trials)
        for bracket, count, mix in zip(chosen, counts, mixes, strict=True):
            bracket.add(count, state.known[mix.label])
        done(budget - state.requests_left)
    return state


def _played(state: Search, mixes: Sequence[Mix], executor: Executor) -> list[Played]:
    """Each under the first seed; those that attain under the others too."""
    goals, first = state.load.goals, [state.load.case(mix, state.seeds[0]) for mix in mixes]
    once = [future.result() for future in [executor.submit(trial, case, goals) for case in first]]
    more = {
        n: [executor.submit(trial, case, goals) for case in seeded(case, state.seeds[1:])]
        for n, (case, one) in enumerate(zip(first, once, strict=True))
        if one.met
    }
    return [
        Played(mix, (one, *(future.result() for future in more.get(n, []))))
        for n, (mix, one) in enumerate(zip(mixes, once, strict=True))
    ]
