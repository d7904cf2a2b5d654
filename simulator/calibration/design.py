"""Measurements as columns: the ideal roofline of each, and which table rows it depends on.

One row is one measurement. Must not depend on the tables' values or on how a fit changes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core.coefficients import row_names
from router.core.errors import DoesNotFit
from router.core.physics import Ideal, ideal, kv_capacity_tokens
from router.core.step import tokens_a_step
from simulator.calibration.measurements import Measurement

Column = NDArray[np.float64]

PREFILL_FIRST: Final = {"sglang", "vllm-2024", "vllm-2023"}
"""Engines whose scheduler runs waiting prompts before any decode and not in one step with it: SGLang without
``--enable-mixed-chunk``, vLLM before V1 without ``--enable-chunked-prefill``."""


@dataclass(frozen=True, slots=True)
class Design:
    """Columns over measurements. ``rows`` maps a table to the row name each measurement reads of it.
    ``waited_s`` is the measured first token, 0 where there was none; ``prefill_first``: see ``PREFILL_FIRST``;
    ``drafted``: tokens a sequence proposes a step, ``yielded``: those it gains by it; ``running_most``: sequences
    that the KV cache holds at a time."""

    best: Ideal
    rows: dict[str, NDArray[np.str_]]
    batch: Column
    prompt_tokens: Column
    output_tokens: Column
    lockstep: NDArray[np.bool_]
    waited_s: Column
    prefill_first: NDArray[np.bool_]
    drafted: Column
    yielded: Column
    running_most: Column


def design(measured: Sequence[Measurement]) -> Design:
    """The columns of *measured*, in its order."""
    each = [ideal(m.shape) for m in measured]
    names = [row_names(m.shape.engine, m.shape.card.family, m.shape.card.link, m.shape.stored) for m in measured]
    return Design(
        best=Ideal(**{f.name: _stacked(each, f.name) for f in fields(Ideal)}),
        rows={table: np.array([name[table] for name in names]) for table in names[0]},
        batch=column(measured, "batch"),
        prompt_tokens=column(measured, "prompt_tokens"),
        output_tokens=column(measured, "output_tokens"),
        lockstep=np.array([m.lockstep for m in measured]),
        waited_s=np.nan_to_num(column(measured, "ttft_s"), nan=0.0),
        prefill_first=np.array([m.shape.engine in PREFILL_FIRST for m in measured]),
        drafted=column(measured, "drafted"),
        yielded=np.array([tokens_a_step(m.acceptance, int(m.drafted)) for m in measured]),
        running_most=np.array([_running_most(m) for m in measured], dtype=np.float64),
    )


_UNPAGED: Final = {"transformers", "fastertransformer", "deepspeed", "megatron", "llamacpp", "llamacpp-2024"}
"""Engines that hold all of a batch or fail: what ran had room."""


def _running_most(m: Measurement) -> float:
    """Sequences that fit at a time: of a static batch with all of their tokens, else with half of the output."""
    if m.shape.engine in _UNPAGED:
        return inf
    try:
        held = kv_capacity_tokens(m.shape)
    except DoesNotFit:  # it did fit, so how much was left is not known
        return inf
    return max(1.0, held / (m.prompt_tokens + m.output_tokens * (1.0 if m.lockstep else 0.5)))


def column(measured: Sequence[Measurement], name: str) -> Column:
    """One field of every measurement."""
    return np.array([getattr(m, name) for m in measured], dtype=np.float64)


def _stacked(each: Sequence[Ideal], name: str) -> Any:
    return np.array([getattr(one, name) for one in each], dtype=np.float64)
