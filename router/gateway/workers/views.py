"""Several workers' views of one fleet as one: each worker's own load added up, what all observe taken once.

The form is that of ``fleet_view.py``. Must not depend on how the views were fetched. A worker counts the other workers
among the other routers; here they are taken out again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from router.gateway.rollout.canary import Arm, drop

View = Mapping[str, Any]

SHOWN: Final = 30
FAILED_SHOWN: Final = 100
FOLLOWED_S: Final = 5.0  # within so long the other workers follow one that took a config
_COUNTS: Final = ("requests", "slo_met", "refused")
UNSEEN: Final = "unseen"  # the state of an endpoint at a worker that has not found it
_STATES: Final = ("skipped", UNSEEN, "reading", "draining", "serving")
_MEANS: Final = ("ttft_ms", "ttft_predicted_ms", "tpot_ms", "tpot_predicted_ms")


def fleet(views: Mapping[int, View], ids: Mapping[int, str]) -> dict[str, Any]:
    """The fleet by all that answered, first the one that got the request: each backend that any of them has.

    ``ids``: router ids by slot.
    """
    answered = list(views.values())
    own = answered[0]
    ours = set(ids.values())
    return dict(own) | {
        "ready": any(view["ready"] for view in answered),
        "draining": any(view["draining"] for view in answered),
        "config": reloads([view["config"] for view in answered]),
        "trial": _trial(view["trial"] for view in answered),
        "shadow": _shadow(view["shadow"] for view in answered),
        "in_flight": sum(view["in_flight"] for view in answered),
        "held": sum(view["held"] for view in answered),
        "failing_open": sorted({model for view in answered for model in view["failing_open"]}),
        "state_fault": next((view["state_fault"] for view in answered if view["state_fault"]), None),
        "client_errors": sum(view["client_errors"] for view in answered),
        "peers": {peer: version for peer, version in own["peers"].items() if peer not in ours},
        "push": _push([view["push"] for view in answered]),
        "last": _counts([view["last"] for view in answered]),
        "backends": [_backend(name, answered) for name in _names(view["backends"] for view in answered)],
        "recent": sorted((line for view in answered for line in view["recent"]), key=_age)[:SHOWN],
        "violated": sorted((line for view in answered for line in view["violated"]), key=_age)[:SHOWN],
        "failed": sorted((line for view in answered for line in view["failed"]), key=_age)[:FAILED_SHOWN],
        "workers": {ids[slot]: _worker(views.get(slot)) for slot in sorted(ids)},
    }


def discovery(views: Mapping[int, View], ids: Mapping[int, str]) -> dict[str, Any]:
    """The sources of backends: of each what every worker has found, an endpoint with its state at the worker where it
    is furthest from serving. ``workers``, where they differ: by router id.
    """
    answered = {ids[slot]: view for slot, view in views.items()}
    own = next(iter(views.values()))
    found = []
    for source in dict.fromkeys(each["source"] for view in answered.values() for each in view["sources"]):
        seen = {name: each for name, view in answered.items() for each in view["sources"] if each["source"] == source}
        found.append(_source(seen))
    return dict(own) | {"sources": found}


def _source(seen: Mapping[str, View]) -> dict[str, Any]:
    """One source; what fails is shown where it fails for any worker."""
    shown = next((each for each in seen.values() if not each["up"]), next(iter(seen.values())))
    states = {name: {each["name"]: each["state"] for each in view["endpoints"]} for name, view in seen.items()}
    endpoints = []
    for name in _names(view["endpoints"] for view in seen.values()):
        by_worker = {worker: known.get(name, UNSEEN) for worker, known in states.items()}
        furthest = min(by_worker.values(), key=_STATES.index)
        given = next(each for view in seen.values() for each in view["endpoints"] if each["name"] == name)
        differs = {"workers": by_worker} if len(set(by_worker.values())) > 1 else {}
        endpoints.append(dict(given) | {"state": furthest} | differs)
    facts = ("up", "answered_s", "failing_since_s", "why", "failures", "endpoints", "terminating")
    short = {
        name: {fact: view[fact] if fact != "endpoints" else len(view["endpoints"]) for fact in facts}
        for name, view in seen.items()
    }
    return dict(shown) | {
        "failures": sum(each["failures"] for each in seen.values()),
        "terminating": sum(each["terminating"] for each in endpoints),
        "endpoints": endpoints,
        "workers": short,
    }


def usage(views: Sequence[View]) -> dict[str, Any]:
    """What accounts have used: added up where no shared state does that already."""
    own = views[0]
    names = dict.fromkeys(name for view in views for name in view["accounts"])
    fold = max if own["month"] is not None else sum
    accounts = {
        name: _account([view["accounts"][name] for view in views if name in view["accounts"]], fold) for name in names
    }
    return dict(own) | {"accounts": accounts}


def _account(seen: Sequence[View], fold: Callable[[Iterable[float]], float]) -> dict[str, Any]:
    """Each worker counts what is left and what runs by all; the newest of them is the strictest."""
    left = {name: [each[name] for each in seen if each[name] is not None] for name in ("requests_left", "tokens_left")}
    return dict(seen[0]) | {
        **{name: min(values, default=None) for name, values in left.items()},
        "running": max(each["running"] for each in seen),
        "used": {name: fold(each["used"][name] for each in seen) for name in seen[0]["used"]},
    }


def _names(lists: Iterable[Sequence[View]]) -> list[str]:
    """Of all lists, each once."""
    return list(dict.fromkeys(each["name"] for views in lists for each in views))


def reloads(views: Iterable[View]) -> dict[str, Any]:
    """The reload in progress and the last result: of the worker that validated or judged, as the others follow it."""
    given = list(views)
    newest = max(view["last"]["at_s"] for view in given)
    of_now = [view["last"] for view in given if newest - view["last"]["at_s"] < FOLLOWED_S]
    last = next((each for each in of_now if each["validation"]["replays"] or each["why"] or not each["ok"]), of_now[0])
    return {"last": last, "reloading": next((view["reloading"] for view in given if view["reloading"]), None)}


def _trial(trials: Iterable[View | None]) -> View | None:
    """A canary's trial: the requests of all workers together, each of which judges by its own."""
    given = [trial for trial in trials if trial is not None]
    if not given:
        return None
    arms = {}
    for name in given[0]["arms"]:
        requests, met = (sum(trial["arms"][name][fact] for trial in given) for fact in ("requests", "met"))
        arms[name] = Arm(requests, met)
    return dict(given[0]) | {"arms": {name: arm.plain() for name, arm in arms.items()}, "drop": drop(arms)}


