"""Several workers' views of one fleet as one: each worker's own load added up, what all observe taken once.

The form is that of ``fleet_view.py``. Must not depend on how the views were fetched. A worker counts the other workers
among the other routers; here they are taken out again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

View = Mapping[str, Any]

SHOWN: Final = 30
FAILED_SHOWN: Final = 100
FOLLOWED_S: Final = 5.0  # within so long the other workers follow one that took a config
_COUNTS: Final = ("requests", "slo_met", "refused")
_MEANS: Final = ("ttft_ms", "ttft_predicted_ms", "tpot_ms", "tpot_predicted_ms")


def fleet(views: Mapping[int, View], ids: Mapping[int, str]) -> dict[str, Any]:
    """The fleet by all that answered, first the one that got the request. ``ids``: router ids by slot."""
    answered = list(views.values())
    own = answered[0]
    ours = set(ids.values())
    return dict(own) | {
        "ready": any(view["ready"] for view in answered),
        "draining": any(view["draining"] for view in answered),
        "config": reloads([view["config"] for view in answered]),
        "in_flight": sum(view["in_flight"] for view in answered),
        "held": sum(view["held"] for view in answered),
        "peers": {peer: version for peer, version in own["peers"].items() if peer not in ours},
        "last": _counts([view["last"] for view in answered]),
        "backends": [_backend(given["name"], answered) for given in own["backends"]],
        "recent": sorted((line for view in answered for line in view["recent"]), key=_age)[:SHOWN],
        "violated": sorted((line for view in answered for line in view["violated"]), key=_age)[:SHOWN],
        "failed": sorted((line for view in answered for line in view["failed"]), key=_age)[:FAILED_SHOWN],
        "workers": {ids[slot]: _worker(views.get(slot)) for slot in sorted(ids)},
    }


def reloads(views: Iterable[View]) -> dict[str, Any]:
    """The reload in progress and the last result: of the worker that validated, as the others follow it unvalidated."""
    given = list(views)
    newest = max(view["last"]["at_s"] for view in given)
    of_now = [view["last"] for view in given if newest - view["last"]["at_s"] < FOLLOWED_S]
    last = next((each for each in of_now if each["validation"]["replays"] or not each["ok"]), of_now[0])
    return {"last": last, "reloading": next((view["reloading"] for view in given if view["reloading"]), None)}


def _age(line: View) -> float:
    return float(line["age_s"])


def _worker(view: View | None) -> dict[str, Any]:
    """One worker in short; one that is being started again does not answer."""
    if view is None:
        return {"up": False}
    return {"up": True} | {name: view[name] for name in ("pid", "version", "ready", "in_flight", "held")}


def _backend(name: str, views: Sequence[View]) -> dict[str, Any]:
    seen = [backend for view in views for backend in view["backends"] if backend["name"] == name]
    own = seen[0]
    siblings = sum(sum(each["load"][phase] for phase in ("prefilling", "decoding")) for each in seen[1:])
    reports = [each["engine"] for each in seen if each["engine"] is not None]
    return dict(own) | {
        "up": any(each["up"] for each in seen),
        "load": {key: sum(each["load"][key] for each in seen) for key in own["load"]},
        "others": max(0, own["others"] - siblings),
        "engine": min(reports, key=_age) if reports else None,
        "last": _counts([each["last"] for each in seen]) | _times([each["last"] for each in seen]),
    }


def _counts(parts: Sequence[View]) -> dict[str, int]:
    return {name: sum(part[name] for part in parts) for name in _COUNTS}


def _times(parts: Sequence[View]) -> dict[str, float | None]:
    """Means weighed by requests; rates added up."""
    return {name: _mean((part[name], part["requests"]) for part in parts) for name in _MEANS} | {
        "output_tokens_per_s": round(sum(part["output_tokens_per_s"] for part in parts), 1)
    }


def _mean(weighed: Iterable[tuple[float | None, float]]) -> float | None:
    pairs = [(value, weight) for value, weight in weighed if value is not None]
    total = sum(weight for _, weight in pairs)
    return round(sum(value * weight for value, weight in pairs) / total, 2) if total else None
