"""Views and reports as JSON: one form for every store.

What another release wrote may be unreadable, which is no fault. Must not depend on where it is stored. Times are
moved onto the store's clock on the way out and back onto the reader's on the way in. What should be a number and is
none is read as inf, which the core's border drops and counts; only demand, which no core sees, is checked here.
"""

from collections.abc import Mapping
from dataclasses import fields
from math import inf, isfinite
from typing import Any, Final

import orjson

from router.core import border
from router.core.types import EngineReport, Load
from router.gateway.state import ModelDemand, RouterView

_LOAD: Final = tuple(field.name for field in fields(Load))
_DEMAND_MOST: Final = 1e9  # requests a second, tokens a request, requests a window
UNREADABLE: Final = RouterView(version="unreadable")


def view_json(view: RouterView) -> bytes:
    """A router's view."""
    return orjson.dumps(view_plain(view))


def view_plain(view: RouterView) -> dict[str, Any]:
    """The same before it is JSON. Loads field by field: orjson reads past the end of a dataclass that is compiled."""
    loads = {name: {field: getattr(load, field) for field in _LOAD} for name, load in view.loads.items()}
    return {"loads": loads, "demand": view.demand, "version": view.version}


def view_from(raw: bytes) -> RouterView:
    """A router's view; one of another release that we cannot read counts as empty, not as a fault."""
    try:
        return view_of(orjson.loads(raw))
    except ValueError:
        return UNREADABLE


def view_of(plain: Any) -> RouterView:
    """The same of what was parsed."""
    try:
        return RouterView(
            {name: _load_of(load) for name, load in plain["loads"].items()},
            _demand_of(plain["demand"]),
            str(plain["version"]),
        )
    except (TypeError, KeyError, AttributeError):
        return UNREADABLE


def _load_of(plain: Any) -> Load:
    return Load(**{field: border.number(value) for field, value in plain.items()})


def _demand_of(plain: Any) -> dict[str, ModelDemand]:
    """Demand by model; a model's is passed over where one of its numbers is implausible."""
    demand = {model: ModelDemand(**each) for model, each in plain.items()}
    return {model: each for model, each in demand.items() if _plausible(each)}


def _plausible(demand: ModelDemand) -> bool:
    counts = (demand.requests_per_s, demand.prompt_tokens, demand.output_tokens, demand.ended, demand.attained)
    in_range = all(0.0 <= border.number(count) <= _DEMAND_MOST for count in counts)
    return in_range and demand.attained <= demand.ended and isinstance(demand.slo_class, str)


def report_json(report: EngineReport, ahead_s: float) -> bytes:
    """An engine's report; ``ahead_s``: how far the store's clock is ahead of the writer's."""
    return orjson.dumps(report_plain(report, ahead_s))


def report_plain(report: EngineReport, ahead_s: float = 0.0) -> dict[str, float]:
    """The same before it is JSON, which has no nan."""
    finite = {name: value for name, value in report.numbers().items() if isfinite(value)}
    return {"asked_s": report.asked_s + ahead_s} | finite


def report_from(raw: bytes, ahead_s: float) -> EngineReport:
    """An engine's report; ``ahead_s``: how far the store's clock is ahead of the reader's. One that cannot be read has
    ``asked_s`` inf, which no core takes.
    """
    try:
        return report_of(orjson.loads(raw), ahead_s)
    except ValueError:
        return EngineReport(inf)


def report_of(plain: Any, ahead_s: float = 0.0) -> EngineReport:
    """The same of what was parsed."""
    if not isinstance(plain, Mapping):
        return EngineReport(inf)
    known = EngineReport(inf, asleep=True).numbers().keys()  # a router of another release may publish other signals
    numbers = {name: border.number(plain[name]) for name in known if name in plain}
    return EngineReport.by_name(border.number(plain.get("asked_s")) - ahead_s, **numbers)