def _shadow(shadows: Iterable[View | None]) -> View | None:
    """A shadow's decisions in all workers: the means are weighed by them."""
    given = [shadow for shadow in shadows if shadow is not None]
    if not given:
        return None
    means = {
        part: {name: _mean((each[part][name], each["decisions"]) for each in given) for name in given[0][part]}
        for part in ("gain_ms", "predicted_met")
    }
    agreement = _mean(((each["agreement"], each["decisions"]) for each in given), 4)
    return {"decisions": sum(each["decisions"] for each in given), "agreement": agreement} | means


def _push(pushes: Iterable[View | None]) -> View | None:
    """Of the worker that receives the changes of the fewest."""
    given = [push for push in pushes if push is not None]
    return min(given, key=lambda push: len(push["peers"]), default=None)


def _age(line: View) -> float:
    return float(line["age_s"])


def _worker(view: View | None) -> dict[str, Any]:
    """One worker in short; one that is being started again does not answer."""
    if view is None:
        return {"up": False}
    short = {name: view[name] for name in ("pid", "version", "ready", "in_flight", "held")}
    return {"up": True} | short | {"backends": len(view["backends"])}


def _backend(name: str, views: Sequence[View]) -> dict[str, Any]:
    seen = [backend for view in views for backend in view["backends"] if backend["name"] == name]
    own = next((each for each in seen if each["up"]), seen[0])  # why it is down is stated where it is down for all
    siblings = sum(sum(each["load"][phase] for phase in ("prefilling", "decoding")) for each in seen if each is not own)
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


def _mean(weighed: Iterable[tuple[float | None, float]], digits: int = 2) -> float | None:
    pairs = [(value, weight) for value, weight in weighed if value is not None]
    total = sum(weight for _, weight in pairs)
    return round(sum(value * weight for value, weight in pairs) / total, digits) if total else None
