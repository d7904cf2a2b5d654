"""Rows that no engine can have shown: a gap, or a whole reply, shorter than the bytes of its steps take at all of the
sheet's bandwidth; a first token before the weights could be read once, or the prompt be computed.

Depends on data sheets and shapes alone. Must not depend on the efficiency tables.
"""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Final

from router.core.physics import ideal
from router.core.step import tokens_a_step
from simulator.calibration.measurements import Measurement, Observed, Skipped

_TOLERANCE: Final = 0.95
"""Of the sheet's time: cards differ a little from their sheets."""
_COMPUTED: Final = 0.5
"""Of the sheet's time to compute a prompt: GeForce cards accumulate in FP16 at up to twice their sheet's figure."""
_SLICED_MOST: Final = 1.7
"""How much longer narrow slices of experts take than their bytes, at most."""


def possible(rows: Sequence[Observed]) -> tuple[list[Observed], list[Skipped]]:
    """The rows that can be, and why the others cannot."""
    kept, skipped = [], []
    for each in rows:
        why = next((text for text in _broken(each.seen)), "")
        if why:
            skipped.append(Skipped(each.line, f"{why}: left out", unreadable=True))
        else:
            kept.append(each)
    return kept, skipped


def _broken(m: Measurement) -> Iterator[str]:
    """Every floor that the row is below; a time that was not measured is below none."""
    gap_s, floor_s = m.tpot_s if isfinite(m.tpot_s) else m.derived_tpot_s, floor_of(m)
    reads = "reading weights and context takes at all of the sheet's bandwidth"
    if gap_s < _TOLERANCE * floor_s:
        yield f"{_ms(gap_s)} a token is less than the {_ms(floor_s)} that {reads}"
    if m.e2e_s < _TOLERANCE * m.output_tokens * floor_s:
        least = _ms(m.output_tokens * floor_s)
        yield f"{_ms(m.e2e_s)} for {m.output_tokens:g} tokens is less than the {least} that {reads}"
    best = ideal(m.shape)
    if m.ttft_s < _TOLERANCE * best.weights_s:
        yield (
            f"a first token after {_ms(m.ttft_s)} is earlier than the {_ms(best.weights_s)} that reading the weights "
            "once takes at all of the sheet's bandwidth"
        )
    prompt_s = m.prompt_tokens * (best.gemm_token_s + best.experts_gemm_token_s) / best.stages
    if m.ttft_s < _COMPUTED * prompt_s:
        yield (
            f"a first token after {_ms(m.ttft_s)} is earlier than half of the {_ms(prompt_s)} that {m.prompt_tokens:g} "
            "tokens of prompt take at all of the sheet's compute (was the prompt in the prefix cache?)"
        )


def floor_of(m: Measurement) -> float:
    """Seconds a token takes at least: the weights of one token and, in a static batch, the context of all (of a closed
    loop, some may wait)."""
    best = ideal(m.shape)
    weights_s = best.weights_s + best.expert_share * best.experts_s / _SLICED_MOST
    context_s = m.batch * m.prompt_tokens * best.context_s / best.stages if m.lockstep else 0.0
    return (weights_s + context_s) / tokens_a_step(m.acceptance, int(m.drafted))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
