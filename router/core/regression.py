"""What each term of a backend's step really costs, as a factor on its data sheet, learnt from its streams.

Assumes: a time is a sum of terms whose sizes at factor 1 physics gives; factors are lognormal around 1 with the data
sheet's own errors, and wander. Learning is Bayesian linear regression on the log factors, in recursive form (a Kalman
filter; West & Harrison 1997, ch. 4): to first order the log of the sum moves by each term's *share* of it, so the
shares are the features. In logs factors stay above 0, half and double weigh the same, and a backend that is three times
slower in all it does is exactly linear. Must not depend on: queues, requests, or how a forecast is put together.

Robust in two ways. One strange outcome: its standardised innovation is clipped (Huber 1964). A backend that has
changed (restart, throttling): a run of innovations to one side is no chance (CUSUM, Page 1954), so the variance of
what was learnt is raised, as a whole and term by term, and the next few outcomes settle it.
"""

from typing import Any, Final

import numpy as np

from router.core import loops
from router.core.arrays import Floats
from router.core.columns import CHANGES, SEEN, TERMS, WATCH
from router.core.estimators import WANDER_EVERY

WANDER: Final = 0.03  # standard deviation, an outcome, of each log factor, as a share of its data sheet's error
WANDER_ALL: Final = 0.01  # and of all of them together
NOISE_START: Final = 0.15**2


class Regression:
    """One row a slot; ``factor`` has a column a term."""

    factor: Floats

    def __init__(self, capacity: int, kinds: int) -> None:
        """``kinds`` of outcome, each with a noise of its own."""
        self._kinds = kinds
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        self.factor = np.ones((capacity, TERMS))
        self._log = np.zeros((capacity, TERMS))
        self._covariance = np.zeros((capacity, TERMS, TERMS))
        self._wander = np.zeros((capacity, TERMS, TERMS))
        self._variance = np.zeros((capacity, TERMS))  # of the data sheet
        self._noise = np.full((capacity, self._kinds), NOISE_START)
        self._watch = np.zeros((capacity, WATCH))

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        before = self._columns()
        self._allocate(capacity)
        for column, known in zip(self._columns(), before, strict=True):
            column[: len(known)] = known

    def _columns(self) -> tuple[Floats, ...]:
        """All columns, one row per slot."""
        return self.factor, self._log, self._covariance, self._wander, self._variance, self._noise, self._watch

    def joined(self, slot: int, sigma: tuple[float, ...]) -> None:
        """Start from the data sheet, whose relative errors are ``sigma``."""
        variance = np.square(sigma)
        self._variance[slot] = variance
        self._log[slot] = 0.0
        self.factor[slot] = 1.0
        self._covariance[slot] = np.diag(variance)
        self._wander[slot] = WANDER_EVERY * (np.diag(WANDER**2 * variance) + WANDER_ALL**2)
        self._noise[slot] = NOISE_START
        self._watch[slot] = 0.0

    def update(
        self, slot: int, kind: int, terms_s: Floats, constant_s: float, actual_s: float, log_variance: float = 0.0
    ) -> float:
        """Fold in one outcome that should have taken the terms, at their factors, and ``constant_s``.

        ``log_variance``: variance of the log of this prediction that has nothing to do with factors (a queue's chance).
        Returns the log of actual over predicted that is left, to first order, after learning. Both must be above 0.
        """
        return loops.learn(
            self.factor,
            self._log,
            self._covariance,
            self._wander,
            self._variance,
            self._noise,
            self._watch,
            slot,
            kind,
            terms_s,
            constant_s,
            actual_s,
            log_variance,
        )

    def widen(self, slot: int) -> None:
        """What was learnt may hold no longer: keep it, and let the next few outcomes settle it."""
        loops.widen(self._covariance, self._variance, self._watch, slot)

    def changes(self, slot: int) -> int:
        """How often the backend was found to have changed."""
        return int(self._watch[slot, CHANGES])

    def plain(self, slot: int) -> dict[str, Any]:
        """What was learnt of one backend as plain numbers."""
        return {
            "log_factor": self._log[slot].tolist(),
            "covariance": self._covariance[slot].tolist(),
            "noise": self._noise[slot].tolist(),
            "seen": int(self._watch[slot, SEEN]),
        }

    def adopt(self, slot: int, plain: dict[str, Any]) -> None:
        """Take over what ``plain`` wrote elsewhere."""
        self._log[slot] = plain["log_factor"]
        self._covariance[slot] = plain["covariance"]
        self.factor[slot] = np.exp(self._log[slot])
        self._noise[slot] = plain["noise"]
        self._watch[slot, SEEN] = plain["seen"]
