"""Quotas as JSON: limits, what is left of them, and what was used. Must not depend on HTTP."""

from collections.abc import Iterable
from dataclasses import asdict
from math import isfinite
from typing import Any

from router.core.quota import Quotas, Standing
from router.gateway.state.monthly_use import utc_month


def usage(quotas: Quotas, now_s: float, *, shared: bool, names: Iterable[str] | None = None) -> dict[str, Any]:
    """By account. ``month``: the one whose use is shown, by all routers; null where no store is *shared*: then it is
    this router's since it started. *names*: of these accounts alone.
    """
    return {
        "month": (quotas.month or utc_month()) if shared else None,
        "accounts": {
            state.name: {
                "limits": {name: limit for name, limit in asdict(state.quota).items() if isfinite(limit)},
                "requests_left": _left(state.requests),
                "tokens_left": _left(state.tokens),
                "running": state.running,
                "used": asdict(state.used),
            }
            for state in quotas.states(now_s, names)
        },
    }


def _left(standing: Standing | None) -> float | None:
    return None if standing is None else standing.remaining
