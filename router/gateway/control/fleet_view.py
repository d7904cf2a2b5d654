"""The fleet as JSON for people and dashboards: which backends are up, their load, the accuracy of forecasts.

Reads the router's parts and changes nothing; made anew for every reader, times in milliseconds. Of many backends it is
made in parts, between which the event loop serves streams.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from math import isfinite
from typing import Any, Final

from router.core.columns import DECODING, E2E, PREFILLING
from router.core.decisions import EndState, RequestRecord
from router.core.errors import ConfigError
from router.core.slo_metrics import SLO_METRICS
from router.core.types import EngineReport, Load
from router.gateway.config.plan import Plan
from router.gateway.control.parts import ControlParts
from router.gateway.membership import IDLE
from router.gateway.monitoring.downtime import Downtimes
from router.gateway.monitoring.troubles import NONE as NO_TROUBLE
from router.gateway.monitoring.troubles import Troubles, troubles
from router.gateway.rollout.differences import differences
from router.gateway.state.changes import Changes
from router.gateway.telemetry.journal import explained
from router.gateway.traffic.request_log import RequestLog
from router.gateway.turns import in_turns

RECENT_S: Final = 60.0
SHOWN: Final = 30
FAILED_SHOWN: Final = 100


async def fleet(parts: ControlParts) -> dict[str, Any]:
    """Everything the fleet page shows."""
    now_s, plan, downs = parts.clock(), parts.plan, parts.downtimes()
    failing, loads, live = troubles(parts.core, now_s), parts.core.loads(), parts.rollout.plain()
    recent = [log for log in parts.journal.recent() if now_s - log.record.ended_s < RECENT_S]
    by_backend: dict[str, list[RequestRecord]] = defaultdict(list)
    for log in recent:
        by_backend[log.record.backend].append(log.record)
    return {
        "router": parts.router_id,
        "pid": os.getpid(),
        "version": plan.version,
        "ready": parts.ready(),
        "draining": parts.driver.draining,
        "policy": policy(parts),
        "config": reloads(parts),
        "trial": live["canary"],
        "shadow": live["shadow"],
        "in_flight": parts.core.in_flight,
        "held": parts.core.held,
        "failing_open": list(parts.failing_open()),
        "peers": {peer: view.version for peer, view in parts.sync.peers.items()},
        "state_fault": str(parts.sync.fault) if parts.sync.fault else None,
        "push": _push(parts.changes),
        "last": _counts(log.record for log in recent),
        "backends": [
            _backend(parts, given, by_backend[given["name"]], downs, failing, loads.get(given["name"], IDLE))
            async for given in in_turns(_backends(plan))
        ],
        "client_errors": sum(log.record.outcome is EndState.CLIENT_ERROR for log in recent),
        "recent": [_line(log, now_s) for log in islice(parts.journal.recent(), SHOWN)],
        "failed": [_line(log, now_s) for log in islice(parts.journal.failed(), FAILED_SHOWN)],
        "violated": [_line(log, now_s) for log in islice(_violated(parts), SHOWN)],
    }


def _push(changes: Changes | None) -> dict[str, Any] | None:
    """The peers whose changes come as they happen, and what fails of it; None: nothing is exchanged."""
    return None if changes is None else {"peers": changes.peers, "faults": dict(changes.faults)}


def readiness(parts: ControlParts) -> dict[str, Any]:
    """Whether requests can be routed here, and which backends are the reason."""
    downs = parts.downtimes()
    up = sorted(parts.engines.watches.keys() - downs.keys())
    found: dict[str, Any] = {"ready": parts.ready(), "draining": parts.driver.draining, "backends_up": up}
    if downs:
        found["backends_down"] = {name: [down.reason.value for down in each] for name, each in downs.items()}
    if models := parts.failing_open():
        found["failing_open"] = list(models)
    if late := parts.sources.unanswered:
        found["sources_unanswered"] = late
    return found


def policy(parts: ControlParts) -> dict[str, Any]:
    """The policies with their parameters."""
    given = parts.plan.settings.policy
    shown = {role: getattr(given, role).model_dump(mode="json") for role in ("routing", "admission", "scaling")}
    for role, each in parts.plan.chosen.items():
        if role in shown:
            shown[role]["name"] = each.name  # a policy file's is the file's
    return shown


def changes(parts: ControlParts) -> dict[str, Any]:
    """Statistics of policies, the configs that served, and the audit log."""
    reloader = parts.reloader
    return {
        "version": parts.plan.version,
        "live": parts.rollout.plain(),
        "history": [version.plain() for version in reloader.versions],
        "audit": list(parts.audit.last),
    } | reloads(parts)


def reloads(parts: ControlParts) -> dict[str, Any]:
    """The result of the last reload, and the one in progress."""
    reloader = parts.reloader
    now = reloader.reloading
    return {"last": asdict(reloader.last), "reloading": None if now is None else asdict(now)}


def slos(parts: ControlParts) -> dict[str, Any]:
    """The bounds of each SLO class in milliseconds, and which class is the default one."""
    ingress = parts.plan.ingress
    classes = {
        name: {
            metric.milliseconds: round(bound_s * 1e3, 3)
            for metric, bound_s in zip(SLO_METRICS, each.slo.bounds_s(), strict=True)
            if isfinite(bound_s)
        }
        for name, each in ingress.classes.items()
    }
    return {"slos": classes, "default_class": parts.plan.settings.default_slo_class}


def difference(parts: ControlParts, old: str | None, new: str | None) -> dict[str, Any]:
    """What differs between two versions: by default the one before, and the one that serves. Raises ConfigError."""
    versions = parts.reloader.versions
    now = versions.find(new or parts.plan.version)
    before = versions.find(old) if old else versions.before(now.version)
    if before is None:
        raise ConfigError(["no earlier version has served"])
    return differences(before, now)


def _backends(plan: Plan) -> Iterator[dict[str, Any]]:
    shown = {"name", "url", "models", "tp", "pp", "precision", "seqs_max"}
    pairs = zip(plan.addresses, plan.backends, strict=True)
    return (
        given.model_dump(include=shown)
        | {
            "protocol": given.kind.protocol,
            "card": backend.labels["card"],
            "model": backend.labels["model"],
            "variant": backend.variant,
        }
        | {"kv_tokens_max": backend.kv_tokens_max, "price_per_hour": backend.price_per_hour}
        for given, backend in pairs
    )


def _backend(
    parts: ControlParts,
    facts: dict[str, Any],
    records: Sequence[RequestRecord],
    downs: Downtimes,
    failing: Troubles,
    load: Load,
) -> dict[str, Any]:
    name = facts["name"]
    watch = parts.engines.watches.get(name)
    slot, ledger = parts.core.ledger.roster.slot(name), parts.core.ledger
    others = 0.0 if slot is None else float(ledger.table.peers[PREFILLING, slot] + ledger.table.peers[DECODING, slot])
    up = bool(watch and watch.up)
    report, score = (parts.reports.get(name), parts.core.score(name)) if up else (None, None)  # of what does not run
    return facts | {
        "up": up,
        "check": None if watch is None else watch.plain(),
        "down": [down.plain() for down in downs.get(name, ())],
        "failures": failing.get(name, NO_TROUBLE).plain(),
        "health_url": watch.health.url if watch and watch.health else None,
        "load": {key: round(value) for key, value in asdict(load).items()},
        "forecast": score.state if score is not None else None,
        "others": round(others),
        "engine": None if report is None else _engine(report, parts.clock()),
        "last": _counts(records) | _times(records),
    }


def _violated(parts: ControlParts) -> Iterator[RequestLog]:
    """Those of the last requests that were served outside their SLO."""
    recent = parts.journal.recent()
    return (log for log in recent if log.record.outcome is EndState.SERVED and not log.record.slo_met)


def _counts(records: Iterable[RequestRecord]) -> dict[str, Any]:
    """Requests that ended in the last minute, and how many of them met their SLO or were refused."""
    ended = [record for record in records if record.judged]
    return {
        "requests": len(ended),
        "slo_met": sum(record.slo_met for record in ended),
        "refused": sum(record.outcome is EndState.REFUSED for record in ended),
    }


def _times(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Means of the last minute, predicted beside actual, from the send; tokens a second."""
    served = [r for r in records if r.outcome is EndState.SERVED]
    predicted = [r for r in served if isfinite(r.predicted_ttft_s) and r.request.streamed]
    several = [r for r in predicted if r.usage.output_tokens > 1 and not r.usage.estimated]  # one alone has no TPOT
    return {
        "ttft_ms": _mean_ms(r.first_token_s - r.sent_s for r in predicted),
        "ttft_predicted_ms": _mean_ms(r.predicted_ttft_s for r in predicted),
        "tpot_ms": _mean_ms(r.tpot_s for r in several),
        "tpot_predicted_ms": _mean_ms(r.predicted_tpot_s for r in several),
        "output_tokens_per_s": round(sum(r.usage.output_tokens for r in records) / RECENT_S, 1),
    }


