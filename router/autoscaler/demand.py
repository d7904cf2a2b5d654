"""The demand of a pool: what its routers publish, added up by model.

Must not depend on where it is read or on what it is used for.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from router.gateway.state import ModelDemand, RouterView

Views = Mapping[str, RouterView]  # by router


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
    )
