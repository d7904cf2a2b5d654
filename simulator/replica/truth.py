"""The truth of one replica: its real step times, which no router can read.

The form is the roofline of `router.core.physics`; the numbers are that form's coefficients times
hidden factors drawn from a seed, with a roof of another sharpness, the API server's overhead, a
drift over time and sometimes a slow node. Nothing of it is passed to a policy, unless the pool says
``belief: given``; the report states the truth of the run.

A step with ``b`` decoding sequences over ``S`` tokens of context and ``n`` prompt tokens is
``base[b, n] + context_s * S + pair_s * pairs``: linear in S, so k decode-only steps in a row cost
``k * (base + context_s * S) + context_s * b * k (k - 1) / 2``, and need not be walked one by one.
"""

from dataclasses import dataclass, replace
from math import exp
from random import Random
from typing import Final

import numpy as np

from router.core.physics import StepCoefficients, step_terms
from router.core.types import Fact


@dataclass(frozen=True, slots=True)
class HiddenFactors(Fact):
    """What a seed draws for each replica. Spreads are standard deviations of log factors.

    ``spread``: between replicas, for each term of the step on its own; ``slow_share`` of the nodes are
    ``slow_factor`` times slower; ``drift``: wander of a replica's speed, redrawn every ``drift_every_s``;
    ``api_s`` and ``api_token_s``: the API server's work on a request before the engine sees it, give or
    take ``api_jitter`` of it; ``bias``: every step of every replica that much slower than the data sheet says.
    """

    spread: float = 0.15
    slow_share: float = 0.0
    slow_factor: float = 1.5
    drift: float = 0.03
    drift_every_s: float = 10.0
    api_s: float = 0.004
    api_token_s: float = 1e-6
    api_jitter: float = 0.5
    bias: float = 1.0

    def __post_init__(self) -> None:
        """ValueError names the field and what was expected."""
        for name in ("spread", "drift", "api_s", "api_token_s", "api_jitter", "slow_share"):
            if getattr(self, name) < 0:
                raise ValueError(f"truth: {name} must be 0 or more, got {getattr(self, name)}")
        for name in ("slow_factor", "drift_every_s", "bias"):
            if getattr(self, name) <= 0:
                raise ValueError(f"truth: {name} must be above 0, got {getattr(self, name)}")


EXACT: Final = HiddenFactors(spread=0.0, drift=0.0, api_s=0.0, api_token_s=0.0, api_jitter=0.0)
"""No hidden factors: the truth is the data sheet itself. For tests and lower bounds."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The true step of one replica; seconds throughout."""

    coefficients: StepCoefficients
    hidden: HiddenFactors
    seed: int
    slow: bool = False

    @property
    def context_s(self) -> float:
        """Seconds a step grows by for each token of context being decoded over."""
        return self.coefficients.context_s / self.coefficients.stages

    @property
    def pair_s(self) -> float:
        """Seconds for one (prompt token, token before it) pair."""
        return self.coefficients.token_context_s

    def decode_base_s(self, seqs_max: int) -> list[float]:
        """Element b: a step in which b sequences decode, without the reading of their context."""
        c = self.coefficients
        roof = self.roof_s(seqs_max)
        return [c.fixed_s + c.seq_s * b / c.stages + roof[-(-b // c.stages)] for b in range(seqs_max + 1)]

    def roof_s(self, tokens_max: int) -> list[float]:
        """Element n: what n tokens in a step add to the dense weight read (experts and compute, softly joined)."""
        c = self.coefficients
        decoding = c.stages * np.arange(tokens_max + 1, dtype=np.float64)
        return [float(x) for x in np.asarray(step_terms(c, decoding, 0.0).token_s)]

    def prompt_token_s(self) -> float:
        """Seconds a prompt token adds beside the roof: communication."""
        return self.coefficients.token_s - self.coefficients.gemm_token_s

    @property
    def eager_s(self) -> float:
        """What prompts add to a step at least: its kernels are launched one by one."""
        return self.coefficients.eager_s


def true_of(prior: StepCoefficients, hidden: HiddenFactors, seed: int, name: str) -> Truth:
    """The truth of replica *name* under *seed*: the prior's form with numbers of its own."""
    draw = Random(f"{seed}/{name}")
    slow = draw.random() < hidden.slow_share
    scale = hidden.bias * (hidden.slow_factor if slow else 1.0)
    read, compute, overhead, context, pairs = (scale * exp(hidden.spread * draw.gauss(0.0, 1.0)) for _ in range(5))
    sharpness = prior.roof_power * exp(2 * hidden.spread * draw.gauss(0.0, 1.0))
    comm_s = prior.token_s - prior.gemm_token_s
    truth = replace(
        prior,
        fixed_s=prior.weights_s * read + (prior.fixed_s - prior.weights_s) * overhead,
        seq_s=prior.seq_s * overhead,
        context_s=prior.context_s * context,
        token_s=prior.gemm_token_s * compute + comm_s * overhead,
        token_context_s=prior.token_context_s * pairs,
        weights_s=prior.weights_s * read,
        gemm_token_s=prior.gemm_token_s * compute,
        experts_s=prior.experts_s * read,
        eager_s=prior.eager_s * overhead,
        roof_power=max(1.5, sharpness),
        first_token_s=hidden.api_s,
    )
    return Truth(truth, hidden, draw.getrandbits(48), slow)


_KEEP: Final = 0.9  # correlation of neighbouring draws of a drift
_FRESH: Final[float] = (1 - _KEEP**2) ** 0.5


class Drift:
    """The wander of one replica's speed: a factor that holds for ``drift_every_s`` at a time.

    Drawn in order of time as a first-order autoregression (correlation 0.9 between neighbours), so that the
    same moments see the same factors whatever the moments at which the drift is read.
    """

    __slots__ = ("_draw", "_every_s", "_next_s", "_sigma", "_value", "factor", "until_s")

    def __init__(self, truth: Truth) -> None:
        """Start of time; with no drift the factor is 1 for ever."""
        self._draw = Random(truth.seed)
        self._sigma, self._every_s = truth.hidden.drift, truth.hidden.drift_every_s
        self._value = self._draw.gauss(0.0, 1.0)
        self.factor = exp(self._sigma * self._value)
        self._next_s = self.until_s = self._every_s if self._sigma else float("inf")

    def move(self, now_s: float) -> None:
        """Bring ``factor`` and ``until_s`` to *now_s*."""
        while self._next_s <= now_s:
            self._value = _KEEP * self._value + _FRESH * self._draw.gauss(0.0, 1.0)
            self._next_s += self._every_s
        self.until_s = self._next_s
        self.factor = exp(self._sigma * self._value)
