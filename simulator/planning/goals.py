"""What a plan has to attain: for each bound of an SLO, the share of requests within it.

``ttft=1s@0.99,tpot=50ms``: 99 % of the first tokens within 1 s, and within 50 ms the share that holds where
none is given. Otherwise an SLO is written as everywhere (``parse_slo``). A request that was not served is within no
bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Final

import numpy as np

from router.core.slo_metrics import INDEX, SLO_METRICS
from simulator.run.result_table import ResultTable
from simulator.workload.arrivals import SloClass, parse_slo

WHOLE: Final = "slo"
"""The goal of requests that bring an SLO of their own: all of it."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A share of the requests of a class that has to be within a bound on a metric (``WHOLE``: within every bound)."""

    slo_class: str
    metric: str
    bound_s: float
    share: float


@dataclass(frozen=True, slots=True)
class Goals:
    """All of a plan. ``share``: of the requests with an SLO of their own."""

    classes: tuple[SloClass, ...]
    goals: tuple[Goal, ...]
    share: float
    texts: tuple[str, ...]

    @property
    def allowed_misses(self) -> float:
        """More requests than this share that miss any bound: some goal is missed, whatever comes."""
        return max(sum(1.0 - goal.share for goal in self.goals), 1.0 - self.share)

    def attained(self, table: ResultTable) -> dict[str, float]:
        """The share within each bound, by ``label``."""
        names = np.array(table.slo_classes, dtype=object)
        served, latencies = table.served(), table.latencies_s()
        found: dict[str, float] = {}
        for goal in self.goals:
            there = names == goal.slo_class
            values = latencies[goal.metric]
            within = served & ((values <= goal.bound_s) | np.isnan(values))  # one token has no TPOT
            if there.any():
                found[self.label(goal)] = float(within[there].mean())
        own = ~np.isin(names, [each.name for each in self.classes])
        if own.any():
            found[WHOLE] = float(table.met()[own].mean())
        return found

    def label(self, goal: Goal) -> str:
        """``ttft``, or ``chat ttft`` where there are several classes."""
        return goal.metric if len(self.classes) == 1 else f"{goal.slo_class} {goal.metric}"

    def shown(self, label: str) -> str:
        """A label as tables have it: ``chat TTFT``."""
        head, space, metric = label.rpartition(" ")
        return f"{head}{space}{metric.upper()}"

    def share_of(self, label: str) -> float:
        """The share that is asked for under a label of ``attained``."""
        return next((goal.share for goal in self.goals if self.label(goal) == label), self.share)

    def margin(self, attained: Mapping[str, float]) -> float:
        """By how much the goal that is nearest to being missed is exceeded; below 0: some goal is missed."""
        return min((share - self.share_of(label) for label, share in attained.items()), default=-1.0)


def goals_of(texts: Sequence[str], share: float) -> Goals:
    """The goals of such SLOs; *share*: where none is given. Raises ValueError."""
    parsed = [_parsed(text, share) for text in texts]
    classes = tuple(slo_class for slo_class, _, _ in parsed)
    names = [each.name for each in classes]
    if len(set(names)) < len(names):
        raise ValueError(f"--slo: two classes are named {next(n for n in names if names.count(n) > 1)!r}")
    return Goals(
        classes, tuple(goal for _, goals, _ in parsed for goal in goals), share, tuple(t for _, _, t in parsed)
    )


def _parsed(text: str, share: float) -> tuple[SloClass, list[Goal], str]:
    """The class, its goals, and the text without shares."""
    head, colon, body = text.rpartition(":")
    shares: dict[str, float] = {}
    plain = []
    for part in body.split(","):
        bound, at, given = part.partition("@")
        key = bound.partition("=")[0]
        if at:
            shares[key] = _share(given, text)
            if key not in INDEX:
                raise ValueError(f"--slo {text!r}: a share goes with one of {', '.join(INDEX)}, not with {key!r}")
        plain.append(bound)
    without = f"{head}{colon}{','.join(plain)}"
    slo_class = parse_slo(without)
    bounds = zip(SLO_METRICS, slo_class.slo.bounds_s(), strict=True)
    goals = [Goal(slo_class.name, m.name, s, shares.get(m.name, share)) for m, s in bounds if s < inf]
    if not goals:
        raise ValueError(f"--slo {text!r}: expected a bound, such as ttft=1s@0.99")
    return slo_class, goals, without


def _share(text: str, whole: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        share = -1.0
    if not (isfinite(share) and 0.0 < share < 1.0):
        raise ValueError(f"--slo {whole!r}: expected a share such as 0.99 after @, got {text!r}")
    return share
