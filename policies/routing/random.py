"""Any backend, all alike: what a load balancer without information does; the floor for all others."""

from dataclasses import dataclass

from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class Random:
    """No parameters."""

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """One of them, uniformly."""
        return Dispatch(int(fleet.slots[int(rng.random() * len(fleet))]), "drawn at random")


policy = Random
