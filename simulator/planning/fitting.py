"""The memory table: how many cards of each kind hold a model at each precision, and the KV that is left.

The sizes are those of the article this project starts from, by which memory = parameters x bytes. Each stands for a
published model of about that size, whose layers and heads decide which TP there is and what a token of KV takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from types import MappingProxyType
from typing import Final

from router.core.cards import Card
from router.core.coefficients import precision
from router.core.models import Model, model
from router.core.physics import Shape
from simulator.planning.layouts import smallest

SIZES: Final = MappingProxyType({
    "7B": "llama-2-7b", "13B": "llama-2-13b", "34B": "yi-34b", "72B": "qwen-72b", "130B": "glm-130b",
    "176B": "bloom-176b", "260B": "ernie-3.0-titan-260b",
})  # fmt: skip
PRECISIONS: Final = ("fp32", "fp16", "fp8", "int8", "int4")
KV_TOKENS: Final = 4_096
"""One conversation of 4k tokens: an engine with less is of no use."""


@dataclass(frozen=True, slots=True)
class Sized:
    """A model under the size that it stands for, in billions of parameters."""

    label: str
    billions: float
    model: Model


def sized(label: str) -> Sized:
    """A size of the article (``72B``), or a model by its name. Raises UnknownModel."""
    key = label.upper()
    of = model(SIZES.get(key, label))
    billions = float(key.removesuffix("B")) if key in SIZES else of.params / 1e9
    return Sized(key if key in SIZES else of.name, billions, of)


def plain_bytes(stored: str) -> float:
    """Bytes of a parameter by the article: whole bits, without the scales that an engine stores beside them."""
    return floor(precision(stored).bytes_per_param * 8) / 8


@dataclass(frozen=True, slots=True)
class Fit:
    """How one model at one precision fits one kind of card; ``cards`` 0: on no number of them.

    ``native``: the card computes in that precision; else its weights are unpacked for every step.
    """

    card: Card
    precision: str
    tp: int
    pp: int
    kv_tokens: int
    native: bool

    @property
    def cards(self) -> int:
        """In all."""
        return self.tp * self.pp


def native(on: Card, stored: str) -> bool:
    """Whether the card computes in that precision; weight-only forms and FP32 are computed in 16 bits on every card."""
    wanted = precision(stored).peaks[0]
    return wanted == "fp16" or wanted in on.flops_per_s


def fits(
    of: Model,
    cards: Sequence[Card],
    precisions: Sequence[str],
    kv_tokens: int = KV_TOKENS,
    memory_utilization: float = 0.9,
    kv_precision: str | None = None,
) -> list[list[Fit]]:
    """One row a card, one cell a precision. Raises ValueError for an unknown precision."""

    def fit(on: Card, stored: str) -> Fit:
        return _fit(Shape(on, of, precision=stored, kv_precision=kv_precision), kv_tokens, memory_utilization)

    return [[fit(on, stored) for stored in precisions] for on in cards]


def _fit(alone: Shape, kv_tokens: int, memory_utilization: float) -> Fit:
    on, stored = alone.card, alone.precision
    found = smallest(alone, kv_tokens, memory_utilization)
    if found is None:
        return Fit(on, stored, 0, 0, 0, native(on, stored))
    shape, held = found
    return Fit(on, stored, shape.tp, shape.pp, held, native(on, stored))
