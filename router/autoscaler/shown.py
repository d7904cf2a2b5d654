"""The last decision of an autoscaler as JSON for people: ``/admin/scaling``. Reads it and changes nothing."""

from dataclasses import asdict
from math import isfinite
from typing import Any

from router.autoscaler.loop import Decision
from router.targets import Advice


def shown(decision: Decision | None) -> dict[str, Any]:
    """What was read, advised and done in the last round, and why."""
    if decision is None:
        return {"decided": None}
    return {
        "decided": {
            "at_s": round(decision.at_s, 3),
            "leads": decision.leads,
            "failure": decision.failure or None,
            "only_added": list(decision.only_added),
            "demand": {model: _json(asdict(each)) for model, each in decision.demand.items()},
            "without_advice": dict(decision.without),
            "decisions": {model: _json(asdict(each)) for model, each in decision.decided.items()},
            "start_times": {
                name: {"expected_s": round(each.expected_s, 3), "starts": each.starts}
                for name, each in decision.starts.items()
            },
            "advice": [
                {
                    "model": one.model,
                    "variant": one.variant,
                    "running": one.running,
                    "counted_by": _counted_by(decision, one),
                    "replicas": one.replicas,
                    "why": one.why,
                    "outcome": applied.outcome.value,
                    "result": applied.reason,
                }
                for one, applied in zip(decision.advice, decision.applied, strict=True)
            ],
        }
    }


def _counted_by(decision: Decision, one: Advice) -> str | None:
    by = decision.counts.by.get((one.model, one.variant))
    return None if by is None else by.value


def _json(value: Any) -> Any:
    """As JSON can hold it: what is no finite number is null."""
    if isinstance(value, dict):
        return {key: _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    if isinstance(value, float):
        return round(value, 6) if isfinite(value) else None
    return value
