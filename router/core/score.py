"""How predictions turned out, backend by backend: errors, coverage of what was promised, and whether to trust the next.

Believes: nothing; it counts. Must not know: how a prediction is made.

A forecast is ``LEARNING`` until enough first tokens were seen for the tails to speak for themselves, ``TRUSTED`` from
then on, and ``OFF`` while its errors are too large to decide by, or while what was promised for 9 in 10 comes true far
less often. It takes more to come back than to stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, nan
from typing import Final

from router.core.tails import QUANTILES

TTFT, TPOT, E2E = range(3)
LEARNING, TRUSTED, OFF = range(3)
STATES: Final = ("learning", "trusted", "off")
TRUSTED_AFTER: Final = 20  # first tokens seen
ERROR_OFF: Final = (0.7, 0.5)  # median size of the log error, TTFT and TPOT, from which on a forecast misleads
COVERAGE_OFF: Final = 0.7  # a promised 0.9 that is kept so rarely is no promise
RECOVERED: Final = 0.8  # an error must fall below this share of its limit before it counts as recovered
ERROR_START: Final = 0.2
ERROR_UP: Final = 1.08  # a step of the running median: a tenfold change takes 30 outcomes
COVERAGE_GAIN: Final = 1.0 / 32
_P90: Final = QUANTILES.index(0.9)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How one metric's predictions did: outcomes seen, median size of the relative error of late, and the share of
    all outcomes that stayed within each promised quantile (nan: none seen).
    """

    seen: int
    error: float
    coverage: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Score:
    """How far one backend's forecast can be trusted; ``changes``: how often the backend was found to have changed."""

    state: str
    ttft: Accuracy
    tpot: Accuracy
    e2e: Accuracy
    changes: int


class Books:
    """The counts of one backend."""

    __slots__ = ("_covered", "_error", "_kept", "seen")

    def __init__(self) -> None:
        self.seen = [0, 0, 0]
        self._kept = [[0] * len(QUANTILES) for _ in range(3)]
        self._error = [ERROR_START] * 3
        self._covered = 0.9

    def note(self, metric: int, score: float, promised: Sequence[float], width: float) -> None:
        """An outcome ``score`` widths off its prediction, for which these spreads were promised."""
        self.seen[metric] += 1
        kept = self._kept[metric]
        for i, spread in enumerate(promised):
            if score <= spread:
                kept[i] += 1
        size = abs(score) * width
        # Up when above and down when below settles where half are above.
        self._error[metric] *= ERROR_UP if size > self._error[metric] else 1.0 / ERROR_UP
        if metric == TTFT:
            self._covered += COVERAGE_GAIN * ((score <= promised[_P90]) - self._covered)

    def state(self, before: int) -> int:
        """Whether the forecast may be trusted now."""
        if self.seen[TTFT] < TRUSTED_AFTER:
            return before
        strict = RECOVERED if before == OFF else 1.0
        wrong = any(self._error[metric] > strict * ERROR_OFF[metric] for metric in (TTFT, TPOT))
        return OFF if wrong or self._covered < COVERAGE_OFF / strict else TRUSTED

    def accuracy(self, metric: int) -> Accuracy:
        """One metric's counts."""
        seen = self.seen[metric]
        shares = [kept / seen if seen else nan for kept in self._kept[metric]]
        error = exp(self._error[metric]) - 1.0 if seen else nan
        return Accuracy(seen, error, dict(zip(QUANTILES, shares, strict=True)))
