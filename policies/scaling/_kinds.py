"""The kinds of requests that a demand has, as scaling plans for them: which count, and as what traffic.

Must not depend on variants, on forecasts or on what is decided.
"""

from collections.abc import Sequence
from math import ceil, isnan
from typing import Final

from router.core import Demand, KindDemand, Traffic

TOKENS_MAX: Final = 1e8  # of a mean: what is longer is as impossible, and no float overflows
RATE_MAX: Final = 1e9
TINY: Final = 1e-9  # requests a second that are rounding
ENDED_MIN: Final = 50  # requests whose attainment says something


def kinds_of(demand: Demand) -> tuple[KindDemand, ...]:
    """Those that arrive; where nothing is known by kind, all as one."""
    if demand.kinds:
        return tuple(kind for kind in demand.kinds if kind.requests_per_s > 0.0)
    if demand.requests_per_s <= 0.0:
        return ()
    ended = 0 if isnan(demand.attainment) else ENDED_MIN * 2
    attained = ceil(ended * min(max(demand.attainment, 0.0), 1.0)) if ended else 0
    tokens = demand.prompt_tokens, demand.output_tokens
    return (KindDemand("", demand.slo, demand.requests_per_s, *tokens, ended, attained),)


def shortest(kinds: Sequence[KindDemand], goal: float) -> list[KindDemand]:
    """Of each class the kinds with the shortest prompts that make up the goal, or the quantile of its SLO if less."""
    kept: list[KindDemand] = []
    for name in dict.fromkeys(kind.slo_class for kind in kinds):
        own = sorted((k for k in kinds if k.slo_class == name), key=lambda kind: kind.prompt_tokens)
        whole, so_far = sum(kind.requests_per_s for kind in own), 0.0
        for kind in own:
            if so_far <= max(goal, kind.slo.quantile if not goal else 0.0) * whole * (1.0 - TINY):
                kept.append(kind)
            so_far += kind.requests_per_s
    return kept


def traffic_of(kind: KindDemand) -> Traffic:
    """As a capacity is computed of it, within what a float can bear."""
    prompt, output = min(kind.prompt_tokens, TOKENS_MAX), min(max(kind.output_tokens, 1.0), TOKENS_MAX)
    return Traffic(min(kind.requests_per_s, RATE_MAX), prompt, output, kind.slo, min(max(kind.slo.quantile, 0.5), 0.99))
