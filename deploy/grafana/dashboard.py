"""The Grafana dashboard as data: rows of panels, each with its queries. `python -m deploy.grafana` writes the JSON.

Every query is limited to what the variables choose: pool (the scrape job), model, class, backend; rates are over
Grafana's `$__rate_interval`, which follows the scrape interval. Depends on nothing else of the project.
"""

from dataclasses import dataclass
from typing import Any, Final

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
HEIGHT: Final = 8
COLUMNS: Final = 24

POOL: Final = 'job=~"$pool"'
MODEL: Final = f'{POOL}, model=~"$model"'
CLASS: Final = f'{MODEL}, slo_class=~"$class"'
BACKEND: Final = f'{POOL}, backend=~"$backend"'
ALL: Final = f'{CLASS}, backend=~"$backend"'


@dataclass(frozen=True)
class Query:
    """One query of a panel; *legend*: how a series is named."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. *unit*: Grafana's name of it; *note*: what it means, shown on demand; *width*: of 24 columns."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    note: str = ""
    width: int = 8
    kind: str = "timeseries"
    most: float | None = None


def rate(name: str, labels: str, by: str) -> str:
    """The summed rate of a counter."""
    return f"sum by ({by}) (rate({name}{{{labels}}}[$__rate_interval]))"


def quantiles(name: str, labels: str, by: str, legend: str, *shares: float) -> tuple[Query, ...]:
    """Quantiles of a histogram."""
    return tuple(
        Query(
            f"histogram_quantile({share:g}, {rate(f'{name}_bucket', labels, f'le, {by}')})",
            f"p{share * 100:g} {legend}",
        )
        for share in shares
    )


def attainment(by: str, window: str = "$__rate_interval") -> str:
    """The share of requests that met their SLO."""
    met = f'sum by ({by}) (rate(headroom_slo_requests_total{{{CLASS}, met="true"}}[{window}]))'
    return f"{met} / (sum by ({by}) (rate(headroom_slo_requests_total{{{CLASS}}}[{window}])) > 0)"


def burnt(window: str) -> str:
    """How fast the budget of violations is used up, by the recording rules of the alerts."""
    violations = f"headroom:slo_violations:ratio_rate{window}{{{CLASS}}}"
    return f"max by (slo_class) ({violations}) / (1 - scalar(headroom:slo_objective:ratio))"


def raised(name: str, labels: str, by: str) -> str:
    """How often a counter rose between two points of a graph."""
    return f"sum by ({by}) (increase({name}{{{labels}}}[$__rate_interval]))"


DECISION_S: Final = (
    f"{rate('headroom_policy_decision_seconds_total', POOL, 'role')}"
    f" / {rate('headroom_policy_decisions_total', POOL, 'role')}"
)

ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "SLO",
        (
            Panel(
                "Attainment now",
                "percentunit",
                (Query(attainment("slo_class"), "{{slo_class}}"),),
                "Share of requests that met every bound of their SLO",
                6,
                "stat",
                1,
            ),
            Panel(
                "Attainment",
                "percentunit",
                (Query(attainment("slo_class, source"), "{{slo_class}} ({{source}})"),),
                "By class; header: requests whose bounds came by headers",
                10,
                most=1,
            ),
            Panel(
                "Budget burnt",
                "x",
                (
                    Query(burnt("1h"), "1 h {{slo_class}}"),
                    Query(burnt("6h"), "6 h {{slo_class}}"),
                ),
                "How many times faster than the objective allows (needs the recording rules of prometheus/alerts.yml)",
            ),
            Panel(
                "Requests by outcome",
                "reqps",
                (Query(rate("headroom_requests_total", CLASS, "outcome, reason"), "{{outcome}} {{reason}}"),),
            ),
            Panel(
                "HTTP answers",
                "reqps",
                (Query(rate("headroom_responses_total", POOL, "path, status"), "{{status}} {{path}}"),),
            ),
            Panel(
                "Busiest tenants",
                "reqps",
                (Query(f"topk(10, {rate('headroom_tenant_requests_total', POOL, 'tenant')})", "{{tenant}}"),),
            ),
            Panel("TTFT", "s", quantiles("headroom_ttft_seconds", ALL, "slo_class", "{{slo_class}}", 0.5, 0.9, 0.99)),
            Panel("TPOT", "s", quantiles("headroom_tpot_seconds", ALL, "slo_class", "{{slo_class}}", 0.5, 0.9, 0.99)),
            Panel("E2E", "s", quantiles("headroom_e2e_seconds", ALL, "slo_class", "{{slo_class}}", 0.5, 0.9, 0.99)),
            Panel(
                "Held: requests",
                "short",
                (
                    Query(f"sum(headroom_requests_held{{{POOL}}})", "held"),
                    Query(f"sum(headroom_requests_in_flight{{{POOL}}})", "in flight"),
                ),
            ),
            Panel(
                "Held: for how long",
                "s",
                quantiles("headroom_held_seconds", CLASS, "outcome", "{{outcome}}", 0.5, 0.99),
            ),
            Panel(
                "Not served: after how long",
                "s",
                quantiles("headroom_unserved_seconds", CLASS, "outcome", "{{outcome}}", 0.5, 0.99),
            ),
        ),
    ),
    (
        "Forecast",
        (
            Panel(
                "Recent median error",
                "percentunit",
                (
                    Query(
                        f"max by (backend, metric) (headroom_forecast_error_ratio{{{BACKEND}}})",
                        "{{backend}} {{metric}}",
                    ),
                ),
            ),
            Panel(
                "Coverage of the predicted quantiles",
                "percentunit",
                (
                    Query(
                        f"min by (backend, metric, quantile) (headroom_forecast_coverage_ratio{{{BACKEND}}})",
                        "{{backend}} {{metric}} q{{quantile}}",
                    ),
                ),
                most=1,
            ),
            Panel(
                "Forecasts that are not trusted",
                "short",
                (Query(f'headroom_forecast_state{{{BACKEND}, state!="trusted"}} > 0', "{{backend}} {{state}}"),),
                "A policy does not rely on a forecast that is off",
            ),
            Panel(
                "TTFT over predicted",
                "short",
                quantiles("headroom_ttft_prediction_ratio", BACKEND, "backend", "{{backend}}", 0.5, 0.9),
                "Above 1: slower than predicted",
            ),
            Panel(
                "TPOT over predicted",
                "short",
                quantiles("headroom_tpot_prediction_ratio", BACKEND, "backend", "{{backend}}", 0.5, 0.9),
            ),
            Panel(
                "Implausible numbers dropped",
                "cps",
                (Query(rate("headroom_dropped_numbers_total", POOL, "source"), "{{source}}"),),
            ),
        ),
    ),
    (
        "Engines",
        (
            Panel(
                "Up", "short", (Query(f"min by (backend) (headroom_backend_up{{{BACKEND}}})", "{{backend}}"),), most=1
            ),
            Panel(
                "Down, by reason: since",
                "dateTimeFromNow",
                (
                    Query(
                        f"max by (backend, reason) (headroom_backend_down_since_timestamp_seconds{{{BACKEND}}}) * 1000",
                        "{{backend}} {{reason}}",
                    ),
                ),
                kind="stat",
            ),
            Panel(
                "Failed attempts",
                "cps",
                (Query(rate("headroom_backend_failures_total", BACKEND, "backend, kind"), "{{backend}} {{kind}}"),),
            ),
            Panel(
                "In flight",
                "short",
                (Query(f"sum by (backend, phase) (headroom_backend_requests{{{BACKEND}}})", "{{backend}} {{phase}}"),),
            ),
            Panel(
                "Engine: running and waiting",
                "short",
                (
                    Query(f"max by (backend) (headroom_engine_running{{{BACKEND}}})", "{{backend}} running"),
                    Query(f"max by (backend) (headroom_engine_waiting{{{BACKEND}}})", "{{backend}} waiting"),
                ),
            ),
            Panel(
                "KV cache in use",
                "percentunit",
                (Query(f"max by (backend) (headroom_engine_kv_usage_ratio{{{BACKEND}}})", "{{backend}}"),),
                most=1,
            ),
            Panel(
                "Output tokens",
                "short",
                (
                    Query(
                        rate("headroom_tokens_total", f'{BACKEND}, model=~"$model", kind="output"', "backend"),
                        "{{backend}}",
                    ),
                ),
                "Tokens a second",
            ),
            Panel(
                "Prompt tokens, of them cached",
                "short",
                (
                    Query(
                        rate(
                            "headroom_tokens_total",
                            f'{BACKEND}, model=~"$model", kind=~"prompt|cached"',
                            "backend, kind",
                        ),
                        "{{backend}} {{kind}}",
                    ),
                ),
            ),
            Panel(
                "Time between tokens",
                "s",
                quantiles("headroom_itl_seconds", BACKEND, "backend", "{{backend}}", 0.5, 0.99),
            ),
            Panel(
                "Attempts by backend",
                "reqps",
                (Query(rate("headroom_attempts_total", BACKEND, "backend"), "{{backend}}"),),
            ),
            Panel(
                "Ejections",
                "short",
                (Query(raised("headroom_backend_ejections_total", BACKEND, "backend"), "{{backend}}"),),
            ),
            Panel(
                "Age of the last report",
                "s",
                (Query(f"min by (backend) (headroom_engine_report_age_seconds{{{BACKEND}}})", "{{backend}}"),),
            ),
        ),
    ),
    (
        "Policy",
        (
            Panel("Decisions", "cps", (Query(rate("headroom_policy_decisions_total", POOL, "role"), "{{role}}"),)),
            Panel(
                "Time of a decision",
                "s",
                (
                    Query(
                        DECISION_S,
                        "{{role}}",
                    ),
                ),
                "Mean",
            ),
            Panel(
                "Faults",
                "cps",
                (Query(rate("headroom_policy_faults_total", POOL, "role, kind"), "{{role}} {{kind}}"),),
                "The last good policy decided instead",
            ),
            Panel(
                "Shadow: agreed",
                "cps",
                (Query(rate("headroom_policy_shadow_decisions_total", POOL, "agreed"), "{{agreed}}"),),
            ),
            Panel(
                "Canary: requests",
                "short",
                (Query(f"sum by (arm, met) (headroom_policy_canary_requests{{{POOL}}})", "{{arm}} met={{met}}"),),
            ),
            Panel(
                "Config: reloads and validations",
                "short",
                (
                    Query(raised("headroom_config_reloads_total", POOL, "result"), "reload {{result}}"),
                    Query(raised("headroom_reload_validations_total", POOL, "result"), "validation {{result}}"),
                ),
            ),
        ),
    ),
    (
        "Autoscaler",
        (
            Panel(
                "Replicas",
                "short",
                (
                    Query(
                        'max by (model, variant) (headroom_replicas_wanted{model=~"$model"})',
                        "{{model}} {{variant}} wanted",
                    ),
                    Query(
                        'max by (model, variant) (headroom_replicas_running{model=~"$model"})',
                        "{{model}} {{variant}} running",
                    ),
                ),
                width=12,
            ),
            Panel(
                "Advice applied, by outcome",
                "cps",
                (
                    Query(
                        rate("headroom_autoscale_applied_total", 'model=~"$model"', "model, variant, outcome"),
                        "{{model}} {{variant}} {{outcome}}",
                    ),
                ),
                width=12,
            ),
        ),
    ),
    (
        "Routers",
        (
            Panel(
                "Processor time",
                "percentunit",
                (Query(rate("process_cpu_seconds_total", POOL, "instance"), "{{instance}}"),),
                "Of one core",
            ),
            Panel(
                "Memory",
                "bytes",
                (
                    Query(f"sum by (instance) (process_resident_memory_bytes{{{POOL}}})", "{{instance}}"),
                    Query(f"sum by (instance) (headroom_buffered_bytes{{{POOL}}})", "{{instance}} buffered"),
                ),
            ),
            Panel(
                "Shared state: time of a sync",
                "s",
                quantiles("headroom_state_sync_seconds", POOL, "instance", "{{instance}}", 0.5, 0.99),
            ),
            Panel(
                "Shared state: up, peers",
                "short",
                (
                    Query(f"min by (instance) (headroom_state_up{{{POOL}}})", "{{instance}} up"),
                    Query(f"max by (instance) (headroom_state_peers{{{POOL}}})", "{{instance}} peers"),
                ),
            ),
            Panel(
                "Changes between routers: messages a second, peers that push",
                "short",
                (
                    Query(rate("headroom_peer_changes_total", POOL, "instance, event"), "{{instance}} {{event}}"),
                    Query(f"min by (instance) (headroom_peers_pushing{{{POOL}}})", "{{instance}} peers"),
                ),
            ),
            Panel(
                "Dropped: events, lines, spans",
                "cps",
                (
                    Query(rate("headroom_record_dropped_events_total", POOL, "instance"), "{{instance}} record"),
                    Query(rate("headroom_log_dropped_lines_total", POOL, "instance, log"), "{{instance}} {{log}} log"),
                    Query(
                        rate("headroom_trace_spans_total", f'{POOL}, result="failed"', "instance"), "{{instance}} spans"
                    ),
                ),
            ),
            Panel(
                "Versions",
                "short",
                (
                    Query(
                        f"sum by (instance, version, build) (headroom_build_info{{{POOL}}})",
                        "{{instance}} {{version}} {{build}}",
                    ),
                    Query(
                        f"sum by (instance, version) (headroom_config_info{{{POOL}}})",
                        "{{instance}} config {{version}}",
                    ),
                ),
            ),
        ),
    ),
)

VARIABLES: Final = (  # name, label, query
    ("pool", "Pool", "label_values(headroom_build_info, job)"),
    ("model", "Model", 'label_values(headroom_slo_requests_total{job=~"$pool"}, model)'),
    ("class", "Class", 'label_values(headroom_slo_requests_total{job=~"$pool"}, slo_class)'),
    ("backend", "Backend", 'label_values(headroom_backend_up{job=~"$pool"}, backend)'),
)


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0} | ({"max": panel.most} if panel.most else {})
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [_target(at, query) for at, query in enumerate(panel.queries)],
    }


def _target(at: int, query: Query) -> dict[str, Any]:
    named = {"refId": chr(ord("A") + at), "expr": query.expr, "legendFormat": query.legend}
    return named | {"exemplar": "_bucket" in query.expr}


def _panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS:
        row = {"id": len(made) + 1, "type": "row", "title": title, "collapsed": False, "panels": []}
        made.append(row | {"gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}})
        y, x = y + 1, 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                y, x = y + HEIGHT, 0
            made.append(_panel(panel, len(made) + 1, x, y))
            x += panel.width
        y += HEIGHT
    return made


def _variables() -> list[dict[str, Any]]:
    chosen = [
        {
            "name": name, "label": label, "type": "query", "datasource": DATASOURCE, "refresh": 2, "sort": 1,
            "multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"},
            "definition": query, "query": {"query": query, "refId": name},
        }
        for name, label, query in VARIABLES
    ]  # fmt: skip
    return [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}, *chosen]


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    return {
        "uid": "headroom",
        "title": "Headroom",
        "tags": ["llm"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": _panels(),
    }
