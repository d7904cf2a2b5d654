"""The fleet as people and dashboards want to see it: who is up, what runs where, how good the forecasts are.

Believes: the gateway's parts as they stand. Changes nothing; made anew for every reader, milliseconds at this rim.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from router.core.columns import DECODING, PREFILLING
from router.core.decisions import EndState, RequestRecord
from router.core.score import Score
from router.core.types import EngineReport, Load
from router.gateway.control.journal import JournalEntry, explained

if TYPE_CHECKING:
    from router.gateway.app import Gateway

RECENT_S: Final = 60.0
SHOWN: Final = 30


def fleet(gateway: "Gateway") -> dict[str, Any]:
    """Everything the fleet page shows."""
    now_s, plan = gateway.clock(), gateway.plan
    lately = [entry for entry in gateway.journal.recent() if now_s - entry.outcome.account.ended_s < RECENT_S]
    scores = gateway.scores()
    by_backend: dict[str, list[RequestRecord]] = defaultdict(list)
    for entry in lately:
        by_backend[entry.outcome.account.backend].append(entry.outcome.account)
    return {
        "router": gateway.router_id,
        "pid": os.getpid(),
        "version": plan.version,
        "ready": gateway.ready,
        "draining": gateway.driver.draining,
        "policy": policy(gateway),
        "in_flight": gateway.core.in_flight,
        "held": gateway.core.held,
        "peers": {peer: view.version for peer, view in gateway.sync.peers.items()},
        "last": _kept(entry.outcome.account for entry in lately),
        "backends": [_backend(gateway, given, by_backend[given["name"]], scores) for given in _backends(gateway)],
        "recent": [_line(entry, now_s) for entry in islice(gateway.journal.recent(), SHOWN)],
    }


def policy(gateway: "Gateway") -> dict[str, Any]:
    """Who decides, with its parameters."""
    given = gateway.plan.settings.policy
    shown = {role: getattr(given, role).model_dump(mode="json") for role in ("routing", "admission", "scaling")}
    for role, each in gateway.plan.chosen.items():
        if role in shown:
            shown[role]["name"] = each.name  # a policy file's is the file's
    return shown


def changes(gateway: "Gateway") -> dict[str, Any]:
    """What policies do, which configs served, and every step from one to the other."""
    reloader = gateway.reloader
    return {
        "version": gateway.plan.version,
        "live": gateway.steering.plain(),
        "history": [version.plain() for version in reloader.versions],
        "audit": list(gateway.audit.last),
    }


def _backends(gateway: "Gateway") -> list[dict[str, Any]]:
    shown = {"name", "url", "protocol", "models", "tp", "pp", "precision", "seqs_max"}
    plan = gateway.plan
    pairs = zip(plan.settings.backends, plan.backends, strict=True)
    return [
        given.model_dump(include=shown)
        | {"card": backend.labels["card"], "model": backend.labels["model"], "variant": backend.variant}
        | {"kv_tokens_max": backend.kv_tokens_max, "price_per_hour": backend.price_per_hour}
        for given, backend in pairs
    ]


def _backend(
    gateway: "Gateway", facts: dict[str, Any], accounts: Sequence[RequestRecord], scores: Mapping[str, Score]
) -> dict[str, Any]:
    name = facts["name"]
    watch = gateway.engines.watches.get(name)
    load = gateway.core.loads().get(name, Load())
    slot, ledger = gateway.core.ledger.roster.slot(name), gateway.core.ledger
    others = 0.0 if slot is None else float(ledger.table.peers[PREFILLING, slot] + ledger.table.peers[DECODING, slot])
    report = gateway.reports.get(name)
    return facts | {
        "up": bool(watch and watch.up),
        "load": {key: round(value) for key, value in asdict(load).items()},
        "forecast": scores[name].state if name in scores else None,
        "others": round(others),
        "engine": None if report is None else _engine(report, gateway.clock()),
        "last": _kept(accounts) | _times(accounts),
    }


def _kept(accounts: Iterable[RequestRecord]) -> dict[str, Any]:
    """How many ended in the last minute, and how many of them kept their SLO."""
    ended = [account for account in accounts if account.outcome is not EndState.LEFT]
    return {
        "requests": len(ended),
        "slo_kept": sum(account.slo_met for account in ended),
        "refused": sum(account.outcome is EndState.REFUSED for account in ended),
    }


def _times(accounts: Sequence[RequestRecord]) -> dict[str, Any]:
    """Means of the last minute, predicted beside actual, from the send; tokens a second."""
    served = [a for a in accounts if a.outcome is EndState.SERVED]
    foretold = [a for a in served if isfinite(a.predicted_ttft_s) and a.request.streamed]
    paced = [a for a in foretold if a.usage.output_tokens > 1]
    return {
        "ttft_ms": _mean_ms(a.first_byte_s - a.sent_s for a in foretold),
        "ttft_predicted_ms": _mean_ms(a.predicted_ttft_s for a in foretold),
        "tpot_ms": _mean_ms(a.tpot_s for a in paced),
        "tpot_predicted_ms": _mean_ms(a.predicted_tpot_s for a in paced),
        "output_tokens_per_s": round(sum(a.usage.output_tokens for a in served) / RECENT_S, 1),
    }


def _mean_ms(seconds: Iterable[float]) -> float | None:
    values = [value for value in seconds if isfinite(value)]
    return round(sum(values) / len(values) * 1e3, 2) if values else None


def _line(entry: JournalEntry, now_s: float) -> Mapping[str, Any]:
    """A request in short, for the list of the last ones."""
    full = explained(entry)
    short = ("request_id", "model", "backend", "outcome", "reason", "status", "prompt_tokens", "output_tokens")
    why = full["decisions"][-1]["why"] if full["decisions"] else ""
    return {key: full[key] for key in short} | {
        "slo_met": full["slo"]["met"],
        "slo_class": full["slo"]["class"],
        "held_ms": full["actual"]["held_ms"],
        "ttft_ms": full["actual"]["ttft_from_send_ms"],
        "ttft_predicted_ms": full["predicted"]["ttft_ms"],
        "tpot_ms": full["actual"]["tpot_ms"],
        "tpot_predicted_ms": full["predicted"]["tpot_ms"],
        "e2e_ms": full["actual"]["e2e_ms"],
        "why": why,
        "age_s": round(now_s - entry.outcome.account.ended_s, 3),
    }


def _engine(report: EngineReport, now_s: float) -> dict[str, float | None]:
    """What the engine last said of itself, and how long ago it was asked."""
    said = {name: value for name, value in asdict(report).items() if name != "asked_s"}
    return {"age_s": round(now_s - report.asked_s, 3)} | {
        name: value if isfinite(value) else None for name, value in said.items()
    }
