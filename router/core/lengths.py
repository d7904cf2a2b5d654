"""How long replies are, learnt from what engines counted.

Assumes: replies of one model and SLO class share a distribution that drifts slowly. A reply that ended at its own cap
would have gone on: it counts as *at least* so long, not as so long. So the distribution is stored as hazards over
logarithmic bins, the product-limit estimate of survival analysis (Kaplan & Meier 1958), with old replies fading.
Must not depend on: any backend, any queue, any request before it ended.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from math import log, log2, sqrt
from typing import Final

import numpy as np

from router.core.arrays import Floats
from router.core.evidence import ReplyLength

START_TOKENS: Final = 211.0  # mean reply of production chat: Azure LLM inference trace 2023, conversation
START_SIGMA: Final = 1.0  # and its spread on the log scale, rounded
START_WEIGHT: Final = 8.0  # the start counts as so many replies
FADE: Final = 1.0 / 500.0  # a reply's weight halves after 350 more of its kind
BINS_PER_OCTAVE: Final = 4
BINS: Final = 18 * BINS_PER_OCTAVE  # up to 2**18 tokens
REFRESH: Final = 16  # replies between two readings of a distribution: a mean over 500 moves little in 16
WEIGHT_MAX: Final = 1e6  # of one reply, before all are scaled back
CAPS_KEPT: Final = 256  # caps whose estimate is cached between two updates
CURVES_KEPT: Final = 16  # numbers of replies whose longest is cached between two updates
MEAN_GAIN_MIN: Final = 0.02  # of the newest reply in the mean of a model's
PEERS_KINDS_MOST: Final = 4_096  # models and classes that are learnt of from peers alone
NO_WEIGHT: Final = 1e-9  # less weight of replies than this is rounding
_EDGES: Final = 2.0 ** (np.arange(BINS + 1) / BINS_PER_OCTAVE)
_ENDS: Final[list[float]] = _EDGES[1:].tolist()  # of each bin
_STARTS: Final[list[float]] = _EDGES[:-1].tolist()
_MIDDLES: Final = np.sqrt(_EDGES[:-1] * _EDGES[1:])
_TOKENS: Final[list[float]] = _MIDDLES.tolist()
_LOGS: Final[list[float]] = np.log(_MIDDLES).tolist()
_SQUARES: Final[list[float]] = (np.log(_MIDDLES) ** 2).tolist()
ENDED, CUT = range(2)  # rows of weights


@dataclass(frozen=True, slots=True)
class LengthEstimate:
    """A reply not yet begun: its mean length in tokens, and the standard deviation of its log."""

    tokens: float
    spread: float


def _bin(tokens: float) -> int:
    return min(BINS - 1, int(log2(max(1.0, tokens)) * BINS_PER_OCTAVE))


def _reach(ended: list[float], cut: list[float]) -> list[float]:
    """The probability to reach each bin, by the weights of replies that ended, and of those that were cut, in each."""
    total = 0.0
    for i in range(BINS):
        total += ended[i] + cut[i]
    gone, alive = 0.0, 1.0
    reach = [alive]
    for i in range(BINS):
        gone += ended[i] + cut[i]
        at_risk = total - gone + (ended[i] + cut[i])
        if i == BINS - 1:
            alive = 0.0
        elif at_risk > NO_WEIGHT:
            alive *= 1.0 - ended[i] / at_risk
        reach.append(alive)
    return reach


class SurvivalCurve:
    """The probability to reach each bin, and the moments of what ends before it."""

    __slots__ = ("_alive", "below", "reach")

    def __init__(self, reach: list[float]) -> None:
        mean = first = second = 0.0
        alive = reach[0]
        self.reach = reach
        means, firsts, seconds = [0.0], [0.0], [0.0]
        for i in range(BINS):
            before, alive = alive, reach[i + 1]
            mean += (before - alive) * _TOKENS[i]
            first += (before - alive) * _LOGS[i]
            second += (before - alive) * _SQUARES[i]
            means.append(mean)
            firsts.append(first)
            seconds.append(second)
        self._alive: Floats | None = None
        self.below = (means, firsts, seconds)

    @property
    def alive(self) -> Floats:
        """``reach`` as an array."""
        if self._alive is None:
            self._alive = np.array(self.reach)
        return self._alive

    def longest(self, of: int) -> "SurvivalCurve":
        """The same of the longest of so many replies."""
        return SurvivalCurve([1.0 - (1.0 - each) ** of for each in self.reach])

    def quantile(self, quantile: float) -> float:
        """The length that is exceeded with probability 1 - ``quantile``."""
        left, reach = 1.0 - quantile, self.reach
        for i in range(BINS):
            if reach[i + 1] <= left:
                share = (reach[i] - left) / max(reach[i] - reach[i + 1], NO_WEIGHT)
                return float(_STARTS[i] * (_ENDS[i] / _STARTS[i]) ** min(max(share, 0.0), 1.0))
        return float(_ENDS[-1])

    def estimate(self, cap: float) -> LengthEstimate:
        """Of the smaller of a length and its cap (0: none)."""
        whole = bisect_right(_ENDS, cap) if cap else BINS
        mean, first, second = self.below[0][whole], self.below[1][whole], self.below[2][whole]
        if whole < BINS:
            share, log_cap = self.reach[whole], log(cap)
            mean, first, second = mean + share * cap, first + share * log_cap, second + share * log_cap**2
        return LengthEstimate(max(1.0, mean), sqrt(max(0.0, second - first * first)))


class _Replies:
    """One distribution: weights of replies that ended, and of those that were cut, in each bin."""

    __slots__ = ("_curve", "_estimates", "_longest", "_quantiles", "_since", "_weight", "_weights")

    def __init__(self) -> None:
        ended: list[float] = (START_WEIGHT * _START_SHARES).tolist()
        self._weights = (ended, [0.0] * BINS)  # of those that ended, and of those that were cut
        self._weight = 1.0
        self._since = 0
        self._curve: SurvivalCurve | None = None
        self._estimates: dict[int, LengthEstimate] = {}
        self._longest: dict[int, SurvivalCurve] = {}  # of so many replies
        self._quantiles: dict[float, float] = {}

    def update(self, tokens: int, cap: int) -> None:
        """One reply: what is new weighs ever more, which is the same as what is old ever less."""
        self._weights[CUT if cap and tokens >= cap else ENDED][_bin(tokens)] += self._weight
        self._weight *= 1.0 + FADE
        self._since += 1
        if self._since >= REFRESH:
            self._since = 0
            self._curve = None
            self._estimates.clear()
            self._longest.clear()
            self._quantiles.clear()
            self._rescale()

    def _rescale(self) -> None:
        if self._weight > WEIGHT_MAX:
            ended, cut = (np.array(self._weights) / self._weight).tolist()
            self._weights, self._weight = (ended, cut), 1.0

    def _survival(self) -> SurvivalCurve:
        if self._curve is None:
            self._curve = SurvivalCurve(_reach(*self._weights))
        return self._curve

    def longest(self, of: int) -> SurvivalCurve:
        """The curve of the longest of so many replies."""
        known = self._longest.get(of)
        if known is None:
            if len(self._longest) > CURVES_KEPT:
                self._longest.clear()
            known = self._longest[of] = self._survival().longest(of)
        return known

    def survival(self) -> Floats:
        """Element i: the probability to reach bin i; a cut reply was at risk until its cut. As last read."""
        return self._survival().alive

    def estimate(self, cap: int) -> LengthEstimate:
        """Mean and log spread of the smaller of the length and the cap (0: none)."""
        known = self._estimates.get(cap)
        if known is None:
            if len(self._estimates) > CAPS_KEPT:
                self._estimates.clear()
            known = self._estimates[cap] = self._survival().estimate(float(cap))
        return known

    def quantile(self, quantile: float, cap: int) -> float:
        """The length that is exceeded with probability 1 - ``quantile``; straight in its log between the edges."""
        known = self._quantiles.get(quantile)
        if known is None:
            if len(self._quantiles) > CAPS_KEPT:
                self._quantiles.clear()
            known = self._quantiles[quantile] = self._survival().quantile(quantile)
        return min(known, float(cap)) if cap else known

    def plain(self) -> dict[str, list[float]]:
        """The distribution as plain numbers."""
        ended, cut = (np.array(self._weights) / self._weight).tolist()
        return {"ended": ended, "cut": cut}

    @classmethod
    def of(cls, plain: dict[str, list[float]]) -> "_Replies":
        """The distribution that ``plain`` wrote."""
        made = cls()
        ended, cut = np.array([plain["ended"], plain["cut"]], dtype=np.float64).reshape(2, BINS).tolist()
        made._weights = ended, cut
        return made


def _start_shares() -> Floats:
    """A lognormal of mean START_TOKENS over the bins."""
    centre = log(START_TOKENS) - START_SIGMA**2 / 2
    middles = np.log(_EDGES[:-1] * _EDGES[1:]) / 2
    density: Floats = np.exp(-(((middles - centre) / START_SIGMA) ** 2) / 2)
    density /= density.sum()
    return density


_START_SHARES: Final = _start_shares()


class Lengths:
    """Reply lengths by model and SLO class; a length is not known at arrival."""

    def __init__(self) -> None:
        self._replies: dict[tuple[str, str], _Replies] = {}
        self._unseen = _Replies()
        self._means: dict[str, tuple[float, int]] = {}  # of a model's replies of all classes; seen

    def update(self, model: str, slo_class: str, output_tokens: int, cap: int = 0) -> None:
        """Fold in one finished reply and the cap it ran under (0: none)."""
        key = model, slo_class
        replies = self._replies.get(key)
        if replies is None:
            replies = self._replies[key] = _Replies()
        replies.update(output_tokens, cap)
        mean, seen = self._means.get(model, (0.0, 0))
        self._means[model] = mean + max(MEAN_GAIN_MIN, 1.0 / (seen + 1.0)) * (output_tokens - mean), seen + 1

    def learn_from_peer(self, reply: ReplyLength) -> None:
        """Fold in a reply that another router saw end. Classes are named by peers: a bounded number is kept."""
        if (reply.model, reply.slo_class) in self._replies or len(self._replies) < PEERS_KINDS_MOST:
            self.update(reply.model, reply.slo_class, reply.tokens, reply.cap)

    def mean_tokens(self, model: str, otherwise: float) -> float:
        """The mean reply of this model lately, over all SLO classes; ``otherwise`` before any was seen."""
        known = self._means.get(model)
        return known[0] if known else otherwise

    def estimate(self, model: str, slo_class: str, cap: int = 0) -> LengthEstimate:
        """What to expect of a new reply under its own cap (0: none)."""
        return self._replies.get((model, slo_class), self._unseen).estimate(cap)

    def longest(self, model: str, slo_class: str, cap: int, of: int) -> LengthEstimate:
        """What to expect of the longest of so many new replies to one request, each under its cap (0: none)."""
        if of == 1:
            return self.estimate(model, slo_class, cap)
        return self._replies.get((model, slo_class), self._unseen).longest(of).estimate(float(cap))

    def export(self, model: str) -> dict[str, dict[str, list[float]]]:
        """What was learnt of one model's replies, by SLO class, as plain numbers."""
        return {kind: replies.plain() for (name, kind), replies in self._replies.items() if name == model}

    def adopt(self, model: str, learnt: Mapping[str, dict[str, list[float]]]) -> None:
        """Take over classes of which nothing was seen here."""
        for kind, plain in learnt.items():
            self._replies.setdefault((model, kind), _Replies.of(plain))

    def survival(self, model: str, slo_class: str, sequences: int = 1) -> Floats:
        """Element i: the probability that a reply, or the longest of so many, has at least
        ``2 ** (i / BINS_PER_OCTAVE)`` tokens; to be read.
        """
        replies = self._replies.get((model, slo_class), self._unseen)
        return replies.survival() if sequences == 1 else replies.longest(sequences).alive

    def quantile(self, model: str, slo_class: str, quantile: float, cap: int = 0) -> float:
        """Output tokens that a reply exceeds with probability 1 - ``quantile``, or its cap if that is less."""
        return self._replies.get((model, slo_class), self._unseen).quantile(quantile, cap)
