"""What a promise asks of the backend that a request was sent to: the pace that later requests must leave it."""

from math import inf

from router.core.types import Request


def tpot_bound_s(request: Request, tpot_s: float) -> float:
    """The TPOT of this request's SLO (inf: none). One that the prediction already breaks binds nobody: others would be
    kept away for nothing. A prediction of nan breaks none.
    """
    bound_s = request.slo.tpot_s
    return inf if tpot_s > bound_s else bound_s


def e2e_tpot_bound_s(request: Request, ttft_s: float, tpot_s: float, output_tokens: float) -> float:
    """The time per token that the E2E of this request's SLO leaves to ``output_tokens`` expected (inf: no bound, no
    prediction, or one that is broken already).

    It does not shrink while the request waits: one that is almost late would keep everybody else from its backend.
    """
    if request.slo.e2e_s == inf or not ttft_s >= 0.0:
        return inf
    pace_s = (request.slo.e2e_s - ttft_s) / max(output_tokens - 1.0, 1.0)
    return inf if tpot_s > pace_s else pace_s
