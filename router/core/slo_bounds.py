"""The time per output token that later requests must leave to one that was sent, by its SLO.

Must not depend on how a forecast is made."""

from math import inf

from router.core.types import Request


def tpot_bound_s(request: Request, tpot_s: float) -> float:
    """The TPOT of this request's SLO (inf: none). One that the prediction already violates is no bound: others
    would be refused for nothing. A prediction of nan violates none.
    """
    bound_s = request.slo.tpot_s
    return inf if tpot_s > bound_s else bound_s


def e2e_tpot_bound_s(request: Request, ttft_s: float, tpot_s: float, output_tokens: float) -> float:
    """The time per token that the E2E of this request's SLO leaves to ``output_tokens`` expected (inf: no bound, no
    prediction, or one that is violated already).

    It does not shrink while the request waits: one that is almost late would keep everybody else from its backend.
    """
    if request.slo.e2e_s == inf or not ttft_s >= 0.0:
        return inf
    bound_s = (request.slo.e2e_s - ttft_s) / max(output_tokens - 1.0, 1.0)
    return inf if tpot_s > bound_s else bound_s
