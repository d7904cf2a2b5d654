"""Demand as it arrives, by model, SLO class and length of prompt: counts in short buckets, the oldest overwritten.

Must not depend on who reads it or on what serves it. Of a reply that is still running, its age counts: a class whose
replies have become long is seen before the first of them ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log2
from typing import Final

from router.core.decisions import EndState, RequestRecord
from router.core.scaling import KindDemand
from router.core.types import Request, Slo

BUCKET_S: Final = 5.0
BUCKETS: Final = 240  # of arrivals, 20 minutes: a trend is read from these
KIND_BUCKETS: Final = 24  # of a kind's means, 2 minutes
BAND_OCTAVES: Final = 2.0  # of prompts of one kind: the longest is 4 times as long as the shortest
MODELS_MAX: Final = 500  # whose demand, idle, takes half of what a router may publish in one view
KINDS_MAX: Final = 64  # of one model
START_TOKENS: Final = 211.0  # of a reply, before any ended: see lengths.py
START_TOKENS_PER_S: Final = 30.0  # of a running reply, before any ended
GAIN_MIN: Final = 0.02  # of the newest reply in what is learnt of a class
FLOWS: Final = 0.3  # as many ends as that share of the arrivals: the lengths of ended replies are those to come
LINDY: Final = 2.0  # a reply that runs is expected to become so many times as long as it is

Key = tuple[str, int, Slo]  # SLO class, band of the prompt's length, SLO of the class


@dataclass(frozen=True, slots=True)
class MeasuredDemand:
    """The demand for one model. ``arrivals`` in whole buckets of ``bucket_s``, oldest first."""

    kinds: tuple[KindDemand, ...] = ()
    arrivals: tuple[float, ...] = ()
    bucket_s: float = BUCKET_S
    in_flight: int = 0
    shed_per_s: float = 0.0


@dataclass(slots=True)
class _Counts:
    number: int = -1
    arrived: int = 0
    prompt_tokens: int = 0
    expected_tokens: float = 0.0
    ended: int = 0
    judged: int = 0
    attained: int = 0
    shed: int = 0


class _Kind:
    """One kind of request: a ring of counts, and those in flight."""

    __slots__ = ("arrived_sum_s", "in_flight", "ring", "slo")

    def __init__(self, slo: Slo) -> None:
        self.ring = [_Counts() for _ in range(KIND_BUCKETS)]
        self.slo = slo
        self.in_flight = 0
        self.arrived_sum_s = 0.0

    def at(self, number: int) -> _Counts:
        """The bucket of that number."""
        counts = self.ring[number % KIND_BUCKETS]
        if counts.number != number:
            counts = self.ring[number % KIND_BUCKETS] = _Counts(number)
        return counts


@dataclass(slots=True)
class _Replies:
    """What is learnt of the replies of one class: mean tokens, and tokens a second of one stream."""

    tokens: float = START_TOKENS
    tokens_per_s: float = START_TOKENS_PER_S
    seen: int = 0

    def update(self, tokens: int, lasted_s: float) -> None:
        """One reply has ended."""
        self.seen += 1
        gain = max(GAIN_MIN, 1.0 / self.seen)
        self.tokens += gain * (tokens - self.tokens)
        if tokens > 1 and lasted_s > 0.0:
            self.tokens_per_s += gain * ((tokens - 1) / lasted_s - self.tokens_per_s)


@dataclass(slots=True)
class _Model:
    began_s: float
    counted: bool = False  # whether a request for it ended that could be served
    arrivals: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    numbers: list[int] = field(default_factory=lambda: [-1] * BUCKETS)
    kinds: dict[Key, _Kind] = field(default_factory=dict)
    replies: dict[str, _Replies] = field(default_factory=dict)


class DemandMeter:
    """The requests that one router has taken in."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    def arrived(self, request: Request, now_s: float, class_slo: Slo | None = None) -> None:
        """A request has arrived. ``class_slo``: of its class (None: the same as the request's)."""
        model = self._model(request.model, now_s)
        number = int(request.arrived_s / BUCKET_S)
        place = number % BUCKETS
        if model.numbers[place] != number:
            model.numbers[place], model.arrivals[place] = number, 0
        model.arrivals[place] += 1
        kind = self._kind(model, request, class_slo)
        counts, known = kind.at(number), model.replies.get(request.slo_class)
        tokens = known.tokens if known is not None else START_TOKENS
        counts.arrived += 1
        counts.prompt_tokens += request.prompt_tokens
        counts.expected_tokens += min(tokens, request.output_tokens_max or tokens)
        kind.in_flight += 1
        kind.arrived_sum_s += request.arrived_s

    def ended(self, record: RequestRecord, now_s: float, class_slo: Slo | None = None) -> None:
        """A request is over, however it ended; of one that never arrived nothing is counted."""
        request = record.request
        model = self._models.get(request.model)
        kind = None if model is None else model.kinds.get(_key(request, class_slo))
        if model is None or kind is None or not kind.in_flight:
            return
        kind.in_flight -= 1
        kind.arrived_sum_s -= request.arrived_s
        if record.outcome is EndState.CLIENT_ERROR:
            self._withdrawn(model, kind, request)
            return
        model.counted = True
        counts = kind.at(int(now_s / BUCKET_S))
        counts.ended += 1
        counts.shed += record.outcome is EndState.REFUSED
        if record.judged and (request.slo is kind.slo or request.slo == kind.slo):
            counts.judged += 1
            counts.attained += record.slo_met
        if record.outcome is EndState.SERVED and record.usage.output_tokens > 0:
            lasted_s = record.ended_s - record.first_token_s
            replies = model.replies.setdefault(request.slo_class, _Replies())
            replies.update(record.usage.output_tokens // request.sequences, lasted_s if lasted_s > 0.0 else 0.0)

    def _withdrawn(self, model: _Model, kind: _Kind, request: Request) -> None:
        """It could not be served as it is: it was no demand, and its model may be none."""
        number = int(request.arrived_s / BUCKET_S)
        place, counts = number % BUCKETS, kind.ring[number % KIND_BUCKETS]
        if model.numbers[place] == number:
            model.arrivals[place] = max(0, model.arrivals[place] - 1)
        if counts.number == number and counts.arrived:
            counts.expected_tokens -= counts.expected_tokens / counts.arrived
            counts.arrived -= 1
            counts.prompt_tokens -= request.prompt_tokens
        if not model.counted and not any(each.in_flight for each in model.kinds.values()):
            del self._models[request.model]

    def models(self) -> list[str]:
        """Every model that had a request, however long ago."""
        return list(self._models)

    def view(self, model: str, now_s: float) -> MeasuredDemand:
        """The demand for one model."""
        measured = self._models.get(model)
        if measured is None:
            return MeasuredDemand()
        newest = int(now_s / BUCKET_S) - 1  # the last that is whole
        whole = min(BUCKETS - 1, max(0, newest - int(measured.began_s / BUCKET_S)))
        places = [(number, number % BUCKETS) for number in range(newest - whole + 1, newest + 1)]
        arrivals = [float(measured.arrivals[at]) if measured.numbers[at] == number else 0.0 for number, at in places]
        span_s = max(min((KIND_BUCKETS - 1) * BUCKET_S + now_s % BUCKET_S, now_s - measured.began_s), BUCKET_S)
        kinds = [self._viewed(measured, key, kind, newest, span_s, now_s) for key, kind in measured.kinds.items()]
        oldest = newest + 1 - KIND_BUCKETS
        shed = sum(c.shed for kind in measured.kinds.values() for c in kind.ring if c.number > oldest)
        return MeasuredDemand(
            tuple(kind for kind in kinds if kind is not None),
            tuple(arrivals),
            BUCKET_S,
            sum(kind.in_flight for kind in measured.kinds.values()),
            shed / span_s,
        )

    def _viewed(
        self, model: _Model, key: Key, kind: _Kind, newest: int, span_s: float, now_s: float
    ) -> KindDemand | None:
        there = [counts for counts in kind.ring if counts.number > newest + 1 - KIND_BUCKETS]
        arrived = sum(counts.arrived for counts in there)
        if not arrived:
            return None
        return KindDemand(
            key[0],
            kind.slo,
            arrived / span_s,
            sum(counts.prompt_tokens for counts in there) / arrived,
            self._reply_tokens(model.replies, key[0], kind, there, now_s),
            sum(counts.judged for counts in there),
            sum(counts.attained for counts in there),
        )

    def _reply_tokens(
        self, replies: Mapping[str, _Replies], slo_class: str, kind: _Kind, there: list[_Counts], now_s: float
    ) -> float:
        """The mean reply to expect: as learnt and as capped; where few end, no less than running ones will become."""
        arrived = sum(counts.arrived for counts in there)
        tokens = sum(counts.expected_tokens for counts in there) / arrived
        if sum(counts.ended for counts in there) >= FLOWS * arrived or not kind.in_flight:
            return tokens
        known = replies.get(slo_class)
        age_s = max(0.0, now_s - kind.arrived_sum_s / kind.in_flight)
        return max(tokens, LINDY * age_s * (known.tokens_per_s if known is not None else START_TOKENS_PER_S))

    def _model(self, name: str, now_s: float) -> _Model:
        model = self._models.get(name)
        if model is None:
            if len(self._models) >= MODELS_MAX:
                self._models.pop(next(iter(self._models)))
            model = self._models[name] = _Model(now_s)
        return model

    def _kind(self, model: _Model, request: Request, class_slo: Slo | None) -> _Kind:
        key = _key(request, class_slo)
        kind = model.kinds.get(key)
        if kind is None:
            if len(model.kinds) >= KINDS_MAX:
                model.kinds.pop(next(iter(model.kinds)))
            kind = model.kinds[key] = _Kind(key[2])
        return kind


def _key(request: Request, class_slo: Slo | None) -> Key:
    band = int(log2(max(request.prompt_tokens, 1)) / BAND_OCTAVES)
    return request.slo_class, band, request.slo if class_slo is None else class_slo
