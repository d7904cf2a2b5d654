"""Views and reports as JSON: one form for every store, with the number of its version.

Releases that are neighbours share one pool. A value without a number is of version 1, as it was written before there
were numbers; a later version than this release's is skipped, and so is what cannot be read at all. Unknown names in a
value are passed over, so that a release may add to a value without another version. Must not depend on where it is
stored. Times are moved onto the store's clock on the way out and back onto the reader's on the way in.

What should be a number and is none is read as inf, which the core's border drops and counts; only demand, which no core
sees, is checked here.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from math import isfinite, nan
from typing import Any, Final

import orjson

from router.core import border
from router.core.errors import SkipReason, Unreadable
from router.core.quota import Shares
from router.core.types import EngineReport, Load
from router.engines import RunningAdapters
from router.gateway.state import KindOfDemand, ModelDemand, RouterView
from router.gateway.state.seen import seen_of, seen_plain

VERSION: Final = 1
_KEY: Final = "format"  # a view's own "version" is that of the config
_LOAD: Final = tuple(field.name for field in fields(Load))
_SHARES: Final = tuple(field.name for field in fields(Shares))
_COUNTS: Final = ("requests_per_s", "prompt_tokens", "output_tokens", "ended", "attained")
_DEMAND_MOST: Final = 1e9  # requests a second, tokens a request, requests a window
_SHARE_MOST: Final = 1e15  # requests or tokens, taken or left; below 0 only what is left can be
_ACCOUNTS_MOST: Final = 20_000
_ACCOUNT_MOST: Final = 600  # characters: of a tenant
_ADAPTERS_MOST: Final = 32  # that requests run for on one engine: a report has 16 KB
_PLACES_MOST: Final = 4096
_KINDS_MOST: Final = 256  # of one model at one router
_BUCKETS_MOST: Final = 10_000
_NAME_MOST: Final = 256  # characters of a backend, a model, a class or a version
_ADDRESS_MOST: Final = 300
_SHOWN_MOST: Final = 100
UNREADABLE: Final = RouterView(version="unreadable")

Note = Callable[[str], None]


def view_json(view: RouterView, at_s: float = nan) -> bytes:
    """A router's view; ``at_s``: when, by the store's clock (nan: that is not known yet)."""
    return orjson.dumps({_KEY: VERSION, "at_s": at_s if isfinite(at_s) else None} | view_plain(view))


def view_plain(view: RouterView) -> dict[str, Any]:
    """The same before it is JSON. Loads field by field: orjson reads past the end of a dataclass that is compiled."""
    loads = {name: {field: getattr(load, field) for field in _LOAD} for name, load in view.loads.items()}
    plain: dict[str, Any] = {"loads": loads, "demand": view.demand, "version": view.version}
    if view.mesh:
        plain["mesh"] = view.mesh
    if view.quotas:
        plain["quotas"] = {name: [getattr(each, field) for field in _SHARES] for name, each in view.quotas.items()}
    if view.age_s:
        plain["age_s"] = view.age_s
    if view.seen is not None:
        plain["seen"] = seen_plain(view.seen)
    return plain


def _ignored(_: str) -> None:
    """For a reader that counts nothing."""


def view_from(raw: bytes, note: Note = _ignored, now_s: float = nan) -> RouterView:
    """A router's view. Raises Unreadable. *note* gets each model whose demand is passed over; ``now_s``: by the store's
    clock, for the age of the view.
    """
    return _view(_parsed(raw), note, now_s)


def view_of(plain: Any) -> RouterView:
    """The same of what was parsed; UNREADABLE, which has no load and no demand, for what cannot be read."""
    try:
        return _view(_checked(plain), _ignored)
    except Unreadable:
        return UNREADABLE


def _parsed(raw: bytes) -> Mapping[str, Any]:
    """A JSON object of a version that this release reads. Raises Unreadable."""
    try:
        plain = orjson.loads(raw)
    except ValueError as error:
        raise Unreadable(SkipReason.UNREADABLE, f"no JSON: {error}") from None
    return _checked(plain)


def _checked(plain: Any) -> Mapping[str, Any]:
    if not isinstance(plain, Mapping):
        raise Unreadable(SkipReason.UNREADABLE, f"expected an object, not {_shown(plain)}")
    version = border.number(plain.get(_KEY, VERSION))
    if not 1 <= version < border.FLOAT_MOST:
        raise Unreadable(SkipReason.UNREADABLE, f"{_KEY}: expected a number from 1, not {_shown(plain[_KEY])}")
    if version > VERSION:
        raise Unreadable(SkipReason.NEWER, f"{_KEY} {version:g}; this release reads up to {VERSION}")
    return plain


def _view(plain: Mapping[str, Any], note: Note, now_s: float = nan) -> RouterView:
    loads, demand, version, mesh = (plain.get(part) for part in ("loads", "demand", "version", "mesh"))
    if not isinstance(loads, Mapping) or not isinstance(demand, Mapping):
        raise Unreadable(SkipReason.UNREADABLE, "expected loads and demand, each an object")
    if not isinstance(version, str) or len(version) > _NAME_MOST:
        raise Unreadable(SkipReason.UNREADABLE, f"version: expected a short text, not {_shown(version)}")
    return RouterView(
        {name: _load_of(name, load) for name, load in loads.items() if len(name) <= _NAME_MOST},
        _demand_of(demand, note),
        version,
        _quotas_of(plain.get("quotas"), note),
        _age_s(plain, now_s),
        seen_of(plain.get("seen")),
        mesh if isinstance(mesh, str) and len(mesh) <= _ADDRESS_MOST else "",
    )


def _age_s(plain: Mapping[str, Any], now_s: float) -> float:
    """How old a view is; 0 where neither its time nor its age is stated, as by an earlier release."""
    at_s, age_s = border.number(plain.get("at_s")), border.number(plain.get("age_s", 0.0))
    if isfinite(now_s) and isfinite(at_s):
        age_s = now_s - at_s
    return min(max(age_s, 0.0), border.FAR_S) if isfinite(age_s) else 0.0


def _quotas_of(plain: Any, note: Note) -> dict[str, Shares]:
    """By account; one is passed over where one of its numbers cannot be."""
    if not isinstance(plain, Mapping) or len(plain) > _ACCOUNTS_MOST:
        return {}
    shares = {}
    for name, each in plain.items():
        numbers = [border.number(number) for number in each] if isinstance(each, list) else []
        good = len(numbers) == len(_SHARES) and all(-_SHARE_MOST <= number <= _SHARE_MOST for number in numbers)
        if good and min(numbers[:3]) >= 0.0 and len(name) <= _ACCOUNT_MOST:
            shares[name] = Shares(*numbers)
        else:
            note(f"quotas.{name[:_NAME_MOST]}: {_shown(each)}")
    return shares


def _load_of(name: str, plain: Any) -> Load:
    if not isinstance(plain, Mapping):
        raise Unreadable(SkipReason.UNREADABLE, f"loads.{name}: expected an object, not {_shown(plain)}")
    return Load(**{field: border.number(plain[field]) for field in _LOAD if field in plain})


def _demand_of(plain: Mapping[str, Any], note: Note) -> dict[str, ModelDemand]:
    """Demand by model; a model's is passed over where one of its numbers is implausible."""
    demand = {}
    for model, each in plain.items():
        if len(model) <= _NAME_MOST and isinstance(each, Mapping) and _plausible(each):
            demand[model] = ModelDemand(
                **{name: each[name] for name in (*_COUNTS, "slo_class")}, **_as_it_arrives(each)
            )
        else:
            note(f"{model[:_NAME_MOST]}: {_shown(each)}")
    return demand


