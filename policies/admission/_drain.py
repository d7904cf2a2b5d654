"""How long the queue at the gateway will take: what an honest Retry-After says."""

from router.core import Fleet, Forecast

RETRY_S_MIN = 1.0  # Retry-After counts whole seconds


def drain_s(fleet: Fleet, forecast: Forecast) -> float:
    """Seconds until as many running sequences have ended as requests wait at the gateway.

    By Little's law (1961): with ``n`` sequences of life L running, n / L end a second, and each end makes room for one.
    L is this request's expected reply at the TPOT of each backend now; an idle pool drains at once.
    """
    if not fleet.held:
        return 0.0
    life_s = forecast.output_tokens * forecast.tpot_s
    ends_per_s = float((fleet.decoding / life_s).sum())
    return fleet.held / ends_per_s if ends_per_s > 0.0 else 0.0


def retry_after_s(fleet: Fleet, forecast: Forecast) -> float:
    """When a client refused now has a fair chance: once those who wait are served; within a minute, by then all is
    different.
    """
    return min(max(drain_s(fleet, forecast), RETRY_S_MIN), 60.0)
