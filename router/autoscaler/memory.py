"""What the autoscaler holds of earlier rounds: decisions, orders, start times, beliefs, arrivals, what serves how long.

Most of it passes through restarts, as JSON, so that the next one to lead goes on where the last one was. Must not
depend on policies, on targets or on where it is stored; times are arguments.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import inf, isfinite, isnan, nan
from typing import Any, Final

import orjson

from router.autoscaler.arrivals import ArrivalHistories
from router.autoscaler.beliefs import VariantBeliefs
from router.autoscaler.start_times import Place, StartTimes
from router.core.scaling import ScalingDecision
from router.targets import Advice

VERSION: Final = 1
REPLICAS_MOST: Final = 1_000_000
PLACES_MOST: Final = 10_000
_NAME_MOST: Final = 256
_log = logging.getLogger("headroom")


@dataclass(frozen=True, slots=True)
class Order:
    """How many replicas a target was given last, and when, in seconds since the epoch."""

    replicas: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Decided:
    """What the autoscaler that applies advised last, and when."""

    advice: Sequence[Advice]
    at_s: float


class DecisionAge:
    """How old the last decision of another autoscaler is: by this machine's own clock once a decision has followed the
    one that was read first, for the clocks of two machines may differ.
    """

    def __init__(self) -> None:
        self._at_s = self._since_s = nan

    def of(self, at_s: float, wall_s: float, now_s: float) -> float:
        """Of the one of ``at_s``, by the clock of the machine that made it. ``wall_s``: by this machine's, in seconds
        since the epoch; ``now_s``: by one that is never set.
        """
        if at_s != self._at_s:
            self._since_s, self._at_s = (nan if isnan(self._at_s) else now_s), at_s
        return max(0.0, wall_s - at_s) if isnan(self._since_s) else now_s - self._since_s


class ScalingMemory:
    """By model, by model and variant, and by variant."""

    def __init__(self) -> None:
        self.decisions: dict[str, ScalingDecision] = {}
        self.orders: dict[Place, Order] = {}
        self.starts = StartTimes()
        self.beliefs = VariantBeliefs()
        self.histories = ArrivalHistories()
        self._serving: dict[str, tuple[int, float]] = {}

    def settled_s(self, model: str, serving: int, now_s: float) -> float:
        """For how long as many replicas have served as now."""
        before, since_s = self._serving.get(model, (serving, now_s))
        self._serving[model] = (serving, since_s if before == serving else now_s)
        return max(0.0, now_s - self._serving[model][1])

    def ordered(self, place: Place, replicas: int, running: int, now_s: float) -> None:
        """A target was given this number."""
        before = self.orders.get(place)
        self.orders[place] = Order(replicas, now_s)
        self.starts.ordered(place, replicas - max(running, before.replicas if before is not None else 0), now_s)

    def order(self, place: Place, now_s: float) -> Order | None:
        """The last one; one that is later than now, as after the clock was set back, counts as one of now."""
        found = self.orders.get(place)
        if found is not None and found.at_s > now_s:
            found = self.orders[place] = Order(found.replicas, now_s)
        return found

    # -- through restarts ------------------------------------------------------------------------------------------

    def written(self, decided: Decided) -> bytes:
        """All of it that outlives this process, with the last advice, as JSON."""
        return orjson.dumps(
            {
                "version": VERSION,
                "at_s": decided.at_s,
                "advice": [asdict(one) for one in decided.advice],
                "decisions": {model: asdict(each) for model, each in self.decisions.items()},
                "orders": [[*place, order.replicas, order.at_s] for place, order in self.orders.items()],
                "starts": self.starts.plain(),
            }
        )

    def adopt(self, raw: bytes, now_s: float = inf) -> None:
        """Go on from what was written last; what cannot be read is passed over. An order that is later than ``now_s``,
        by the clock of another machine, counts as one of now.
        """
        plain = _parsed(raw)
        decisions = plain.get("decisions")
        for model, each in decisions.items() if isinstance(decisions, dict) else ():
            if (decision := _decision(each)) is not None and len(model) <= _NAME_MOST:
                self.decisions[model] = decision
        orders = plain.get("orders")
        for each in orders[:PLACES_MOST] if isinstance(orders, list) else ():
            if (order := _order(each)) is not None:
                self.orders[each[0], each[1]] = Order(order.replicas, min(order.at_s, now_s))
        self.starts.adopt(plain.get("starts"))


def decided_from(raw: bytes) -> Decided | None:
    """The last advice in what was written; None: there is none."""
    plain = _parsed(raw)
    advice, at_s = plain.get("advice"), plain.get("at_s")
    if not isinstance(advice, list) or at_s is None or not _is_number(at_s):
        return None
    found = [_advice(each) for each in advice[:PLACES_MOST]]
    return Decided([each for each in found if each is not None], float(at_s))


def _parsed(raw: bytes) -> Mapping[str, Any]:
    if not raw:
        return {}
    try:
        plain = orjson.loads(raw)
    except ValueError as error:
        _log.warning("what an earlier autoscaler stored cannot be read, and is learnt again: %s", error)
        return {}
    return plain if isinstance(plain, dict) and plain.get("version") == VERSION else {}


def _advice(plain: Any) -> Advice | None:
    if not isinstance(plain, dict) or plain.keys() != {each.name for each in fields(Advice)}:
        return None
    drain = plain["drain"]
    names = all(isinstance(plain[name], str) for name in ("model", "variant", "why")) and isinstance(drain, list)
    if not names or not all(_is_count(plain[name]) for name in ("replicas", "running")):
        return None
    return Advice(**{**plain, "drain": tuple(map(str, drain))})


def _order(plain: Any) -> Order | None:
    if not isinstance(plain, list) or len(plain) != len(("model", "variant", "replicas", "at_s")):
        return None
    model, variant, replicas, at_s = plain
    named = all(isinstance(name, str) and len(name) <= _NAME_MOST for name in (model, variant))
    return Order(replicas, float(at_s)) if named and _is_count(replicas) and _is_number(at_s) else None


def _decision(plain: Any) -> ScalingDecision | None:
    """A decision of this release; None for any other: the policy then has none to remember."""
    empty = ScalingDecision(0.0, 0.0, 0.0, 0.0, {}, {}, 0.0)
    if not isinstance(plain, dict) or plain.keys() != {each.name for each in fields(ScalingDecision)}:
        return None
    given: dict[str, Any] = {name: nan if value is None else value for name, value in plain.items()}
    alike = all(_is_like(given[name], getattr(empty, name)) for name in given)
    return ScalingDecision(**given) if alike else None


def _is_like(given: Any, example: Any) -> bool:
    if isinstance(example, Mapping):
        return isinstance(given, dict) and all(isinstance(k, str) and _is_number(v) for k, v in given.items())
    if isinstance(example, str):
        return isinstance(given, str)
    return isinstance(given, int | float) and not isinstance(given, bool)


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and isfinite(given)


def _is_count(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= REPLICAS_MOST