def _mean_ms(seconds: Iterable[float]) -> float | None:
    values = [value for value in seconds if isfinite(value)]
    return round(sum(values) / len(values) * 1e3, 2) if values else None


def _line(log: RequestLog, now_s: float) -> Mapping[str, Any]:
    """A request in short, for the list of the last ones."""
    full = explained(log)
    short = (
        "request_id", "id", "model", "backend", "outcome", "reason", "status", "prompt_tokens", "output_tokens",
        "output_tokens_estimated",
    )  # fmt: skip
    why = full["decisions"][-1]["why"] if full["decisions"] else ""
    return {key: full[key] for key in short} | {
        "slo_met": full["slo"]["met"],
        "slo_class": full["slo"]["class"],
        "held_ms": full["actual"]["held_ms"],
        "ttft_ms": full["actual"]["ttft_from_send_ms"],
        "ttft_predicted_ms": full["predicted"]["ttft_ms"],
        "tpot_ms": full["actual"]["tpot_ms"],
        "tpot_predicted_ms": full["predicted"]["tpot_ms"],
        **{metric.milliseconds: full["actual"][metric.milliseconds] for metric in SLO_METRICS[E2E:]},
        "why": why,
        "age_s": round(now_s - log.record.ended_s, 3),
    }


def _engine(report: EngineReport, now_s: float) -> dict[str, float | None]:
    """The engine's last report, and its age."""
    return {"age_s": round(now_s - report.asked_s, 3)} | {
        name: value if isfinite(value) else None for name, value in report.numbers().items()
    }
