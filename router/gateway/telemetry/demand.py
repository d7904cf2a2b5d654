"""Demand at this router, by model, as it is published: what the core's meter measures, in the form of the shared state.

Must not depend on its readers. Nothing is counted here: arrivals, ends and refusals are in one ring, the meter's.
"""

from collections.abc import Callable, Sequence

from router.core.decisions import RequestRecord
from router.core.demand import DemandMeter, MeasuredDemand
from router.core.scaling import KindDemand
from router.core.types import Request, Slo
from router.gateway.state import KindOfDemand, ModelDemand


def _none_held(_: str) -> int:
    return 0


class DemandWindow:
    """The requests of the last minutes."""

    def __init__(self) -> None:
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

    def view(self, now_s: float, held: Callable[[str], int] = _none_held) -> dict[str, ModelDemand]:
        """By model; one that had a request is shown even when it has none any more, so that its replicas may go.
        ``held``: how many requests for a model wait at this router.
        """
        meter = self._meter
        return {model: _viewed(meter.view(model, now_s), float(held(model))) for model in meter.models()}


def _viewed(measured: MeasuredDemand, held: float) -> ModelDemand:
    kinds = measured.kinds
    return ModelDemand(
        requests_per_s=sum([kind.requests_per_s for kind in kinds]),
        prompt_tokens=_mean(kinds, [kind.prompt_tokens for kind in kinds]),
        output_tokens=_mean(kinds, [kind.output_tokens for kind in kinds]),
        ended=sum([kind.ended for kind in kinds]),
        attained=sum([kind.attained for kind in kinds]),
        slo_class=min(kinds, key=lambda kind: kind.slo.bounds_s()).slo_class if kinds else "",
        kinds=tuple([_kind(kind) for kind in kinds]),
        arrivals=measured.arrivals,
        bucket_s=measured.bucket_s,
        in_flight=float(measured.in_flight),
        held=held,
        shed_per_s=measured.shed_per_s,
    )


def _mean(kinds: Sequence[KindDemand], values: Sequence[float]) -> float:
    """The mean over requests."""
    whole = sum([kind.requests_per_s for kind in kinds])
    if whole <= 0.0:
        return 0.0
    return sum([kind.requests_per_s * value for kind, value in zip(kinds, values, strict=True)]) / whole


def _kind(kind: KindDemand) -> KindOfDemand:
    return KindOfDemand(
        kind.slo_class, kind.requests_per_s, kind.prompt_tokens, kind.output_tokens, kind.ended, kind.attained
    )
