"""The soft roof of a step, as a table a backend: how much tokens in a step add to the dense weight read.

Believes: ``StepCoefficients``' experts and compute, softly joined with the weight read (``step.py``). Raising to powers
is what a decision over a thousand backends cannot afford, so the curve is read from ``POINTS`` places, dense where it
bends (near no tokens at all) and linear in between. Must not know: what any backend really did.
"""

from math import sqrt
from typing import Final

import numpy as np

from router.core.ledger import Floats, Slots
from router.core.physics import StepCoefficients, step_terms

POINTS: Final = 128


class Roofs:
    """One row a slot: seconds at ``tokens_max * (i / (POINTS - 1)) ** 2`` tokens."""

    def __init__(self, capacity: int) -> None:
        self._rows = np.zeros((capacity, POINTS))
        self._scale = [1.0] * capacity

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        rows = np.zeros((capacity, POINTS))
        rows[: len(self._rows)] = self._rows
        self._rows = rows
        self._scale += [1.0] * (capacity - len(self._scale))

    def joined(self, slot: int, prior: StepCoefficients, tokens_max: float) -> float:
        """Draw the curve of what is now in ``slot``; returns its scale, places per root of a token."""
        tokens = tokens_max * np.linspace(0.0, 1.0, POINTS) ** 2
        self._rows[slot] = roof_s(prior, tokens)
        self._scale[slot] = (POINTS - 1) / sqrt(tokens_max)
        return self._scale[slot]

    def at(self, slots: Slots, tokens: Floats, scale: Floats) -> Floats:
        """Seconds for ``tokens`` (rows of one column a slot) in a step; ``scale``: of these slots, as ``joined`` gave.

        Beyond the table its last slope goes on.
        """
        place = np.sqrt(tokens)
        place *= scale
        below = np.minimum(place, POINTS - 1.001).astype(np.intp)
        place -= below
        below += slots * POINTS
        low = self._rows.take(below)
        below += 1
        high = self._rows.take(below)
        high -= low
        high *= place
        high += low
        return high

    def one(self, slot: int, tokens: float) -> float:
        """The same for one slot and number of tokens."""
        place = sqrt(tokens) * self._scale[slot]
        below = min(int(place), POINTS - 2)
        row = self._rows[slot]
        low = float(row[below])
        return low + (place - below) * (float(row[below + 1]) - low)


def roof_s(prior: StepCoefficients, tokens: Floats) -> Floats:
    """``step_terms``' token term without the part that is linear in prompt tokens: a batch of one token a sequence."""
    return np.asarray(step_terms(prior, tokens * prior.stages, 0.0).token_s, dtype=np.float64)
