"""Demand of the last minute, by model: what the autoscaler and the fleet page read.

Must not depend on its readers. Counts lie in a ring of short buckets: adding one is a few additions, and the oldest is
overwritten.
"""

from dataclasses import dataclass, field, replace
from typing import Final

from router.core.decisions import EndState, RequestRecord
from router.core.demand import DemandMeter, MeasuredDemand
from router.core.types import Request, Slo
from router.gateway.state import KindOfDemand, ModelDemand

BUCKET_S: Final = 5.0
BUCKETS: Final = 12  # one minute: long enough to be a mean, short enough to follow a ramp
MODELS_MAX: Final = 1_000  # names come from clients; unknown ones are never counted, this bounds a config's
NO_DEMAND: Final = ModelDemand(0.0, 0.0, 0.0, 0, 0, "")


@dataclass(slots=True)
class _Bucket:
    number: int = -1
    requests: int = 0
    prompt_tokens: int = 0
    served: int = 0
    output_tokens: int = 0
    ended: int = 0
    attained: int = 0
    classes: dict[str, Slo] = field(default_factory=dict)


class DemandWindow:
    """The requests of the last minute."""

    def __init__(self) -> None:
        self._rings: dict[str, list[_Bucket]] = {}
        self._began_s: float | None = None
        self._meter = DemandMeter()

    def arrived(self, request: Request, now_s: float, class_slo: Slo) -> None:
        """A request has arrived; ``class_slo``: the SLO of its class."""
        self._meter.arrived(request, now_s, class_slo)

    def recorded(self, record: RequestRecord, now_s: float, class_slo: Slo | None = None) -> None:
        """One request has ended. One that cannot be served as it is counts for nothing, and a client that left early
        not for attainment.

        ``class_slo``: the SLO of its class (None: the same as the request's). Attainment is of requests
        under that SLO alone, and the tightest class is found by it: a bound from one client's header sizes no fleet.
        """
        self._meter.ended(record, now_s, record.request.slo if class_slo is None else class_slo)
        if record.outcome is EndState.CLIENT_ERROR:
            return
        if self._began_s is None:
            self._began_s = now_s
        bucket = self._bucket(record.request.model, now_s)
        request, usage = record.request, record.usage
        bucket.requests += 1
        bucket.prompt_tokens += usage.prompt_tokens or request.prompt_tokens
        class_bounds = request.slo if class_slo is None else class_slo
        bucket.classes[request.slo_class] = class_bounds
        if record.outcome is EndState.SERVED:
            bucket.served += 1
            bucket.output_tokens += usage.output_tokens
        if record.judged and request.slo == class_bounds:
            bucket.ended += 1
            bucket.attained += record.slo_met

    def _bucket(self, model: str, now_s: float) -> _Bucket:
        ring = self._rings.get(model)
        if ring is None:
            if len(self._rings) >= MODELS_MAX:
                self._rings.pop(next(iter(self._rings)))
            ring = self._rings[model] = [_Bucket() for _ in range(BUCKETS)]
        number = int(now_s / BUCKET_S)
        bucket = ring[number % BUCKETS]
        if bucket.number != number:
            bucket = ring[number % BUCKETS] = _Bucket(number)
        return bucket

    def view(self, now_s: float) -> dict[str, ModelDemand]:
        """By model; one that had a request is shown even when it has none any more, so that its replicas may go."""
        oldest = int(now_s / BUCKET_S) - BUCKETS
        live = {model: [b for b in ring if b.number > oldest] for model, ring in self._rings.items()}
        ended = {model: buckets for model, buckets in live.items() if buckets}
        names = dict.fromkeys((*ended, *self._meter.models()))
        return {model: self._viewed(model, ended.get(model, []), now_s) for model in names}

    def _viewed(self, model: str, buckets: list[_Bucket], now_s: float) -> ModelDemand:
        measured = self._meter.view(model, now_s)
        whole = self._summed(buckets, now_s) if buckets else NO_DEMAND
        return replace(
            whole,
            kinds=_kinds(measured),
            arrivals=measured.arrivals,
            bucket_s=measured.bucket_s,
            in_flight=float(measured.in_flight),
        )

    def _summed(self, buckets: list[_Bucket], now_s: float) -> ModelDemand:
        requests = sum(b.requests for b in buckets)
        served = sum(b.served for b in buckets)
        classes = {name: slo for b in buckets for name, slo in b.classes.items()}
        return ModelDemand(
            requests_per_s=requests / self._span_s(now_s),
            prompt_tokens=sum(b.prompt_tokens for b in buckets) / requests,
            output_tokens=sum(b.output_tokens for b in buckets) / max(served, 1),
            ended=sum(b.ended for b in buckets),
            attained=sum(b.attained for b in buckets),
            slo_class=min(classes, key=lambda name: classes[name].bounds_s()),
        )

    def _span_s(self, now_s: float) -> float:
        """How long the window really is: full buckets before this one and what has passed of it."""
        began_s = now_s if self._began_s is None else self._began_s
        full_s = (BUCKETS - 1) * BUCKET_S + now_s % BUCKET_S
        return max(min(full_s, now_s - began_s), BUCKET_S)


def _kinds(measured: MeasuredDemand) -> tuple[KindOfDemand, ...]:
    return tuple(
        KindOfDemand(
            kind.slo_class, kind.requests_per_s, kind.prompt_tokens, kind.output_tokens, kind.ended, kind.attained
        )
        for kind in measured.kinds
    )
