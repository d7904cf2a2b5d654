"""The endpoints that a proxy may try after the one chosen, in order: where it is configured to retry.

A proxy sends the same bytes to each, so only backends that would be sent the same are on the list. Must not depend on
gRPC, nor on how a choice is made.
"""

from collections.abc import Callable, Mapping
from math import inf, isnan

from router.core.explain import Candidate, Explanation
from router.core.types import Request, RequestId, Slo
from router.gateway.epp.addresses import Addresses
from router.gateway.protocols.target import Target
from router.gateway.traffic.upstream import Upstream


class Fallbacks:
    """``most``: so many endpoints after the first, 0: none."""

    def __init__(
        self,
        addresses: Addresses,
        upstreams: Mapping[str, Upstream],
        explain: Callable[[RequestId], Explanation | None],
        most: Callable[[], int],
    ) -> None:
        """*explain*: why a backend was chosen for a request, as the core has it."""
        self._addresses, self._upstreams, self._explain, self._most = addresses, upstreams, explain, most

    def endpoints(self, request: Request, model: str, chosen: Upstream) -> str:
        """The endpoint of the backend chosen, and those after it, for a request that *model* is to serve."""
        first, most = self._addresses.endpoint(chosen.target), self._most()
        explanation = self._explain(request.id) if most else None
        if explanation is None:
            return first
        found = [first]
        for candidate in sorted(explanation.candidates, key=lambda each: _use(each, request.slo)):
            upstream = self._upstreams.get(candidate.backend)
            if upstream is None or len(found) > most or not _sent_alike(chosen, upstream, model):
                continue
            endpoint = self._addresses.endpoint(upstream.target)
            if endpoint and endpoint not in found:
                found.append(endpoint)
        return ",".join(found)


def _use(candidate: Candidate, slo: Slo) -> tuple[float, float]:
    """The largest share of its bounds that a request was predicted to use there, and its TTFT."""
    predicted = (candidate.ttft_s, candidate.tpot_s, candidate.e2e_s)
    bounds = (slo.ttft_s, slo.tpot_s, slo.e2e_s)
    shares = [_last(value) / bound for value, bound in zip(predicted, bounds, strict=True) if bound < inf]
    return max(shares, default=0.0), _last(candidate.ttft_s)


def _last(value: float) -> float:
    """Where nothing was predicted comes last."""
    return inf if isnan(value) else value


def _sent_alike(one: Upstream, other: Upstream, model: str) -> bool:
    """Whether a request for a model goes to both with the same bytes."""
    states = [each.target.engine.states_usage and not each.refuses_usage for each in (one, other)]
    return states[0] == states[1] and _form(one.target, model) == _form(other.target, model)


def _form(target: Target, model: str) -> tuple[object, ...]:
    """What a target makes of a request."""
    return target.engine.protocol, target.models.get(model, model), target.api_key, target.path_prefix, target.tls
