"""Views and reports as JSON: one form for every store.

Believes: what another release wrote may be unreadable, which is no fault. Must not know where it is kept. Times are
moved onto the store's clock on the way out and back onto the reader's on the way in.
"""

from dataclasses import fields
from math import isfinite, nan
from typing import Any, Final

import orjson

from router.core.types import EngineReport, Load
from router.gateway.state import ModelDemand, RouterView

_FIELDS: Final = ("running", "waiting", "kv_usage", "prefix_hit_rate", "kv_tokens_max")
_LOAD: Final = tuple(field.name for field in fields(Load))


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
        return RouterView(version="unreadable")


def view_of(told: Any) -> RouterView:
    """The same of what was parsed."""
    try:
        return RouterView(
            {name: Load(**load) for name, load in told["loads"].items()},
            {name: ModelDemand(**asked) for name, asked in told["demand"].items()},
            told["version"],
        )
    except (TypeError, KeyError, AttributeError):
        return RouterView(version="unreadable")


def report_json(report: EngineReport, ahead_s: float) -> bytes:
    """An engine's report; ``ahead_s``: how far the store's clock is ahead of the writer's."""
    return orjson.dumps(report_plain(report, ahead_s))


def report_plain(report: EngineReport, ahead_s: float = 0.0) -> dict[str, float]:
    """The same before it is JSON, which knows no nan."""
    said = {name: getattr(report, name) for name in _FIELDS}
    return {"asked_s": report.asked_s + ahead_s} | {name: value for name, value in said.items() if isfinite(value)}


def report_from(raw: bytes, ahead_s: float) -> EngineReport:
    """An engine's report; ``ahead_s``: how far the store's clock is ahead of the reader's."""
    return report_of(orjson.loads(raw), ahead_s)


def report_of(told: dict[str, float], ahead_s: float = 0.0) -> EngineReport:
    """The same of what was parsed."""
    return EngineReport(told["asked_s"] - ahead_s, *(told.get(name, nan) for name in _FIELDS))
