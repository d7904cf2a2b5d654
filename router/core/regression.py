"""What each term of a backend's step really costs, as a factor on its data sheet, learnt from its streams.

Believes: a time is a sum of terms whose sizes at factor 1 physics gives; factors are lognormal around 1 with the data
sheet's own errors, and wander. Learning is Bayesian linear regression on the log factors, kept recursive (a Kalman
filter; West & Harrison 1997, ch. 4): to first order the log of the sum moves by each term's *share* of it, so the
shares are the features. In logs factors stay above 0, half and double weigh the same, and a backend that is three times
slower in all it does is exactly linear. Must not know: queues, requests, or how a forecast is put together.

Robust in two ways. One strange outcome: its standardised innovation is clipped (Huber 1964). A backend that has
changed (restart, throttling): a run of innovations to one side is no chance (CUSUM, Page 1954), so what was learnt is
doubted again, as a whole and term by term, and the next few outcomes settle it.
"""

from math import log, sqrt
from typing import Any, Final

import numpy as np

from router.core.ledger import Floats

FIXED, SEQ, CONTEXT, TOKEN, PAIR, FIRST = range(6)
TERMS: Final = 6
CLIP: Final = 2.5  # standard deviations of an innovation that count in full
SLACK, ALARM = 0.75, 6.0  # CUSUM: what is chance, and what is a change; false alarms about once in 8,000 outcomes
WANDER: Final = 0.03  # standard deviation, an outcome, of each log factor, as a share of its data sheet's error
WANDER_ALL: Final = 0.01  # and of all of them together
CHANGE_ALL: Final = 0.5  # what a change may do to all factors at once (restart, half speed: log 2 = 0.7)
CHANGE_EACH: Final = 0.5  # and to each of them, as a share of its data sheet's error
NOISE_START: Final = 0.15**2
NOISE_MIN, NOISE_MAX = 0.02**2, 1.0
NOISE_GAIN: Final = 0.04
WANDER_EVERY: Final = 4  # outcomes that wander at once: cheaper, and as far
BOUND_EVERY: Final = 32  # outcomes between two checks that doubt has not outgrown the data sheet's


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
        self._sigma = np.zeros((capacity, TERMS))
        self._noise = [[NOISE_START] * capacity for _ in range(self._kinds)]
        self._above = [0.0] * capacity
        self._below = [0.0] * capacity
        self._seen = [0] * capacity
        self.changes = [0] * capacity

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        old = dict(vars(self))
        count = len(self.changes)
        self._allocate(capacity)
        for name in ("factor", "_log", "_covariance", "_wander", "_sigma"):
            getattr(self, name)[:count] = old[name]
        for name in ("_above", "_below", "_seen", "changes"):
            getattr(self, name)[:count] = old[name]
        for kept, before in zip(self._noise, old["_noise"], strict=True):
            kept[:count] = before

    def joined(self, slot: int, sigma: tuple[float, ...]) -> None:
        """Start from the data sheet, whose relative errors are ``sigma``."""
        variance = np.square(sigma)
        self._sigma[slot] = sigma
        self._log[slot] = 0.0
        self.factor[slot] = 1.0
        self._covariance[slot] = np.diag(variance)
        self._wander[slot] = WANDER_EVERY * (np.diag(WANDER**2 * variance) + WANDER_ALL**2)
        for noise in self._noise:
            noise[slot] = NOISE_START
        self._above[slot] = self._below[slot] = 0.0
        self._seen[slot] = self.changes[slot] = 0

    def saw(self, slot: int, kind: int, terms_s: Floats, beside_s: float, actual_s: float, doubt: float = 0.0) -> float:
        """Fold in one outcome that should have taken the terms, at their factors, and ``beside_s``.

        ``doubt``: variance of the log of this prediction that has nothing to do with factors (a queue's chance).
        Returns the log of actual over predicted that is left, to first order, after learning. Both must be above 0.
        """
        factor = self.factor[slot]
        predicted_s = float(terms_s.dot(factor)) + beside_s
        shares = terms_s * factor
        shares /= predicted_s
        covariance = self._covariance[slot]
        spread = covariance.dot(shares)
        believed = float(shares.dot(spread))
        variance = believed + self._noise[kind][slot] + doubt
        deviation = sqrt(variance)
        error = log(actual_s / predicted_s)
        z = min(CLIP, max(-CLIP, error / deviation))
        self._log[slot] += (z * deviation / variance) * spread
        covariance -= np.multiply.outer(spread, spread / variance)
        np.exp(self._log[slot], out=factor)
        self._learn_noise(slot, kind, (z * deviation) ** 2 - believed - doubt)
        self._watch(slot, z)
        return error - z * deviation * believed / variance

    def _learn_noise(self, slot: int, kind: int, excess: float) -> None:
        noise = self._noise[kind]
        noise[slot] = min(NOISE_MAX, max(NOISE_MIN, noise[slot] + NOISE_GAIN * (excess - noise[slot])))

    def _watch(self, slot: int, z: float) -> None:
        """Doubt what was learnt when innovations keep to one side; keep doubt within the data sheet's."""
        above = self._above[slot] = max(0.0, self._above[slot] + z - SLACK)
        below = self._below[slot] = max(0.0, self._below[slot] - z - SLACK)
        self._seen[slot] += 1
        if above > ALARM or below > ALARM:
            self.changes[slot] += 1
            self.doubt(slot)
        elif self._seen[slot] % WANDER_EVERY == 0:
            self._covariance[slot] += self._wander[slot]
            if self._seen[slot] % BOUND_EVERY == 0:
                self._bound(slot)

    def doubt(self, slot: int) -> None:
        """What was learnt may hold no longer: keep it, and let the next few outcomes settle it."""
        self._above[slot] = self._below[slot] = 0.0
        self._covariance[slot] += np.diag(np.square(CHANGE_EACH * self._sigma[slot])) + CHANGE_ALL**2

    def _bound(self, slot: int) -> None:
        """A term that outcomes say nothing of must not grow ever more uncertain (covariance wind-up)."""
        covariance = self._covariance[slot]
        largest = np.square(self._sigma[slot]) + CHANGE_ALL**2
        shrink = np.minimum(1.0, np.sqrt(largest / np.maximum(covariance.diagonal(), 1e-12)))
        covariance *= np.multiply.outer(shrink, shrink)

    def uncertainty(self, slot: int) -> Floats:
        """Relative standard error of each factor, as believed now."""
        deviations: Floats = np.sqrt(self._covariance[slot].diagonal())
        return deviations

    def plain(self, slot: int) -> dict[str, Any]:
        """What was learnt of one backend as plain numbers."""
        return {
            "log_factor": self._log[slot].tolist(),
            "covariance": self._covariance[slot].tolist(),
            "noise": [noise[slot] for noise in self._noise],
            "seen": self._seen[slot],
        }

    def adopt(self, slot: int, plain: dict[str, Any]) -> None:
        """Take over what ``plain`` wrote elsewhere."""
        self._log[slot] = plain["log_factor"]
        self._covariance[slot] = plain["covariance"]
        self.factor[slot] = np.exp(self._log[slot])
        self._seen[slot] = plain["seen"]
        for noise, value in zip(self._noise, plain["noise"], strict=True):
            noise[slot] = value