def _plausible(demand: Mapping[str, Any]) -> bool:
    counts = [border.number(demand.get(name)) for name in _COUNTS]
    slo_class = demand.get("slo_class")
    named = isinstance(slo_class, str) and len(slo_class) <= _NAME_MOST
    return named and all(0.0 <= count <= _DEMAND_MOST for count in counts) and counts[4] <= counts[3]


def _as_it_arrives(demand: Mapping[str, Any]) -> dict[str, Any]:
    """What later releases publish of a model; nothing of it where a part is absent or implausible."""
    kinds, arrivals = demand.get("kinds"), demand.get("arrivals")
    numbers = [border.number(demand.get(name)) for name in ("bucket_s", "in_flight")]
    numbers += [border.number(demand.get(name, 0.0)) for name in ("held", "shed_per_s")]  # later than the others
    if not isinstance(kinds, list) or not isinstance(arrivals, list):
        return {}
    if len(kinds) > _KINDS_MOST or len(arrivals) > _BUCKETS_MOST:
        return {}
    counts = [border.number(each) for each in arrivals]
    if not all(0.0 <= number <= _DEMAND_MOST for number in (*numbers, *counts)) or not numbers[0]:
        return {}
    if not all(isinstance(each, Mapping) and _plausible(each) for each in kinds):
        return {}
    return {
        "kinds": tuple(KindOfDemand(**{name: each[name] for name in (*_COUNTS, "slo_class")}) for each in kinds),
        "arrivals": tuple(counts),
        "bucket_s": numbers[0],
        "in_flight": numbers[1],
        "held": numbers[2],
        "shed_per_s": numbers[3],
    }


