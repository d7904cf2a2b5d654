"""A policy that reads the toy signal."""

from dataclasses import dataclass

import numpy as np

from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class MostIdle:
    """The backend with the smallest share of busy slots; its reason states what it read."""

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        busy = fleet.signal("slots_busy")
        place = int(np.nan_to_num(busy, nan=1.0).argmin())
        return Dispatch(int(fleet.slots[place]), f"busy {busy[place]}")


policy = MostIdle
