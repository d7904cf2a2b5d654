"""The demand of a pool: what its routers publish, added up by model.

Must not depend on where it is read or on what it is used for.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import log2
from typing import Final

from router.gateway.state import KindOfDemand, ModelDemand, RouterView
from router.gateway.state.wire import UNREADABLE

Views = Mapping[str, RouterView]  # by router

STALE_S: Final = (
    15.0  # the age at which a view is no view of now any more: its router counts as one that cannot be read
)


def fresh(views: Views) -> Views:
    """The views, those that are old as ones that cannot be read."""
    return {name: view if view.age_s <= STALE_S else UNREADABLE for name, view in views.items()}


def together(views: Sequence[Mapping[str, ModelDemand]]) -> dict[str, ModelDemand]:
    """The demand of all routers, by model: rates add up, means weigh by rate, the busiest router's class counts."""
    by_model: dict[str, list[ModelDemand]] = defaultdict(list)
    for view in views:
        for model, demand in view.items():
            by_model[model].append(demand)
    return {model: _summed(demands) for model, demands in by_model.items()}


def _summed(demands: Sequence[ModelDemand]) -> ModelDemand:
    rate = sum(each.requests_per_s for each in demands)
    weights = [each.requests_per_s / rate if rate else 1 / len(demands) for each in demands]
    pairs = list(zip(weights, demands, strict=True))
    return ModelDemand(
        requests_per_s=rate,
        prompt_tokens=sum(weight * each.prompt_tokens for weight, each in pairs),
        output_tokens=sum(weight * each.output_tokens for weight, each in pairs),
        ended=sum(each.ended for each in demands),
        attained=sum(each.attained for each in demands),
        slo_class=max(pairs, key=lambda pair: pair[0])[1].slo_class,
        kinds=_kinds(demands),
        arrivals=_arrivals(demands),
        bucket_s=max(each.bucket_s for each in demands),
        in_flight=sum(each.in_flight for each in demands),
        held=sum(each.held for each in demands),
        shed_per_s=sum(each.shed_per_s for each in demands),
    )


def _measured(demands: Sequence[ModelDemand]) -> bool:
    """Whether every router measures demand as it arrives, in buckets of the same length; else only totals are whole."""
    return all(each.bucket_s > 0.0 for each in demands) and len({each.bucket_s for each in demands}) == 1


def _arrivals(demands: Sequence[ModelDemand]) -> tuple[float, ...]:
    """Summed from the newest bucket back: a router that started later had none before."""
    if not _measured(demands):
        return ()
    longest = max(len(each.arrivals) for each in demands)
    padded = [(0.0,) * (longest - len(each.arrivals)) + tuple(each.arrivals) for each in demands]
    return tuple(sum(bucket) for bucket in zip(*padded, strict=True))


def _kinds(demands: Sequence[ModelDemand]) -> tuple[KindOfDemand, ...]:
    """Those of a class and of about the same length of prompt together."""
    if not _measured(demands):
        return ()
    alike: dict[tuple[str, int], list[KindOfDemand]] = defaultdict(list)
    for kind in (kind for each in demands for kind in each.kinds):
        alike[kind.slo_class, int(log2(max(kind.prompt_tokens, 1.0)))].append(kind)
    return tuple(_together(kinds) for kinds in alike.values())


def _together(kinds: Sequence[KindOfDemand]) -> KindOfDemand:
    rate = sum(kind.requests_per_s for kind in kinds)
    weights = [kind.requests_per_s / rate if rate else 1 / len(kinds) for kind in kinds]
    return KindOfDemand(
        kinds[0].slo_class,
        rate,
        sum(weight * kind.prompt_tokens for weight, kind in zip(weights, kinds, strict=True)),
        sum(weight * kind.output_tokens for weight, kind in zip(weights, kinds, strict=True)),
        sum(kind.ended for kind in kinds),
        sum(kind.attained for kind in kinds),
    )
