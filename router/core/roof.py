"""The soft roof of a step, as a table a backend: how much tokens in a step add to the dense weight read.

Assumes: ``StepCoefficients``' experts and compute, softly joined with the weight read (``step.py``). Raising to powers
is what a decision over a thousand backends cannot afford, so the curve is read from ``ROOF_POINTS`` places, dense
where it bends (near no tokens at all) and linear in between (``kernels.roof_s``). Must not depend on: what any backend
really did.
"""

from math import sqrt

import numpy as np

from router.core.arrays import Floats
from router.core.columns import ROOF_POINTS
from router.core.physics import StepCoefficients, step_terms


class Roofs:
    """One row a slot: seconds at ``tokens_max * (i / (ROOF_POINTS - 1)) ** 2`` tokens."""

    def __init__(self, capacity: int) -> None:
        self.rows = np.zeros((capacity, ROOF_POINTS))

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        rows = np.zeros((capacity, ROOF_POINTS))
        rows[: len(self.rows)] = self.rows
        self.rows = rows

    def joined(self, slot: int, prior: StepCoefficients, tokens_max: float) -> float:
        """Draw the curve of what is now in ``slot``; returns its scale, places per root of a token."""
        tokens = tokens_max * np.linspace(0.0, 1.0, ROOF_POINTS) ** 2
        self.rows[slot] = roof_s(prior, tokens)
        return (ROOF_POINTS - 1) / sqrt(tokens_max)


def roof_s(prior: StepCoefficients, tokens: Floats) -> Floats:
    """``step_terms``' token term without the part that is linear in prompt tokens: a batch of one token a sequence."""
    return np.asarray(step_terms(prior, tokens * prior.stages, 0.0).token_s, dtype=np.float64)
