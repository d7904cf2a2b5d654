"""What the gateway predicted for each request of its own record: the record told again to a fresh core.

A core knows nothing but its events, so the second telling makes the same forecasts as the first, and any quantile of
them can be read. Who was sent where is taken from the record and not decided anew: a change to the forecast can so be
judged on a run that was made before it. It is for runs in which nobody was held (no SLO): holds cannot be told again.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from random import Random
from typing import Any

import orjson

from router.core import Admit, Choice, Dispatch, Fleet, Forecast, Hold, Memory, Request, Rng
from router.core.dispatcher import Dispatcher
from router.core.forecast import Prediction
from router.core.record import Event, replay
from router.core.types import RequestId


@dataclass(slots=True)
class Predicted:
    """One request as the gateway saw it. ``quantiles``: of TTFT, TPOT and E2E, by quantile; seconds from the send."""

    session: str
    slo_class: str
    backend: str = ""
    sent_s: float = nan
    first_s: float = nan
    ended_s: float = nan
    tokens: int = 0
    means_s: tuple[float, float, float] = (nan, nan, nan)
    band: int = -1
    quantiles_s: dict[float, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def actual_s(self) -> tuple[float, float, float]:
        """TTFT, TPOT and E2E by the gateway's own clock, from the send."""
        after = self.tokens - 1
        pace_s = (self.ended_s - self.first_s) / after if after > 0 else nan
        return self.first_s - self.sent_s, pace_s, self.ended_s - self.sent_s


class _AsRecorded:
    """Sends as the record did, and keeps what was predicted for each send."""

    def __init__(self, quantiles: Iterable[float]) -> None:
        self.sends: dict[RequestId, deque[tuple[float, str]]] = defaultdict(deque)
        self.made: dict[RequestId, Prediction] = {}
        self.tails_s: dict[RequestId, dict[float, tuple[float, float, float]]] = {}
        self._quantiles = tuple(quantiles)

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Where it was sent, if that was now."""
        due = self.sends[request.id]
        if not due or due[0][0] > fleet.now_s:
            return Hold(due[0][0] if due else fleet.now_s + 1.0, "was held")
        _, name = due.popleft()
        index = next(i for i in range(len(fleet)) if fleet.backend(i).name == name)
        self.made[request.id] = forecast.at(index)
        self.tails_s[request.id] = {q: tuple(forecast.tails_s(q)[:, index].tolist()) for q in self._quantiles}
        return Dispatch(int(fleet.slots[index]), "as recorded")


class _EverybodyIn:
    """Admission that keeps nobody out: who was refused was so in the record."""

    held_max = 1_000_000
    hold_s_max = 1e9

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit, Memory]:
        """In."""
        return Admit(), memory


def read(path: Path) -> list[Event]:
    """The events of a record, header and policy changes left out."""
    with path.open("rb") as lines:
        events: list[Event] = [orjson.loads(line) for line in lines]
    return [event for event in events if "at_s" in event]


def predicted(events: list[Event], quantiles: Iterable[float] = (0.9, 0.99)) -> dict[str, Predicted]:
    """Every request that was served, by its session: the name that a load client gave it."""
    routing = _AsRecorded(quantiles)
    for event in events:
        for command in event["answer"]:
            if command["command"] == "Send":
                routing.sends[command["request_id"]].append((event["at_s"], command["backend"]))
    core = Dispatcher(routing, _EverybodyIn(), Random(0))
    found: dict[RequestId, Predicted] = {}
    for event, _ in replay(events, core):
        _note(found, event)
    for request_id, each in found.items():
        prediction = routing.made.get(request_id)
        if prediction is not None and prediction.expectation is not None:
            each.means_s = prediction.ttft_s, prediction.tpot_s, prediction.e2e_s
            each.band = prediction.expectation.band
            each.quantiles_s = routing.tails_s[request_id]
    return {each.session: each for each in found.values() if each.tokens}


def _note(found: dict[RequestId, Predicted], event: Event) -> None:
    if event["event"] == "arrived":
        request: dict[str, Any] = event["request"]
        found[request["id"]] = Predicted(request.get("session", ""), request.get("slo_class", ""))
    for command in event["answer"]:
        if command["command"] == "Send":
            each = found[command["request_id"]]
            each.backend, each.sent_s = command["backend"], event["at_s"]
    if event["event"] == "first_token":
        found[event["id"]].first_s = event["at_s"]
    elif event["event"] == "ended":
        found[event["id"]].ended_s = event["at_s"]
        found[event["id"]].tokens = event["usage"]["output_tokens"]
