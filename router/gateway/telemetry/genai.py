"""OpenTelemetry's GenAI semantic conventions: names of operations, and its metrics of a server.

``gen_ai.server.request.duration``, ``.time_to_first_token`` and ``.time_per_output_token``, with the buckets that the
conventions prescribe, in Prometheus's spelling. Must not depend on what a page of metrics looks like beyond a family.
"""

from collections.abc import Iterator
from math import isnan
from typing import Final

from prometheus_client.core import Metric

from router.core.decisions import EndState, RequestRecord
from router.gateway.telemetry.exposition import HistogramFamily
from router.gateway.telemetry.histogram import Histogram, add_histogram

_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
PROVIDER: Final = "headroom"
_LABELS: Final = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_DURATION_S: Final = (.01, .02, .04, .08, .16, .32, .64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)  # fmt: skip
_TTFT_S: Final = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10)  # fmt: skip
_TPOT_S: Final = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5)  # fmt: skip


def operation(path: str) -> str:
    """The value of ``gen_ai.operation.name`` for requests of a path (its pattern)."""
    return _OPERATIONS.get(path, "generate_content")


class GenAiMetrics:
    """The histograms, by operation and model; of the duration also by the reason of an error."""

    __slots__ = ("_durations", "_served")

    def __init__(self) -> None:
        self._durations: dict[tuple[str, str, str], Histogram] = {}
        self._served: dict[tuple[str, str], tuple[Histogram, Histogram]] = {}

    def ended(self, path: str, model: str, record: RequestRecord) -> None:
        """A request that the core routed has ended. ``model``: as in the labels of other metrics."""
        kind = operation(path)
        error = "" if record.outcome is EndState.SERVED else (record.reason or record.outcome).value
        durations = self._durations.get((kind, model, error))
        if durations is None:
            durations = self._durations[kind, model, error] = Histogram(_DURATION_S)
        durations.add(record.e2e_s)
        if error or isnan(record.ttft_s):
            return
        served = self._served.get((kind, model))
        if served is None:
            served = self._served[kind, model] = Histogram(_TTFT_S), Histogram(_TPOT_S)
        served[0].add(record.ttft_s)
        if record.usage.output_tokens > 1 and not record.usage.estimated:
            served[1].add(record.tpot_s)

    def collect(self) -> Iterator[Metric]:
        """The families of the metrics page."""
        duration = HistogramFamily(
            "gen_ai_server_request_duration_seconds",
            "Time from a request's arrival to its end (gen_ai.server.request.duration)",
            labels=[*_LABELS, "error_type"],
        )
        for (kind, model, error), histogram in self._durations.items():
            add_histogram(duration, [kind, PROVIDER, model, error], histogram)
        yield duration
        first = HistogramFamily(
            "gen_ai_server_time_to_first_token_seconds",
            "Time from a request's arrival to its first token (gen_ai.server.time_to_first_token)",
            labels=_LABELS,
        )
        each = HistogramFamily(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean time per token of a reply after its first (gen_ai.server.time_per_output_token)",
            labels=_LABELS,
        )
        for (kind, model), histograms in self._served.items():
            for family, histogram in zip((first, each), histograms, strict=True):
                add_histogram(family, [kind, PROVIDER, model], histogram)
        yield from (first, each)
