"""AIBrix's pack-load: the most loaded backend that stays within its capacity, so that the others can be scaled away.

One request is a load of 1 / capacity. AIBrix takes capacity from offline profiles of the deployment; here it is what
fits physically, sequences or KV cache at this request's size, times ``load_max``. When all are over, the least loaded.
"""

from dataclasses import dataclass
from math import inf

import numpy as np

from policies.routing._pick import lowest
from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class PackLoad:
    """``load_max``: share of a backend's capacity to fill before the next is opened."""

    load_max: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a share that means nothing."""
        if not self.load_max > 0:
            raise ValueError(f"pack_load: load_max must be above 0, not {self.load_max}")

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The most loaded that stays within its capacity with this request."""
        held = fleet.prefill_tokens + fleet.context_tokens + forecast.tokens
        load = np.maximum((fleet.requests + 1.0) / fleet.seqs_max, held / fleet.kv_tokens_max)
        fits = load <= self.load_max
        if not fits.any():
            return Dispatch(int(fleet.slots[lowest(load, rng)]), "all are full: least loaded")
        return Dispatch(int(fleet.slots[lowest(np.where(fits, -load, inf), rng)]), "most loaded that has room")


policy = PackLoad
