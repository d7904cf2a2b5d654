"""The metrics of policies and of their changes: the rest of every metric name, once.

Samples come by short name from ``PolicyRollout``. Must not depend on what they mean.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Sample = tuple[str, Mapping[str, str], float]
Family = type[CounterMetricFamily] | type[GaugeMetricFamily]

# short name -> kind, name on the page, help, labels
FAMILIES: Final[Mapping[str, tuple[Family, str, str, tuple[str, ...]]]] = {
    "decisions": (CounterMetricFamily, "headroom_policy_decisions", "Routing decisions, by whose", ("role",)),
    "decision_seconds": (CounterMetricFamily, "headroom_policy_decision_seconds", "Time they took", ("role",)),
    "faults": (
        CounterMetricFamily,
        "headroom_policy_faults",
        "Decisions that raised, overran or were invalid; the last good policy decided instead",
        ("role", "kind"),
    ),
    "shadow_decisions": (
        CounterMetricFamily,
        "headroom_policy_shadow_decisions",
        "Decisions of a shadow, by whether the serving policy decided alike",
        ("agreed",),
    ),
    "shadow_gain_seconds": (
        GaugeMetricFamily,
        "headroom_policy_shadow_gain_seconds",
        "Mean of what the shadow's choices were predicted to save a request",
        ("bound",),
    ),
    "canary_requests": (
        GaugeMetricFamily,
        "headroom_policy_canary_requests",
        "Requests of the running canary trial, by policy and by whether their SLO was met",
        ("arm", "met"),
    ),
    "changes": (CounterMetricFamily, "headroom_policy_changes", "Verdicts on live policies", ("verdict",)),
    "validations": (CounterMetricFamily, "headroom_reload_validations", "Validations of changed policies", ("result",)),
    "validation_seconds": (
        GaugeMetricFamily,
        "headroom_reload_validation_seconds",
        "How long the last validation took",
        (),
    ),
    "validation_attainment": (
        GaugeMetricFamily,
        "headroom_reload_validation_attainment",
        "Lowest attainment in the last validation's replays",
        ("policy",),
    ),
}


class PolicyMetrics:
    """Counts validations and verdicts; reads the rest at a scrape."""

    def __init__(self) -> None:
        self._watched: Callable[[], Iterable[Sample]] = tuple
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._gauges: list[Sample] = []

    def watch(self, samples: Callable[[], Iterable[Sample]]) -> None:
        """Where to read what policies do."""
        self._watched = samples

    def judged(self, verdict: str) -> None:
        """A live policy was dropped, promoted, returned or rolled back."""
        self._counts["changes", verdict] += 1

    def validated(self, result: str, took_s: float, replays: Iterable[Mapping[str, Any]]) -> None:
        """Decisions were validated."""
        self._counts["validations", result] += 1
        self._gauges = [("validation_seconds", {}, took_s)]
        for policy in ("candidate", "current"):
            seen = [replay[policy] for replay in replays if replay[policy] is not None]
            if seen:
                self._gauges.append(("validation_attainment", {"policy": policy}, min(seen)))

    def collect(self) -> Iterator[Metric]:
        """All families that have a sample."""
        made: dict[str, Any] = {}
        for name, labels, value in (*self._watched(), *self._counted(), *self._gauges):
            kind, full, text, keys = FAMILIES[name]
            family = made.get(name)
            if family is None:
                family = made[name] = kind(full, text, labels=list(keys))
            family.add_metric([labels[key] for key in keys], value)
        yield from made.values()

    def _counted(self) -> Iterator[Sample]:
        for (name, value), count in self._counts.items():
            yield name, {"result" if name == "validations" else "verdict": value}, count
