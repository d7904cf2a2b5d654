"""The history of each model's arrivals, fed from the buckets that routers publish, for the forecast by earlier days.

What passed while no autoscaler ran is read back from those buckets, twenty minutes of them. Must not depend on where
the history is stored; times are arguments, in seconds since the epoch, so that they mean the same to the next process.
"""

import logging
import zlib
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Final

import orjson

from router.core.seasons import NO_FORECAST, RateHistory, SeasonalForecast
from router.core.shortfalls import Shortfalls

VERSION: Final = 1
MODELS_MOST: Final = 100  # whose histories are held: some 2,000 slots each
LATE_S: Final = 3_600.0  # by which a clock that is set back may be ahead, before the history begins anew from it
_PLAIN_MOST: Final = 1 << 25
_NAME_MOST: Final = 256
_log = logging.getLogger("headroom")


class ArrivalHistories:
    """By model."""

    def __init__(self) -> None:
        self._histories: dict[str, RateHistory] = {}
        self._until_s: dict[str, float] = {}  # what arrived before is in the history

    def add(self, model: str, arrivals: Sequence[float], bucket_s: float, now_s: float) -> None:
        """Take over the buckets that have passed since the last call; the newest ended now."""
        if not arrivals or bucket_s <= 0.0:
            return
        if model not in self._histories and len(self._histories) >= MODELS_MOST:
            return
        until_s = self._until_s.get(model, -LATE_S)
        if until_s > now_s + LATE_S:
            until_s = now_s
        until_s = max(until_s, now_s - len(arrivals) * bucket_s)
        count = int((now_s - until_s) / bucket_s + 1e-6)
        history = self._histories.setdefault(model, RateHistory())
        for ago in range(count, 0, -1):
            history.add(arrivals[-ago], bucket_s, now_s - (ago - 1) * bucket_s)
        self._until_s[model] = until_s + max(count, 0) * bucket_s

    def forecast(self, model: str, now_s: float, ahead_s: float) -> SeasonalForecast:
        """What earlier days and weeks let expect from now until then."""
        history = self._histories.get(model)
        return NO_FORECAST if history is None else history.forecast(now_s, now_s + ahead_s)

    def planned(self, model: str, rate_per_s: float, from_s: float) -> None:
        """From then on there is to be room for so many requests a second."""
        history = self._histories.get(model)
        if history is not None:
            history.shortfalls.planned(rate_per_s, from_s)

    def shortfalls(self, model: str) -> Shortfalls:
        """What came beyond the plans."""
        history = self._histories.get(model)
        return Shortfalls() if history is None else history.shortfalls

    # -- through restarts ------------------------------------------------------------------------------------------

    def written(self) -> bytes:
        """All of it, compressed."""
        models = {
            model: {"until_s": self._until_s[model], "rates": history.export()}
            for model, history in self._histories.items()
        }
        return zlib.compress(orjson.dumps({"version": VERSION, "models": models}), 1)

    def adopt(self, raw: bytes) -> None:
        """Go on from what was written last; a model whose history cannot be read has none."""
        models = _parsed(raw).get("models")
        for model, each in tuple(models.items())[:MODELS_MOST] if isinstance(models, Mapping) else ():
            history, until_s = RateHistory(), each.get("until_s") if isinstance(each, Mapping) else None
            if not isinstance(until_s, int | float) or not isfinite(until_s) or len(model) > _NAME_MOST:
                continue
            try:
                history.adopt(each.get("rates") or {})
            except (ValueError, TypeError, AttributeError) as error:
                _log.warning("%s: the stored history of arrivals cannot be read: %s", model, error)
                continue
            self._histories[model], self._until_s[model] = history, float(until_s)


def _parsed(raw: bytes) -> Mapping[str, Any]:
    if not raw:
        return {}
    reading = zlib.decompressobj()
    try:
        plain = orjson.loads(reading.decompress(raw, _PLAIN_MOST))
    except (zlib.error, ValueError) as error:
        _log.warning("the stored history of arrivals cannot be read, and begins anew: %s", error)
        return {}
    return plain if isinstance(plain, dict) and plain.get("version") == VERSION else {}
