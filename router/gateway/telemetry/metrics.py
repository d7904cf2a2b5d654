"""Every metric, once; names begin with ``headroom_``, so that no sum counts an engine's own numbers twice.

Those of OpenTelemetry's conventions begin with ``gen_ai_``, those of Prometheus's clients with ``process_``.

Must not depend on decisions. A request costs a few additions to plain lists; text is made of them at a scrape. Labels
are bounded: a model that no backend serves is "unknown".
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isnan
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from router.core.decisions import EndState, RequestRecord
from router.core.errors import Reason, StateFault
from router.core.score import STATES, Score
from router.core.signals import registered
from router.core.slo_metrics import BASE, SLO_METRICS
from router.core.types import EngineReport, Load, Request
from router.gateway.monitoring.downtime import Downtimes
from router.gateway.monitoring.troubles import Troubles
from router.gateway.telemetry import trouble_metrics
from router.gateway.telemetry.change_metrics import ChangeMetrics
from router.gateway.telemetry.exposition import HistogramFamily, parts
from router.gateway.telemetry.genai import GenAiMetrics
from router.gateway.telemetry.histogram import Histogram, add_histogram
from router.gateway.telemetry.model_metrics import ModelMetrics
from router.gateway.telemetry.policy_metrics import PolicyMetrics
from router.gateway.telemetry.quota_metrics import QuotaMetrics
from router.gateway.telemetry.resource_metrics import ResourceMetrics
from router.gateway.telemetry.source_metrics import SourceMetrics
from router.gateway.telemetry.tenant_metrics import TenantMetrics
from router.gateway.telemetry.waits import Waits
from router.gateway.traffic.meter import GAP_EDGES_S, Gaps
from router.gateway.traffic.request_trace import RequestTrace
from router.version import VERSION, build

RATIO: Final = (.1, .25, .5, .67, .8, .9, .95, 1, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10)  # fmt: skip
SYNC_S: Final = (.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5)  # fmt: skip


class _Row:
    """Counts of one backend for one model and class; requests that reached no backend have an empty name.

    ``latencies``: one histogram a metric of ``SLO_METRICS``; ``unserved``: requests by outcome and reason; ``met`` and
    ``violated``: those whose client stayed, by the source of their SLO; ``unjudged``: of these, those with a bound that
    could not be judged.
    """

    __slots__ = (
        "attempts", "cached_tokens", "derived", "e2e", "estimated_tokens", "latencies", "met",
        "output_tokens", "prompt_tokens", "served", "tpot", "ttft", "unjudged", "unserved", "violated",
    )  # fmt: skip

    def __init__(self) -> None:
        self.latencies = [Histogram(metric.edges_s) for metric in SLO_METRICS]
        self.ttft, self.tpot, self.e2e = self.latencies[:BASE]
        self.derived = self.latencies[BASE:]
        self.prompt_tokens = self.output_tokens = self.cached_tokens = self.estimated_tokens = 0
        self.attempts = self.served = self.unjudged = 0
        self.met, self.violated = {"class": 0, "header": 0}, {"class": 0, "header": 0}
        self.unserved: dict[tuple[str, str], int] = defaultdict(int)


class _Errors:
    """Forecast errors of one backend: actual over predicted, one histogram a metric that is forecast."""

    __slots__ = ("e2e", "ratios", "tpot", "ttft")

    def __init__(self) -> None:
        self.ratios = [Histogram(RATIO) for _ in range(BASE)]
        self.ttft, self.tpot, self.e2e = self.ratios


class _Engine:
    """The last report of one engine, and how many scrapes succeeded and failed."""

    __slots__ = ("failures", "report", "scrapes")

    def __init__(self) -> None:
        self.report: EngineReport | None = None
        self.scrapes = self.failures = 0


class Answered(Protocol):
    """The fields of a request's log that are counted."""

    @property
    def record(self) -> RequestRecord:
        """The core's record of it."""

    @property
    def path(self) -> str:
        """The pattern of its path."""

    @property
    def status(self) -> int:
        """The status sent, 0 when the client left before."""

    @property
    def slo_source(self) -> str:
        """``class`` or ``header``: the source of the request's SLO."""

    @property
    def trace(self) -> RequestTrace | None:
        """Its place in a trace."""


