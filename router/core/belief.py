"""What we hold true of each backend: its physics, corrected by what it was seen to do, and how far off we tend to be.

Believes: data-sheet physics (``Backend.prior``) times two learnt ratios a backend, one for the way to the first token
and one for the pace after it. Must not know: what is true in the simulator; it learns there as it does in production,
from the streams it sent.

A ratio is learnt in log space, so that half and double weigh the same, by a running mean whose gain never falls below
``GAIN_MIN``: old evidence fades and a backend that changes is learnt anew. Tails are empirical, not assumed: the last
``WINDOW`` ratios of actual to predicted give the factor that turns a mean into a quantile (split conformal prediction,
Vovk et al. 2005, on a sliding window).
"""

from math import exp, log
from typing import Final

import numpy as np

from router.core.fleet import Floats
from router.core.types import Backend

TTFT, TPOT, E2E = range(3)
QUANTILES: Final = (0.5, 0.9, 0.95, 0.99)
WINDOW: Final = 128
REFRESH: Final = 8  # observations between two readings of the window: the quantiles of 128 move little in 8
GAIN_MIN: Final = 0.08  # half of the weight on the last 8 streams: re-learns a step change within 30
PRIOR_WEIGHT: Final = 2.0  # the data sheet counts as two observations
OUTLIER: Final = log(8.0)  # an innovation beyond 8 times says something about that request, not the backend
PRIOR_TAIL: Final = (1.0, 1.35, 1.5, 2.0)  # before anything was seen: a lognormal of sigma 0.25, widened
FIXED, SEQ, CONTEXT, TOKEN, TOKEN_CONTEXT, FIRST = range(6)


class Belief:
    """Columns over the ledger's slots: coefficients of the step, learnt ratios, tail factors."""

    def __init__(self, capacity: int = 16) -> None:
        self.lengths = Lengths()
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        old = getattr(self, "coefficients", None)
        keep = 0 if old is None else old.shape[1]
        for name, shape, fill in (
            ("coefficients", (6, capacity), 0.0),
            ("ratio", (2, capacity), 1.0),
            ("_seen", (3, capacity), 0.0),
            ("_window", (3, WINDOW, capacity), 0.0),
            ("_tail", (3, len(QUANTILES), capacity), 1.0),
        ):
            column = np.full(shape, fill)
            if keep:
                column[..., :keep] = getattr(self, name)
            setattr(self, name, column)

    coefficients: Floats  # rows FIXED..FIRST: seconds, see physics.StepCoefficients
    ratio: Floats  # rows TTFT, TPOT: actual over what the prior says
    _seen: Floats
    _window: Floats
    _tail: Floats

    def joined(self, slot: int, backend: Backend) -> None:
        """Start from the data sheet for what is now in ``slot``."""
        while slot >= self.coefficients.shape[1]:
            self._allocate(2 * self.coefficients.shape[1])
        p = backend.prior
        self.coefficients[:, slot] = (p.fixed_s, p.seq_s, p.context_s, p.token_s, p.token_context_s, p.first_token_s)
        self.ratio[:, slot] = 1.0
        self._seen[:, slot] = 0.0
        self._tail[:, :, slot] = np.array(PRIOR_TAIL)

    def saw(self, metric: int, slot: int, predicted_s: float, actual_s: float) -> None:
        """Fold in one outcome: what was predicted when the request was sent, and what happened."""
        if not (predicted_s > 0.0 and actual_s > 0.0):  # nan: nothing was predicted
            return
        error = log(actual_s / predicted_s)
        seen = int(self._seen[metric, slot])
        self._window[metric, seen % WINDOW, slot] = error
        self._seen[metric, slot] = seen + 1
        if metric != E2E:
            gain = max(GAIN_MIN, 1.0 / (seen + 1.0 + PRIOR_WEIGHT))
            self.ratio[metric, slot] *= exp(gain * min(OUTLIER, max(-OUTLIER, error)))
        if seen % REFRESH == REFRESH - 1:
            self._refresh(metric, slot, min(seen + 1, WINDOW))

    def _refresh(self, metric: int, slot: int, count: int) -> None:
        """Quantile k of n sits at rank ceil((n + 1) q): the finite-sample correction that conformal coverage needs."""
        errors = np.sort(self._window[metric, :count, slot])
        for row, q in enumerate(QUANTILES):
            rank = int(np.ceil((count + 1) * q))
            spread = errors[rank - 1] if rank <= count else errors[-1] + 0.1
            self._tail[metric, row, slot] = exp(spread)

    def tail(self, metric: int, quantile: float) -> Floats:
        """Factor from predicted mean to the quantile, one a slot; between the kept quantiles it is interpolated."""
        rows: Floats = self._tail[metric]
        if quantile in QUANTILES:
            kept: Floats = rows[QUANTILES.index(quantile)]
            return kept
        above = min(sum(q < quantile for q in QUANTILES), len(QUANTILES) - 1)
        below = max(above - 1, 0)
        low, high = QUANTILES[below], QUANTILES[above]
        share = 0.0 if high == low else min(max((quantile - low) / (high - low), 0.0), 1.0)
        between: Floats = rows[below] + share * (rows[above] - rows[below])
        return between

    def seen(self, slot: int) -> int:
        """First tokens observed on this backend."""
        return int(self._seen[TTFT, slot])


class Lengths:
    """How many tokens replies have: nobody knows at arrival, so means by model and SLO class are kept.

    The start is the mean of production chat: 211 output tokens (Azure LLM inference trace 2023, conversation).
    """

    START: Final = 211.0
    GAIN_MIN: Final = 0.02

    def __init__(self) -> None:
        self._mean: dict[tuple[str, str], tuple[float, int]] = {}

    def saw(self, model: str, slo_class: str, output_tokens: int) -> None:
        """Fold in one finished reply."""
        mean, seen = self._mean.get((model, slo_class), (self.START, 0))
        gain = max(self.GAIN_MIN, 1.0 / (seen + 2.0))
        self._mean[model, slo_class] = (mean + gain * (output_tokens - mean), seen + 1)

    def expected(self, model: str, slo_class: str, cap: int = 0) -> float:
        """Expected output tokens of a new request; never above its own cap (0: none)."""
        mean = self._mean.get((model, slo_class), (self.START, 0))[0]
        return min(mean, cap) if cap else mean
