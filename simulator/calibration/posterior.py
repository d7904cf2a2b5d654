"""The most probable values of logarithms with a normal prior, given relative errors with outliers.

Residuals are logarithms of predicted over measured, Student-t distributed with a scale of ``NOISE``. Must not depend on
what the values are, or on how residuals follow from them.

Iterated weights (so that odd rows do not bend the rest; Lange, Little & Taylor 1989) and Levenberg-Marquardt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]

NOISE: Final = 0.1
_STUDENT: Final = 3.0
_GAIN_LEAST: Final = 1e-4
"""Of the logarithm of the posterior: a step that gains less is the last."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """*residuals* of values; their *jacobian* given values and residuals; prior and spread of the values; a
    *weight* for each residual, 1 for one that counts in full."""

    residuals: Callable[[Column], Column]
    jacobian: Callable[[Column, Column], NDArray[np.float64]]
    prior: Column
    spread: Column
    weight: Column

    def loss(self, values: Column) -> float:
        """Minus the logarithm of the posterior, up to a constant."""
        off = self.residuals(values)
        surprise = self.weight * (_STUDENT + 1) / 2 * np.log1p((off / NOISE) ** 2 / _STUDENT)
        return float(surprise.sum() + ((values - self.prior) ** 2 / self.spread**2).sum() / 2)

    def curvature(self, values: Column) -> tuple[Column, NDArray[np.float64]]:
        """Gradient and Gauss-Newton Hessian of the loss, with each residual weighted by Student's t distribution."""
        off = self.residuals(values)
        w = self.weight / NOISE**2 * (_STUDENT + 1) / (_STUDENT + (off / NOISE) ** 2)
        jacobian = self.jacobian(values, off)
        gradient = jacobian.T @ (w * off) + (values - self.prior) / self.spread**2
        return gradient, (jacobian.T * w) @ jacobian + np.diag(1 / self.spread**2)

    def most_probable(self, rounds: int) -> Column:
        """The values after at most *rounds* steps from the prior; fewer when a step no longer gains anything."""
        values, damping = self.prior.copy(), 1e-2
        gradient, hessian = self.curvature(values)
        loss = self.loss(values)
        for _ in range(rounds):
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), -gradient)
            trial = values + np.clip(step, -1.0, 1.0)
            reached = self.loss(trial)
            gained = loss - reached
            damping = damping * 0.3 if gained > 0 else damping * 5
            if gained > 0:
                values, loss = trial, reached
                if gained < _GAIN_LEAST:
                    break
                gradient, hessian = self.curvature(values)
        return values

    def standard_errors(self, values: Column) -> Column:
        """The standard error of each value at *values*."""
        return np.asarray(np.sqrt(np.diag(np.linalg.inv(self.curvature(values)[1]))))