def report_json(report: EngineReport, ahead_s: float, adapters: RunningAdapters | None = None) -> bytes:
    """An engine's report; ``ahead_s``: how far the store's clock is ahead of the writer's."""
    return orjson.dumps(report_plain(report, ahead_s, adapters))


def report_plain(report: EngineReport, ahead_s: float = 0.0, adapters: RunningAdapters | None = None) -> dict[str, Any]:
    """The same before it is JSON, which has no nan."""
    finite = {name: value for name, value in report.numbers().items() if isfinite(value)}
    plain: dict[str, Any] = {_KEY: VERSION, "asked_s": report.asked_s + ahead_s, **finite}
    if adapters is not None:
        plain["adapters"] = {"running": adapters.names[:_ADAPTERS_MOST], "places": adapters.places}
    return plain


def report_from(raw: bytes, ahead_s: float) -> EngineReport:
    """An engine's report; ``ahead_s``: how far the store's clock is ahead of the reader's. Raises Unreadable."""
    return report_of(_parsed(raw), ahead_s)


def published_from(raw: bytes, ahead_s: float) -> tuple[EngineReport, RunningAdapters | None]:
    """The same, and the adapters that the report names."""
    plain = _parsed(raw)
    return report_of(plain, ahead_s), adapters_of(plain)


def adapters_of(plain: Mapping[str, Any]) -> RunningAdapters | None:
    """The adapters that requests run for, by a report that was parsed; None where it does not say it as it should."""
    given = plain.get("adapters")
    if not isinstance(given, dict):
        return None
    running, places = given.get("running"), given.get("places")
    if not isinstance(running, list) or type(places) is not int or not 0 <= places <= _PLACES_MOST:
        return None
    named = all(isinstance(name, str) and len(name) <= _NAME_MOST for name in running)
    return RunningAdapters(tuple(running), places) if named and len(running) <= _ADAPTERS_MOST else None


def report_of(plain: Any, ahead_s: float = 0.0) -> EngineReport:
    """The same of what was parsed. Raises Unreadable."""
    given = _checked(plain)
    asked_s = border.number(given.get("asked_s"))
    if not -border.FAR_S < asked_s < border.FAR_S:
        raise Unreadable(SkipReason.UNREADABLE, f"asked_s: expected a time, not {_shown(given.get('asked_s'))}")
    known = EngineReport(0.0, asleep=True).numbers().keys()  # a router of another release may publish other signals
    numbers = {name: border.number(given[name]) for name in known if name in given}
    return EngineReport.by_name(asked_s - ahead_s, **numbers)


def _shown(given: Any) -> str:
    """A value for the log, cut short."""
    text = repr(given) if not isinstance(given, int) or abs(given) < border.SHOWN_MOST else "a huge integer"
    return text if len(text) <= _SHOWN_MOST else f"{text[:_SHOWN_MOST]}..."
