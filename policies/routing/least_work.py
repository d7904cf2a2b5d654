"""Fewest tokens in flight: prompts still to prefill and contexts being decoded, this request's own included."""

from dataclasses import dataclass

from policies.routing._pick import lowest
from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class LeastWork:
    """``prefill_weight``: what a prompt token still to be prefilled counts, against one held in context."""

    prefill_weight: float = 1.0

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The backend with the least work in tokens."""
        work = self.prefill_weight * fleet.prefill_tokens + fleet.context_tokens
        return Dispatch(int(fleet.slots[lowest(work, rng)]), "fewest tokens in flight")


policy = LeastWork
