"""Fields of a request that the Gateway API's inference extension names, and what they stand for here.

``x-gateway-inference-objective`` names an SLO class, where the client names none itself; a name that no class has means
the default one. ``x-gateway-inference-fairness-id`` is the tenant. ``x-gateway-model-name-rewrite`` is the model that
serves the request in place of the one in its body; its reply has the client's name. Engines get none of these fields.
Must not depend on gRPC.
"""

from collections.abc import Collection, Mapping
from typing import Final

OBJECTIVE: Final = b"x-gateway-inference-objective"
FAIRNESS_ID: Final = b"x-gateway-inference-fairness-id"
MODEL_REWRITE: Final = b"x-gateway-model-name-rewrite"
ENDPOINT: Final = "x-gateway-destination-endpoint"  # a header, and a key in metadata
SUBSET: Final = "x-gateway-destination-endpoint-subset"
SERVED: Final = "x-gateway-destination-endpoint-served"
NAMESPACE: Final = "envoy.lb"
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
ATTRIBUTES: Final = "envoy.filters.http.ext_proc"  # under which Envoy has attributes
UPSTREAM_ADDRESS: Final = "upstream.address"

OF_GATEWAYS: Final = frozenset(
    {OBJECTIVE, FAIRNESS_ID, MODEL_REWRITE, ENDPOINT.encode(), SUBSET.encode(), SERVED.encode()}
)
_CLASS: Final = b"x-slo-class"
_TENANT: Final = b"x-llm-d-inference-fairness-id"


def as_ours(fields: dict[bytes, bytes], classes: Collection[str]) -> dict[bytes, bytes]:
    """The fields of a request with those of the extension under the names that this router reads."""
    if OF_GATEWAYS.isdisjoint(fields):
        return fields
    ours = dict(fields)
    objective = fields.get(OBJECTIVE, b"").decode("latin-1").strip()
    if objective in classes:
        ours.setdefault(_CLASS, objective.encode("latin-1"))
    if fields.get(FAIRNESS_ID):
        ours.setdefault(_TENANT, fields[FAIRNESS_ID])
    return ours


def rewritten_model(fields: Mapping[bytes, bytes]) -> str:
    """The model that serves a request in place of the one in its body; empty: that one."""
    return fields.get(MODEL_REWRITE, b"").decode("utf-8", "replace").strip()
