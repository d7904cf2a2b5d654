"""The figures of a run, as `--json` writes them and tables show them. Seconds, tokens, USD."""

from typing import Any, Final

import numpy as np

from router.core.decisions import EndState
from simulator.pool import Site
from simulator.run.play import RunResult
from simulator.run.result_table import Floats, ResultTable

QUANTILES: Final = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0))


def summarise(played: RunResult) -> dict[str, Any]:
    """Every figure of one run. Undefined figures are None, never nan."""
    table = played.table
    span_s = span(played)
    outcome = table.column("outcome")
    counts = {kind.value: int((outcome == number).sum()) for number, kind in enumerate(EndState)}
    tokens = float(table.column("output_tokens").sum())
    cost = played.usd
    return {
        "requests": len(table),
        **counts,
        "shed": counts["refused"],
        "shed_by_reason": dict(sorted(table.reasons.items())),
        "held": played.held,
        "retried": played.retried,
        "attainment": _number(table.met().mean()) if len(table) else None,
        "goodput_per_s": _number(table.met().sum() / span_s) if span_s else None,
        "span_s": span_s,
        **{f"{name}_s": spread(values) for name, values in table.latencies_s().items()},
        "output_tokens": int(tokens),
        "output_tokens_per_s": _number(tokens / span_s) if span_s else None,
        "usd": _number(cost),
        "gpu_seconds": sum(_cards(engine.site) * engine.replica.busy_s for engine in played.engines.values()),
        "usd_per_million_output_tokens": _number(cost / tokens * 1e6) if tokens else None,
        "forecast": forecast_errors(table),
        "faults_outside": [fault.described() for fault in played.faults_outside],
        "by_class": by_class(table),
        "backends": backends(played, span_s),
    }


def _cards(site: Site) -> int:
    return site.member.tp * site.member.pp


def span(played: RunResult) -> float:
    """First arrival to last end, seconds."""
    table = played.table
    if not len(table):
        return 0.0
    return float(np.nanmax(table.column("ended_s")) - table.column("arrived_s").min())


def spread(values: Floats) -> dict[str, float | None]:
    """Mean and quantiles of the finite values; None for each if there is none."""
    there = values[np.isfinite(values)]
    if not len(there):
        return dict.fromkeys(("mean", *(name for name, _ in QUANTILES)))
    at = np.percentile(there, [q for _, q in QUANTILES])
    return {"mean": float(there.mean()), **{name: float(x) for (name, _), x in zip(QUANTILES, at, strict=True)}}


def forecast_errors(table: ResultTable) -> dict[str, dict[str, float | None]]:
    """Errors of the predictions made at the send: median of |predicted - actual| / actual, and median bias, of TTFT,
    TPOT and E2E.
    """
    sent_s = table.column("sent_s")
    pairs = {
        "ttft": (table.column("predicted_ttft_s"), table.column("first_s") - sent_s),
        "tpot": (table.column("predicted_tpot_s"), table.tpot_s()),
        "e2e": (table.column("predicted_e2e_s"), np.where(table.served(), table.column("ended_s") - sent_s, np.nan)),
    }
    return {name: _error(predicted, actual) for name, (predicted, actual) in pairs.items()}


def _error(predicted: Floats, actual: Floats) -> dict[str, float | None]:
    there = np.isfinite(predicted) & np.isfinite(actual) & (actual > 0)
    if not there.any():
        return {"error": None, "bias": None}
    off = predicted[there] / actual[there] - 1.0
    return {"error": float(np.median(np.abs(off))), "bias": float(np.median(off))}


def by_class(table: ResultTable) -> dict[str, dict[str, Any]]:
    """Requests and attainment of each SLO class."""
    names = np.array(table.slo_classes)
    met = table.met()
    return {
        name: {"requests": int((names == name).sum()), "attainment": float(met[names == name].mean())}
        for name in sorted(set(table.slo_classes))
    }


def backends(played: RunResult, span_s: float) -> dict[str, dict[str, Any]]:
    """Figures of each backend: share of requests, busy share, preemptions, cache hits, and whether
    it is a slow node.
    """
    table = played.table
    where = table.column("backend")
    sent = max(1, int((where >= 0).sum()))
    figures: dict[str, dict[str, Any]] = {}
    for engine in played.engines.values():
        site, replica = engine.site, engine.replica
        number = table.backends.index(site.name) if site.name in table.backends else -2
        figures[site.name] = {
            "card": f"{site.member.tp * site.member.pp}x {site.member.card_name}",
            "share": int((where == number).sum()) / sent,
            "busy": replica.busy_s / span_s if span_s else 0.0,
            "steps": replica.steps,
            "preemptions": replica.preemptions,
            "prefix_hit_rate": replica.cached_tokens / replica.prompt_tokens if replica.prompt_tokens else 0.0,
            "usd_per_hour": site.backend.price_per_hour,
            "slow_node": site.truth.slow,
        }
    return figures


def _number(value: float) -> float:
    return float(value)
