"""The sources of backends as JSON for people: whether each answers, and what becomes of each of its endpoints.

Reads the router's parts and changes nothing.
"""

from typing import Any

from router.gateway.control.parts import ControlParts


def discovery(parts: ControlParts) -> dict[str, Any]:
    """By source, in the config's order. ``state`` of an endpoint: ``serving`` (a backend, whether it is up or not),
    ``reading`` (its engine has not said yet what it serves), ``draining`` (terminating) or ``skipped``.
    """
    plan = parts.plan
    serving = {given.name for given in plan.addresses}
    found = []
    for state, outcomes in parts.sources.view(plan):
        endpoints = [each.plain() for each in outcomes]
        for shown in endpoints:
            shown["state"] = _state(shown, serving)
        found.append(state.plain() | {"endpoints": endpoints})
    return {"sources": found, "configured": [given.name for given in plan.settings.backends]}


def _state(shown: dict[str, Any], serving: set[str]) -> str:
    if shown["terminating"]:
        return "draining"
    if shown["skipped"]:
        return "skipped"
    return "serving" if shown["name"] in serving else "reading"
