"""Rows that no engine can have shown: a gap shorter than the bytes of a step take at all of the sheet's bandwidth.

Depends on data sheets and shapes alone. Must not depend on the efficiency tables.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Final

from router.core.physics import ideal
from router.core.step import tokens_a_step
from simulator.calibration.measurements import Measurement, Observed, Skipped

_TOLERANCE: Final = 0.95
"""Of the sheet's time: cards differ a little from their sheets."""
_SLICED_MOST: Final = 1.7
"""How much longer narrow slices of experts take than their bytes, at most."""


def possible(rows: Sequence[Observed]) -> tuple[list[Observed], list[Skipped]]:
    """The rows that can be, and why the others cannot."""
    kept, skipped = [], []
    for each in rows:
        m = each.seen
        gap_s, floor_s = m.tpot_s if isfinite(m.tpot_s) else m.derived_tpot_s, floor_of(m)
        if gap_s < _TOLERANCE * floor_s:
            skipped.append(Skipped(each.line, _why(gap_s, floor_s), unreadable=True))
        else:
            kept.append(each)
    return kept, skipped


def floor_of(m: Measurement) -> float:
    """Seconds a token takes at least: the weights of one token and, in a static batch, the context of all (of a closed
    loop, some may wait)."""
    best = ideal(m.shape)
    weights_s = best.weights_s + best.expert_share * best.experts_s / _SLICED_MOST
    context_s = m.batch * m.prompt_tokens * best.context_s / best.stages if m.lockstep else 0.0
    return (weights_s + context_s) / tokens_a_step(m.acceptance, int(m.drafted))


def _why(gap_s: float, floor_s: float) -> str:
    return (
        f"{gap_s * 1e3:.3g} ms a token is less than the {floor_s * 1e3:.3g} ms that reading weights and context takes "
        "at all of the sheet's bandwidth: left out"
    )
