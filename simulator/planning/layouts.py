"""How cards hold a model: tensor parallelism within a node, pipeline stages over what is left.

Assumes: TP is a power of two that divides the heads and stays in one node (one all-reduce domain); memory is what
``router.core.physics`` says of a shape. Must not depend on prices or on a load.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from router.core.cards import Card
from router.core.errors import DoesNotFit
from router.core.models import Model
from router.core.physics import Shape, kv_capacity_tokens

_TP: Final = (1, 2, 4, 8, 16, 32, 64)
_STAGES_MOST: Final = 64


def tensor_sizes(on: Card, model: Model) -> list[int]:
    """The TP sizes that one node can have of a model."""
    return [tp for tp in _TP if tp <= on.cards_per_node and model.heads % tp == 0]


def growing(on: Card, model: Model) -> Iterator[tuple[int, int]]:
    """(TP, PP) by number of cards: TP as far as a node and the heads allow, stages of that TP beyond."""
    sizes = tensor_sizes(on, model)
    yield from ((tp, 1) for tp in sizes)
    yield from ((sizes[-1], pp) for pp in range(2, min(model.layers, _STAGES_MOST) + 1))


def kv_left(shape: Shape, memory_utilization: float = 0.9) -> int:
    """Tokens of KV beside the weights; 0 where they do not fit."""
    try:
        return kv_capacity_tokens(shape, memory_utilization)
    except DoesNotFit:
        return 0


def smallest(shape: Shape, kv_tokens: int, memory_utilization: float = 0.9) -> tuple[Shape, int] | None:
    """*shape* on the fewest cards that hold weights and *kv_tokens* of KV, and the tokens they hold; None: on none."""
    for tp, pp in growing(shape.card, shape.model):
        on_these = replace(shape, tp=tp, pp=pp)
        held = kv_left(on_these, memory_utilization)
        if held >= kv_tokens:
            return on_these, held
    return None
