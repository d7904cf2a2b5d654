"""Two policies on the same arrivals: SLO attainment of both, its drop with an interval, in all and by SLO class.

Both played the same requests, so the drop is a mean over pairs. Must not depend on policies or how they were played.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from router.core.slo_metrics import SLO_METRICS
from router.core.types import Slo
from simulator.experiment.confidence import batched
from simulator.workload.arrivals import Arrival

CLASSES_MAX: Final = 50  # a trace may have any number

Met = Callable[[str], bool]
"""Whether the request of this id met its SLO."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One class, or all of them together (``slo_class`` empty). ``drop``: attainment of the current policy minus that
    of the candidate; ``drop_half_width``: of its 95 % interval, None where one batch says nothing of its spread.
    ``bounds``: the tightest SLO among the class's requests.
    """

    slo_class: str
    bounds: str
    requests: int
    candidate: float
    current: float
    drop: float
    drop_half_width: float | None

    def figures(self) -> str:
        """Both attainments and the drop, for a person."""
        spread = "" if self.drop_half_width is None else f" ± {self.drop_half_width:.1%}"
        now, was = f"{self.candidate:.1%} of {self.requests} requests", f"{self.current:.1%}"
        return f"{now}, was {was}: a drop of {self.drop:.1%}{spread}"

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def compared(arrivals: Sequence[Arrival], candidate: Met, current: Met) -> tuple[Comparison, list[Comparison]]:
    """All requests, and each of the first ``CLASSES_MAX`` classes, the one that loses most first."""
    by_class: dict[str, list[Arrival]] = {}
    for arrival in arrivals:
        if arrival.request.slo_class in by_class or len(by_class) < CLASSES_MAX:
            by_class.setdefault(arrival.request.slo_class, []).append(arrival)
    classes = [_comparison(name, those, candidate, current) for name, those in by_class.items()]
    return _comparison("", arrivals, candidate, current), sorted(classes, key=lambda each: each.drop, reverse=True)


def _comparison(name: str, arrivals: Sequence[Arrival], candidate: Met, current: Met) -> Comparison:
    pairs = [(candidate(arrival.request.id), current(arrival.request.id)) for arrival in arrivals]
    drop, half = batched([float(then) - float(now) for now, then in pairs])
    return Comparison(
        name,
        _bounds([arrival.request.slo for arrival in arrivals]) if name else "",
        len(pairs),
        fmean(now for now, _ in pairs),
        fmean(then for _, then in pairs),
        drop,
        half,
    )


def _bounds(slos: Sequence[Slo]) -> str:
    """As configs write them."""
    tightest = [min(values) for values in zip(*(slo.bounds_s() for slo in slos), strict=True)]
    shown = (f"{m.milliseconds}: {bound_s * 1e3:g}" for m, bound_s in zip(SLO_METRICS, tightest, strict=True))
    return ", ".join(text for text in shown if not text.endswith(" inf"))
