"""Rows of a file compared with one another: repeated measurements, and measurements that contradict each other.

Depends on the configuration of a row and on what was measured. Must not depend on predictions: no rule here looks at
the error of one.
"""

from collections.abc import Hashable, Iterable, Sequence
from math import isfinite
from typing import Final

from simulator.calibration.measurements import Measurement, Observed, Skipped

CONTRADICTION: Final = 1.5
"""How far apart two TPOTs of one configuration may be. Real engines repeat within 1 % below saturation and within 15 %
near it, night to night: what is half as slow again differs in something that no column names, speculative decoding for
instance (DeepSeek-R1 on eight H200 under one version of TensorRT-LLM: 13.8 and 8.6 ms)."""


def consistent(rows: Sequence[Observed]) -> tuple[list[Measurement], list[Skipped]]:
    """The measurements without repetitions and contradictions, and why the others are left out."""
    once, again = _once(rows)
    apart = {id(each) for alike in _alike(once) if _contradict(alike) for each in alike}
    skipped = [*again, *(Skipped(each.line, _APART) for each in once if id(each) in apart)]
    return [each.seen for each in once if id(each) not in apart], skipped


_TWICE: Final = "the same measurement as in an earlier row"
_APART: Final = f"one configuration, measured twice, TPOTs more than {CONTRADICTION} times apart"


def _once(rows: Iterable[Observed]) -> tuple[list[Observed], list[Skipped]]:
    known: set[Hashable] = set()
    first: list[Observed] = []
    again: list[Skipped] = []
    for each in rows:
        m = each.seen
        key = (_configuration(m), repr((m.tpot_s, m.ttft_s, m.e2e_s, m.derived_tpot_s)))
        if key in known:
            again.append(Skipped(each.line, _TWICE))
        else:
            known.add(key)
            first.append(each)
    return first, again


def _alike(rows: Iterable[Observed]) -> list[list[Observed]]:
    by: dict[Hashable, list[Observed]] = {}
    for each in rows:
        by.setdefault((each.wording, _configuration(each.seen)), []).append(each)
    return list(by.values())


def _contradict(alike: Sequence[Observed]) -> bool:
    tpots = [each.seen.tpot_s for each in alike if isfinite(each.seen.tpot_s)]
    return len(tpots) > 1 and max(tpots) > CONTRADICTION * min(tpots)


def _configuration(m: Measurement) -> Hashable:
    """Who measured what under which load; cards and models by their names."""
    s = m.shape
    shape = (s.engine, s.card.name, s.model.name, s.precision, s.kv_precision, s.tp, s.pp, s.ep)
    return (m.source, *shape, m.batch, m.prompt_tokens, m.output_tokens, m.lockstep)
