"""One decode step, line by line: the article's floor (bytes of weights / bandwidth), and what an engine adds to it.

A part is what the step loses when its terms of the roofline are taken away, one after the other, so that parts sum to
the step that the router expects, whatever terms physics has. Must not depend on how parts are shown.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import Final

from router.core.cards import Card
from router.core.coefficients import efficiency
from router.core.errors import DoesNotFit
from router.core.models import Model
from router.core.physics import (
    Ideal,
    Shape,
    StepCoefficients,
    belongs_to,
    coefficients,
    combine,
    corrected,
    decode_step_s,
    ideal,
    step_terms,
)
from router.core.profile import NO_PROFILE, Profile
from simulator.calibration.measurements import Measurement
from simulator.planning.fitting import plain_bytes
from simulator.planning.layouts import kv_left

COMMUNICATION: Final = "communication"
KV: Final = "KV cache"
KERNELS: Final = "kernels and launches"
COMPUTE: Final = "compute"
WEIGHTS: Final = "weights"
ENGINE: Final = "scheduler and sampling"

_TAKEN_AWAY: Final[tuple[tuple[str, dict[str, float]], ...]] = (
    (COMMUNICATION, {"reduces": 0.0, "reduce_token_s": 0.0}),
    (KV, {"context_s": 0.0, "context_flop_s": 0.0}),
    (KERNELS, dict.fromkeys(("layers", "expert_layers", "experts", "latent_layers", "linear_layers"), 0.0)),
    (COMPUTE, {"gemm_token_s": 0.0, "experts_gemm_token_s": 0.0}),
    (WEIGHTS, {"weights_s": 0.0, "experts_s": 0.0}),
)
PARTS: Final = (WEIGHTS, KV, COMPUTE, COMMUNICATION, KERNELS, ENGINE)
"""In the order in which they are shown."""


def parts_s(shape: Shape, batch: float, context_tokens: float, profile: Profile = NO_PROFILE) -> dict[str, float]:
    """Seconds of a decode step of *batch* sequences over *context_tokens* in all, by part; their sum is the step.

    *profile* corrects each part as it corrects the step.
    """
    factors = profile.factors(belongs_to(shape))
    use, prior, left = (
        efficiency(shape.engine, shape.card.family, shape.card.link, shape.stored),
        coefficients(shape, profile),
        ideal(shape),
    )
    whole_s = float(decode_step_s(prior, batch, context_tokens))

    def step_s(best: Ideal) -> float:
        made = combine(best, use, prior.sigma)
        return float(decode_step_s(corrected(made, best, factors) if factors else made, batch, context_tokens))

    found: dict[str, float] = {}
    before_s = step_s(left)
    for name, nothing in _TAKEN_AWAY:
        left = replace(left, **nothing)  # type: ignore[arg-type]
        after_s = step_s(left)
        found[name], before_s = before_s - after_s, after_s
    found[ENGINE] = whole_s - sum(found.values())
    return {name: found[name] for name in PARTS}


def relative_error(prior: StepCoefficients, batch: float, context_tokens: float) -> float:
    """Relative standard error of a decode step: the errors of its terms are independent."""
    terms = [float(term) for term in step_terms(prior, batch, context_tokens)]
    return sqrt(sum((term * sigma) ** 2 for term, sigma in zip(terms, prior.sigma, strict=False))) / sum(terms)


_BILLIONS: Final = re.compile(r"(?<![\dx.])(\d+(?:\.\d+)?)b(?![a-z])")
_NEAR: Final = 0.15


def nominal_billions(of: Model) -> float:
    """Billions of parameters that a token is multiplied with, as the name has them (chatglm-6b: 6); of a mixture of
    experts the active ones.
    """
    if of.experts:
        return of.active_params / 1e9
    named = _BILLIONS.search(of.name)
    billions = float(named[1]) if named else 0.0
    return billions if abs(billions * 1e9 / of.params - 1) < _NEAR else of.params / 1e9


@dataclass(frozen=True, slots=True)
class Step:
    """One TP of a model on a card. ``problem``: why it cannot be; all else is 0 then.

    ``floor_s``: the article's, all of the bandwidth; ``parts_s`` and ``expected_s``: what an engine takes;
    ``error``: relative standard error of that; ``measured``: rows of the user's file with this shape.
    """

    tp: int
    read_bytes: float = 0.0
    floor_s: float = 0.0
    parts_s: dict[str, float] | None = None
    expected_s: float = 0.0
    error: float = 0.0
    kv_tokens: int = 0
    measured: tuple[Measurement, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What ``step`` is computed for."""

    model: Model
    card: Card
    precision: str
    engine: str
    batch: int
    context_tokens: int
    profile: Profile = NO_PROFILE
    kv_precision: str | None = None

    @property
    def weight_bytes(self) -> float:
        """By the article: billions in the name x bytes."""
        return nominal_billions(self.model) * 1e9 * plain_bytes(self.precision)


def steps(of: Question, sizes: Sequence[int], measured: Sequence[Measurement] = ()) -> list[Step]:
    """One a TP."""
    return [_step(of, tp, measured) for tp in sizes]


def best(of: Question, found: Sequence[Step]) -> Step | None:
    """The least expected step among those whose cards hold the context; None: none does."""
    fit = [step for step in found if not step.problem and step.kv_tokens >= of.batch * of.context_tokens]
    return min(fit, key=lambda step: step.expected_s, default=None)


def _step(of: Question, tp: int, measured: Sequence[Measurement]) -> Step:
    try:
        shape = Shape(of.card, of.model, tp, 1, of.precision, of.kv_precision, of.engine)
    except DoesNotFit as problem:
        return Step(tp, problem=str(problem))
    if tp > of.card.cards_per_node:
        return Step(tp, problem=f"TP {tp} is more than the {of.card.cards_per_node} cards of a node")
    read = of.weight_bytes / tp
    context = float(of.batch * of.context_tokens)
    parts = parts_s(shape, of.batch, context, of.profile)
    return Step(
        tp,
        read,
        read / of.card.bandwidth_bytes_per_s,
        parts,
        sum(parts.values()),
        relative_error(coefficients(shape, of.profile), of.batch, context),
        kv_left(shape),
        tuple(each for each in measured if _same(each, shape)),
    )


def _same(seen: Measurement, shape: Shape) -> bool:
    """Whether a row measured this card, model, TP and width of weights with a gap between tokens of its own."""
    other = seen.shape
    same = (other.card.name, other.model.name, other.tp, other.pp) == (shape.card.name, shape.model.name, shape.tp, 1)
    return same and plain_bytes(other.precision) == plain_bytes(shape.precision) and isfinite(seen.tpot_s)
