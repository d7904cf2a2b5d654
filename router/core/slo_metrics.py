"""What an SLO can bound, as data: one entry of ``SLO_METRICS`` a metric.

A client bounds a metric by a header, an operator by a class, a trace by a key: all names come from ``SloMetric.name``.
The first ``BASE`` are what forecasts predict. The others are derived: each gives what a finished request's value was,
and the bounds on the base metrics that keep a bound on it, so that every policy keeps it without a line of its own.
Pure functions of numbers; must not depend on requests, forecasts or policies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

Implied = tuple[float, float, float]
"""Bounds on TTFT, TPOT and E2E, seconds; inf: none."""

_TTFT_EDGES_S: Final = (
    .005, .01, .02, .03, .05, .075, .1, .15, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60,
)  # fmt: skip
_TPOT_EDGES_S: Final = (
    .001, .0025, .005, .0075, .01, .015, .02, .025, .03, .04, .05, .075, .1, .15, .2, .3, .5, 1, 2,
)  # fmt: skip
_E2E_EDGES_S: Final = (
    .01, .025, .05, .1, .25, .5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SloMetric:
    """One latency that an SLO can bound.

    ``name``: lower case; headers (``x-slo-<name>-ms``), config and trace keys, results and metrics are named by it;
    ``title``: of a plot; ``description``: help text of its histogram, whose buckets end at ``edges_s``;
    ``observed``: the value of a served request by TTFT, TPOT, E2E (seconds), prompt and output tokens; nan where it
    does not exist (TTFT and TPOT of a reply that came whole are nan);
    ``implied``: the bounds on the base metrics that keep a bound (seconds) of a request with these prompt tokens and
    expected output tokens;
    ``aliases``: other headers, in lower case, that bound it too; ``in_ms``: tables show milliseconds.
    """

    name: str
    title: str
    description: str
    observed: Callable[[float, float, float, float, float], float]
    implied: Callable[[float, float, float], Implied]
    edges_s: tuple[float, ...] = _E2E_EDGES_S
    aliases: tuple[str, ...] = ()
    in_ms: bool = False

    @property
    def label(self) -> str:
        """The short name that tables show."""
        return self.name.upper()

    @property
    def seconds(self) -> str:
        """The name of its value in seconds: a key of results and records, a column of tables."""
        return f"{self.name}_s"

    @property
    def milliseconds(self) -> str:
        """The name of its value in milliseconds: a key of configs and explanations."""
        return f"{self.name}_ms"

    @property
    def header(self) -> str:
        """The header by which a client bounds it."""
        return f"x-slo-{self.name}-ms"

    @property
    def trace_key(self) -> str:
        """The key that bounds it in a trace of the own format."""
        return f"{self.name}_slo_s"


SLO_METRICS: Final[tuple[SloMetric, ...]] = (
    SloMetric(
        "ttft",
        "Time to first token",
        "Arrival to first token, holding and failed attempts included",
        observed=lambda ttft_s, tpot_s, e2e_s, prompt_tokens, output_tokens: ttft_s,
        implied=lambda bound_s, prompt_tokens, output_tokens: (bound_s, inf, inf),
        edges_s=_TTFT_EDGES_S,
        aliases=("x-llm-d-slo-ttft-ms",),
    ),
    SloMetric(
        "tpot",
        "Time per output token",
        "Mean time per output token after the first, of one request",
        observed=lambda ttft_s, tpot_s, e2e_s, prompt_tokens, output_tokens: tpot_s,
        implied=lambda bound_s, prompt_tokens, output_tokens: (inf, bound_s, inf),
        edges_s=_TPOT_EDGES_S,
        aliases=("x-llm-d-slo-tpot-ms",),
        in_ms=True,
    ),
    SloMetric(
        "e2e",
        "Whole reply",
        "Arrival to last byte",
        observed=lambda ttft_s, tpot_s, e2e_s, prompt_tokens, output_tokens: e2e_s,
        implied=lambda bound_s, prompt_tokens, output_tokens: (inf, inf, bound_s),
    ),
    # Add a metric here.
)

BASE: Final = 3
DERIVED: Final = SLO_METRICS[BASE:]
INDEX: Final = {metric.name: index for index, metric in enumerate(SLO_METRICS)}