class Metrics(Collector):
    """The metrics of one router; an observer of requests, engines, sync and reloads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock``: seconds on the loop's clock, for ages."""
        self._clock = clock
        self._rows: dict[tuple[str, str, str], _Row] = defaultdict(_Row)
        self._waits = Waits()
        self._responses: dict[tuple[str, int], int] = defaultdict(int)
        self._errors: dict[str, _Errors] = defaultdict(_Errors)
        self._engines: dict[str, _Engine] = defaultdict(_Engine)
        self._sync = Histogram(SYNC_S)
        self._sync_failures: dict[str, int] = {fault.value: 0 for fault in StateFault}
        self._peers = 0
        self._state_up = False  # until it has answered
        self._reloads = {"ok": 0, "failed": 0}
        self._reloaded_s = 0.0
        self._version = ""
        self._gaps: Callable[[], Mapping[str, Gaps]] = dict
        self._scores: Callable[[], Mapping[str, Score]] = dict
        self._load: Callable[[], tuple[int, int, Mapping[str, Load]]] = lambda: (0, 0, {})
        self._dropped: Callable[[], Mapping[str, int]] = dict
        self._up: Callable[[], Mapping[str, bool]] = dict
        self._downtimes: Callable[[], Downtimes] = dict
        self._troubles: Callable[[], Troubles] = dict
        self._failing_open: Callable[[], Sequence[str]] = tuple
        self._skipped: Callable[[], Mapping[tuple[str, str], int]] = dict
        self._offered: Callable[[], Iterable[tuple[str, str]]] = tuple
        self._genai, self._tenants = GenAiMetrics(), TenantMetrics()
        self.policies = PolicyMetrics()
        self.resources = ResourceMetrics()
        self.sources = SourceMetrics()
        self.quotas, self.models, self.changes = QuotaMetrics(), ModelMetrics(), ChangeMetrics()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def watch(
        self,
        load: Callable[[], tuple[int, int, Mapping[str, Load]]],
        gaps: Callable[[], Mapping[str, Gaps]],
        scores: Callable[[], Mapping[str, Score]],
        dropped: Callable[[], Mapping[str, int]],
        up: Callable[[], Mapping[str, bool]],
        downtimes: Callable[[], Downtimes] = dict,
        troubles: Callable[[], Troubles] = dict,
        failing_open: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Where to read, at a scrape: requests in flight, held and by backend; gaps between tokens; the accuracy of
        forecasts; dropped numbers by source; whether each backend is up, and why not; what fails on those that are; the
        models whose requests go to backends that are down.
        """
        self._load, self._gaps, self._scores, self._dropped, self._up = load, gaps, scores, dropped, up
        self._downtimes, self._troubles, self._failing_open = downtimes, troubles, failing_open

    def watch_offered(self, offered: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Where to read models and classes that requests can have: counts of their SLO are there from the start."""
        self._offered = offered

    def watch_state(self, skipped: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Where to read the skipped values of the shared state, by what they are of and why."""
        self._skipped = skipped

    @property
    def registry(self) -> CollectorRegistry:
        """Where other parts of this process register what they export."""
        return self._registry

    def text(self) -> bytes:
        """The page, in Prometheus's text format."""
        return b"".join(self.parts())

    def parts(self) -> Iterator[bytes]:
        """The same in parts, each of some milliseconds; what is counted between two is in those that follow."""
        return parts(self._registry.collect())

    def openmetrics(self) -> bytes:
        """The page, in OpenMetrics's format, which has exemplars."""
        page: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
        return page

    # -- what is counted ---------------------------------------------------------------------------------------

    def ended(self, log: Answered) -> None:
        """A request that the core routed has ended."""
        self._responses[log.path, log.status] += 1
        record = log.record
        self.recorded(record, log.slo_source)
        self._genai.ended(log.path, _model(record), record)
        self._tenants.ended(record)
        self.models.ended(record)
        trace = log.trace
        if trace is not None and trace.sampled and record.backend:
            self._exemplify(record, f"{trace.trace_id:032x}")

    def _exemplify(self, record: RequestRecord, trace_id: str) -> None:
        """A trace is written of a request that was counted: a dashboard shows it beside its bucket."""
        row = self._rows[_model(record), record.request.slo_class, record.backend]
        row.ttft.exemplify(record.ttft_s, trace_id)
        if record.outcome is EndState.SERVED:
            row.e2e.exemplify(record.e2e_s, trace_id)
            if record.usage.output_tokens > 1 and not record.usage.estimated:
                row.tpot.exemplify(record.tpot_s, trace_id)

    def rejected(self, path: str, status: int) -> None:
        """A request was answered with an error before it reached the core."""
        self._responses[path, status] += 1

    def recorded(self, record: RequestRecord, slo_source: str = "class") -> None:
        """One request has ended; ``slo_source``: ``class`` or ``header``."""
        request, outcome = record.request, record.outcome
        model = _model(record)
        row = self._rows[model, request.slo_class, record.backend]
        row.attempts += record.attempts
        if outcome is EndState.SERVED:
            row.served += 1
        else:
            row.unserved[outcome.value, record.reason.value if record.reason else ""] += 1
        if record.held_s > 0.0 or outcome is not EndState.SERVED:
            self._waits.recorded(model, record)
        if record.judged:
            if record.slo_met:
                row.met[slo_source] += 1
            else:
                row.violated[slo_source] += 1
            if record.usage.estimated and record.unjudged():
                row.unjudged += 1
        if record.backend:
            self._timed(record, row)

    def late_tokens(self, request: Request, backend: str, tokens: int, *, estimated: bool) -> None:
        """A backend generated so many more for a request that has ended, before it noticed."""
        row = self._rows[request.model, request.slo_class, backend]
        row.output_tokens += tokens
        if estimated:
            row.estimated_tokens += tokens

    def _timed(self, record: RequestRecord, row: _Row) -> None:
        usage = record.usage
        row.ttft.add(record.ttft_s)
        row.prompt_tokens += usage.prompt_tokens or record.request.prompt_tokens
        row.output_tokens += usage.output_tokens
        if usage.estimated:
            row.estimated_tokens += usage.output_tokens
        row.cached_tokens += usage.cached_tokens
        if record.outcome is EndState.SERVED:
            row.e2e.add(record.e2e_s)
            if record.request.streamed and usage.output_tokens > 1:
                row.tpot.add(record.tpot_s)  # nan, which is not counted, of an estimate
            if row.derived:
                for histogram, value_s in zip(row.derived, record.latencies_s()[BASE:], strict=True):
                    histogram.add(value_s)
            self._compared(record)

    def _compared(self, record: RequestRecord) -> None:
        """Actual over predicted, both counted from the send. An estimated count is no measure of a forecast."""
        errors = self._errors[record.backend]
        if record.predicted_ttft_s > 0 and record.request.streamed:
            errors.ttft.add((record.first_token_s - record.sent_s) / record.predicted_ttft_s)
        several = record.usage.output_tokens > 1 and not record.usage.estimated
        if record.predicted_tpot_s > 0 and record.request.streamed and several:
            errors.tpot.add(record.tpot_s / record.predicted_tpot_s)
        if record.predicted_e2e_s > 0:
            errors.e2e.add((record.ended_s - record.sent_s) / record.predicted_e2e_s)

    def scraped(self, backend: str, report: EngineReport, took_s: float) -> None:
        """An engine's metrics were read."""
        self._engines[backend].scrapes += 1

    def reported(self, backend: str, report: EngineReport) -> None:
        """An engine's report, read here or elsewhere."""
        self._engines[backend].report = report

    def scrape_failed(self, backend: str, why: str) -> None:
        """An engine's metrics could not be read."""
        self._engines[backend].failures += 1

    def forget(self, backend: str) -> None:
        """A backend left: its gauges go; its counters stay, as counters do."""
        self._engines.pop(backend, None)

    def synced(self, took_s: float, peers: int) -> None:
        """The store answered."""
        self._sync.add(took_s)
        self._state_up, self._peers = True, peers

    def sync_failed(self, fault: str, peers: int) -> None:
        """The store did not answer, or did not take this router's view."""
        self._state_up, self._peers = False, peers
        self._sync_failures[fault] = self._sync_failures.get(fault, 0) + 1

    def reloaded(self, ok: bool, version: str, at_s: float) -> None:
        """A config was taken or refused; ``at_s``: seconds since the epoch."""
        self._reloads["ok" if ok else "failed"] += 1
        if ok:
            self._version, self._reloaded_s = version, at_s

    def validated(self, result: str, took_s: float, replays: Iterable[Mapping[str, Any]]) -> None:
        """Decisions were validated."""
        self.policies.validated(result, took_s, replays)

    # -- what is shown -----------------------------------------------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        """All families, made of what was counted."""
        yield from self._requests()
        yield from self._latencies()
        yield from self._forecasts()
        yield from self._accuracy()
        yield from self._fleet()
        yield from self._engine_pages()
        yield from trouble_metrics.families(self._troubles())
        yield from self._router()
        yield from self.policies.collect()
        yield from self.resources.collect()
        yield from self._tenants.collect()
        yield from self._genai.collect()
        yield from self.sources.collect()
        yield from self.quotas.collect()
        yield from self.models.collect()
        yield from self.changes.collect()

    def _requests(self) -> Iterator[Metric]:
        labels = ["model", "slo_class"]
        total = CounterMetricFamily(
            "headroom_requests",
            "Requests that have ended, by outcome and reason",
            labels=[*labels, "outcome", "reason"],
        )
        for key, count in self._outcomes().items():
            total.add_metric(key, count)
        slos = CounterMetricFamily(
            "headroom_slo_requests",
            "Requests that met every bound of their SLO (met) or not; source: the SLO class, or a header",
            labels=[*labels, "source", "met"],
        )
        for key, count in self._slos().items():
            slos.add_metric(key, count)
        unjudged = CounterMetricFamily(
            "headroom_slo_unjudged_requests",
            "Those of headroom_slo_requests with a bound (TPOT) that they may have met or not, since their tokens are "
            "estimated: it is not counted as missed",
            labels=labels,
        )
        for pair, count in self._unjudged().items():
            unjudged.add_metric(pair, count)
        attempts = CounterMetricFamily(
            "headroom_attempts", "Attempts of requests whose last attempt was on this backend", labels=["backend"]
        )
        for backend, count in self._attempts().items():
            attempts.add_metric([backend], count)
        responses = CounterMetricFamily(
            "headroom_responses",
            "HTTP answers on routed paths (status 0: the client left before)",
            labels=["path", "status"],
        )
        for (path, status), count in self._responses.items():
            responses.add_metric([path, str(status)], count)
        yield from (total, slos, unjudged, attempts, responses, self._tokens())

    def _outcomes(self) -> Mapping[tuple[str, str, str, str], int]:
        """Requests by model, class, outcome and reason."""
        sums: dict[tuple[str, str, str, str], int] = defaultdict(int)
        for (model, slo_class, _), row in self._rows.items():
            if row.served:
                sums[model, slo_class, EndState.SERVED.value, ""] += row.served
            for (outcome, reason), count in row.unserved.items():
                sums[model, slo_class, outcome, reason] += count
        return sums

    def _slos(self) -> Mapping[tuple[str, str, str, str], int]:
        """Requests by model, class, source of their SLO and whether it was met."""
        sums: dict[tuple[str, str, str, str], int] = defaultdict(int)
        for (model, slo_class, _), row in self._rows.items():
            for met, counts in (("true", row.met), ("false", row.violated)):
                for source, count in counts.items():
                    if row.met[source] or row.violated[source]:  # both are there, or neither
                        sums[model, slo_class, source, met] += count
        for model, slo_class in self._offered():  # a rate needs a value before the first violation
            for met in ("true", "false"):
                sums[model, slo_class, "class", met] += 0
        return sums

    def _unjudged(self) -> Mapping[tuple[str, str], int]:
        """Requests by model and class."""
        sums: dict[tuple[str, str], int] = defaultdict(int)
        for (model, slo_class, _), row in self._rows.items():
            sums[model, slo_class] += row.unjudged
        return sums

    def _attempts(self) -> Mapping[str, int]:
        """By backend."""
        sums: dict[str, int] = defaultdict(int)
        for (_, _, backend), row in self._by_backend():
            sums[backend] += row.attempts
        return sums

    def _by_backend(self) -> Iterator[tuple[tuple[str, str, str], _Row]]:
        """The rows of requests that reached a backend."""
        return (item for item in self._rows.items() if item[0][2])

    def _tokens(self) -> Metric:
        tokens = CounterMetricFamily(
            "headroom_tokens",
            "Tokens of requests, however they ended, with those that came before an engine had noticed the end; "
            "prompts estimated where engines state no count, output as well (kind estimated: that part of the output)",
            labels=["model", "backend", "kind"],
        )
        sums: dict[tuple[str, str, str], int] = defaultdict(int)
        for (model, _, backend), row in self._by_backend():
            for kind in ("prompt", "output", "cached", "estimated"):
                sums[model, backend, kind] += getattr(row, f"{kind}_tokens")
        for key, count in sums.items():
            tokens.add_metric(key, count)
        return tokens

    def _latencies(self) -> Iterator[Metric]:
        labels = ["model", "slo_class", "backend"]
        for index, metric in enumerate(SLO_METRICS):
            family = HistogramFamily(f"headroom_{metric.name}_seconds", metric.description, labels=labels)
            for key, row in self._by_backend():
                add_histogram(family, key, row.latencies[index])
            yield family
        yield from self._waits.collect()
        gaps = HistogramFamily("headroom_itl_seconds", "Gaps between the events of streams", labels=["backend"])
        for backend, seen in self._gaps().items():
            gaps.add([backend], GAP_EDGES_S, seen.counts, seen.sum_s)
        yield gaps

    def _forecasts(self) -> Iterator[Metric]:
        for index, metric in enumerate(SLO_METRICS[:BASE]):
            family = HistogramFamily(
                f"headroom_{metric.name}_prediction_ratio",
                f"Actual over predicted mean {metric.label}, from the send: above 1 the forecast was too low",
                labels=["backend"],
            )
            for backend, errors in self._errors.items():
                add_histogram(family, [backend], errors.ratios[index])
            yield family

    def _accuracy(self) -> Iterator[Metric]:
        """State, error and coverage of each backend's forecast; each family is there before the next is made."""
        scores = self._scores()
        state = GaugeMetricFamily(
            "headroom_forecast_state", "1 for the forecast's present state", labels=["backend", "state"]
        )
        for backend, score in scores.items():
            for name in STATES:
                state.add_metric([backend, name], float(name == score.state))
        yield state
        yield from _errors_and_coverage(scores)
        yield self._dropped_numbers()

    def _dropped_numbers(self) -> Metric:
        family = CounterMetricFamily(
            "headroom_dropped_numbers",
            "Numbers from outside that were not finite, not in range or not plausible, and were ignored",
            labels=["source"],
        )
        for source, count in self._dropped().items():
            family.add_metric([source], count)
        return family

    def _fleet(self) -> Iterator[Metric]:
        in_flight, held, loads = self._load()
        yield GaugeMetricFamily(
            "headroom_requests_in_flight", "Requests that have not ended, held ones included", in_flight
        )
        yield GaugeMetricFamily("headroom_requests_held", "Requests held at the gateway", held)
        family = GaugeMetricFamily(
            "headroom_backend_requests", "This router's requests on a backend, by phase", labels=["backend", "phase"]
        )
        for backend, load in loads.items():
            family.add_metric([backend, "prefill"], load.prefilling)
            family.add_metric([backend, "decode"], load.decoding)
        yield family

    def _engine_pages(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("headroom_backend_up", "1 while the engine's health check passes", labels=["backend"])
        scrapes = CounterMetricFamily(
            "headroom_engine_scrapes", "Readings of engines' metrics", labels=["backend", "result"]
        )
        for backend, is_up in self._up().items():
            up.add_metric([backend], float(is_up))
        for backend, engine in self._engines.items():
            scrapes.add_metric([backend, "ok"], engine.scrapes)
            scrapes.add_metric([backend, "failed"], engine.failures)
        fail_open = GaugeMetricFamily(
            "headroom_fail_open",
            "1 while a model's requests go to backends that are down, for none of them is up",
            labels=["model"],
        )
        for model in self._failing_open():
            fail_open.add_metric([model], 1.0)
        yield from (up, self._down(), fail_open, scrapes)
        yield from self._reported()

    def _down(self) -> Metric:
        """One series a backend and reason, there only while the backend gets no requests for that reason."""
        since = GaugeMetricFamily(
            "headroom_backend_down_since_timestamp_seconds",
            "Since when a backend gets no requests, by reason; no series while it gets some",
            labels=["backend", "reason"],
        )
        for backend, downs in self._downtimes().items():
            for down in downs:
                since.add_metric([backend, down.reason.value], down.since_s)
        return since

    def _reported(self) -> Iterator[Metric]:
        """The numbers of each engine's last report, and its age."""
        reports = {name: engine.report for name, engine in self._engines.items() if engine.report is not None}
        for metric, number, text in (*_REPORTED, *((each.metric, each.name, each.help) for each in registered())):
            family = GaugeMetricFamily(metric, text, labels=["backend"])
            for backend, report in reports.items():
                if not isnan(value := report.numbers()[number]):
                    family.add_metric([backend], value)
            yield family
        age = GaugeMetricFamily(
            "headroom_engine_report_age_seconds", "Age of the engine's last report", labels=["backend"]
        )
        for backend, report in reports.items():
            if not isnan(report.asked_s):
                age.add_metric([backend], self._clock() - report.asked_s)
        yield age

    def _router(self) -> Iterator[Metric]:
        built = GaugeMetricFamily("headroom_build_info", "1 for the version that runs", labels=["version", "build"])
        built.add_metric([VERSION, build().partition(";")[0]], 1.0)
        yield built
        yield GaugeMetricFamily("headroom_state_up", "1 while the shared state answers", float(self._state_up))
        yield GaugeMetricFamily("headroom_state_peers", "Other routers with a lease", self._peers)
        failures = CounterMetricFamily("headroom_state_failures", "Syncs that failed, by reason", labels=["reason"])
        for reason, count in self._sync_failures.items():
            failures.add_metric([reason], count)
        yield failures
        skipped = CounterMetricFamily(
            "headroom_state_skipped_values",
            "Values of the shared state that could not be taken, by what they are of and why",
            labels=["kind", "reason"],
        )
        for (kind, why), count in self._skipped().items():
            skipped.add_metric([kind, why], count)
        yield skipped
        sync = HistogramFamily("headroom_state_sync_seconds", "One sync with the shared state", labels=[])
        add_histogram(sync, [], self._sync)
        yield sync
        reloads = CounterMetricFamily("headroom_config_reloads", "Config reloads, by result", labels=["result"])
        for result, count in self._reloads.items():
            reloads.add_metric([result], count)
        yield reloads
        info = GaugeMetricFamily("headroom_config_info", "1 for the running config", labels=["version"])
        info.add_metric([self._version], 1.0)
        yield info
        yield GaugeMetricFamily(
            "headroom_config_last_good_timestamp_seconds", "When the running config was taken", self._reloaded_s
        )


def _errors_and_coverage(scores: Mapping[str, Score]) -> Iterator[Metric]:
    error = GaugeMetricFamily(
        "headroom_forecast_error_ratio", "Median relative error of recent forecasts", labels=["backend", "metric"]
    )
    coverage = GaugeMetricFamily(
        "headroom_forecast_coverage_ratio",
        "Share of outcomes within the forecast quantile",
        labels=["backend", "metric", "quantile"],
    )
    for backend, score in scores.items():
        for metric, accuracy in zip(SLO_METRICS[:BASE], (score.ttft, score.tpot, score.e2e), strict=True):
            if accuracy.seen:
                error.add_metric([backend, metric.name], accuracy.error)
    yield error
    for backend, score in scores.items():
        for metric, accuracy in zip(SLO_METRICS[:BASE], (score.ttft, score.tpot, score.e2e), strict=True):
            for quantile, share in accuracy.coverage.items():
                if not isnan(share):
                    coverage.add_metric([backend, metric.name, f"{quantile:g}"], share)
    yield coverage


def _model(record: RequestRecord) -> str:
    """The label of a request's model: what no backend serves has one in all."""
    return "unknown" if record.reason is Reason.UNKNOWN_MODEL else record.request.model


_REPORTED: Final = (
    ("headroom_engine_running", "running", "Running sequences, as the engine reports"),
    ("headroom_engine_waiting", "waiting", "Sequences in the engine's queue, as it reports"),
)
