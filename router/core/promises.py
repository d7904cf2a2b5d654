"""What a promise asks of the backend that a request was sent to: the pace that later requests must leave it."""

from math import inf

from router.core.types import Request


def pace_bound_s(request: Request, now_s: float, ttft_s: float, tpot_s: float, output_tokens: float) -> float:
    """The time per token up to which this request, sent now, keeps its TPOT and its E2E (inf: no bound).

    E2E leaves what remains after the first token to ``output_tokens`` expected. A promise that these predictions break
    already binds nobody: others would be kept away for nothing. With predictions of nan only TPOT counts.
    """
    bound_s = request.slo.tpot_s
    if request.slo.e2e_s != inf and ttft_s >= 0.0:
        left_s = request.slo.e2e_s - ttft_s
        bound_s = min(bound_s, left_s / max(output_tokens - 1.0, 1.0))
    return inf if tpot_s > bound_s else bound_s
