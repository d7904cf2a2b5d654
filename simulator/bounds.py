"""What no policy can beat by much: a clairvoyant router, and the least GPU-seconds the work could take.

The clairvoyant reads what routers never see: every reply's length, every engine's true step, and who is where at this
moment. It sends where nobody's SLO breaks, keeps the rest waiting while that can still help, and drops what is lost. It
still decides request by request and does not know who will come: a bound to measure regret against, not the optimum of
the whole trace, which nobody can compute.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, nan

import numpy as np

from router.core import Choice, Dispatch, Fleet, Forecast, Hold, Reason, Request, Rng, Shed
from simulator.books import Floats
from simulator.fleet import Engine
from simulator.foresight import Foreseen, follow
from simulator.run import Played
from simulator.sequence import OVER
from simulator.workload import Arrival

ASK_AGAIN_S = 0.05
STRETCH_MAX = 5.0  # of decoding, by the prompts of those to come
Known = Callable[[str], tuple[Arrival, float] | None]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What would happen on one engine: seconds to the request's first token, the largest share that anybody there
    would use of a bound that is kept, and how many would miss their SLO who would keep it otherwise.
    """

    ttft_s: float
    use: float
    missed: int


class Clairvoyant:
    """A routing that looks into the engines. Not a policy: a policy could not be so."""

    def __init__(self, engines: Mapping[str, Engine], known: Known) -> None:
        """*engines* as they are at any moment; *known* is a request that is not over, and when its first token came
        (nan: not yet); None for one that is over.
        """
        self._engines, self._known = engines, known
        self._sent: list[tuple[str, Arrival]] = []  # chosen at this moment: not in the engines yet
        self._sent_s = -inf

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Where nobody misses; of those where the one worst off has most left. Else wait, while waiting can help."""
        known = self._known(request.id)
        assert known is not None
        if fleet.now_s > self._sent_s:
            self._sent.clear()
        rate = fleet.prefill_tokens_per_s
        outlooks = [
            self._outlook(self._engines[fleet.backend(index).name], known[0], float(rate[index]), fleet.now_s)
            for index in range(len(fleet))
        ]
        best = min(range(len(fleet)), key=lambda index: (outlooks[index].missed, outlooks[index].use))
        if not outlooks[best].missed:
            self._sent.append((fleet.backend(best).name, known[0]))
            self._sent_s = fleet.now_s
            return Dispatch(int(fleet.slots[best]), "clairvoyant")
        latest_s = request.first_token_due_s - min(outlook.ttft_s for outlook in outlooks)
        if fleet.now_s < latest_s:
            return Hold(min(fleet.now_s + ASK_AGAIN_S, latest_s), "nobody can take it without a miss")
        return Shed(Reason.SATURATED, "its SLO is lost, or would cost another's")

    def _outlook(self, engine: Engine, arrival: Arrival, prefill_tokens_per_s: float, now_s: float) -> Outlook:
        """With *arrival*, and with as many prompts to come as came lately."""
        replica = engine.replica
        there = [sequence for sequence in replica.there() if sequence.state != OVER]
        names = {sequence.id for sequence in there}
        coming = [sent for name, sent in self._sent if name == engine.name and sent.request.id not in names]
        promised = _Promised([*(self._known(s.id) for s in there), *((sent, nan) for sent in coming)], arrival)
        after = follow(replica, there, [*coming, arrival], engine.delay_s)
        to_come = min(prefill_tokens_per_s * replica.prompt_token_s(), 1.0 - 1.0 / STRETCH_MAX)
        use = promised.used(after, now_s, 1.0 / (1.0 - to_come))
        missed = use > 1.0
        if missed.any():
            missed[:-1] &= promised.used(follow(replica, there, coming, engine.delay_s), now_s, 1.0) <= 1.0
        return Outlook(float(after.first_s[-1]), float(use[use <= 1.0].max(initial=0.0)), int(missed.sum()))


class _Promised:
    """Who is on an engine, by what they were promised: the columns that a use is made of."""

    def __init__(self, there: list[tuple[Arrival, float] | None], newcomer: Arrival) -> None:
        rows = [_row(*known) if known else (0.0, inf, inf, inf, 0.0) for known in (*there, (newcomer, nan))]
        self._rows = np.array(rows).T

    def used(self, foreseen: Foreseen, now_s: float, stretch: float) -> Floats:
        """The largest share of a bound that each will have used when it is over, decoding *stretch* times as long."""
        came_s, ttft_s, tpot_s, e2e_s, had_s = self._rows[:, : len(foreseen.first_s)]
        first_s = np.where(np.isnan(had_s), now_s + foreseen.first_s, had_s)
        end_s = now_s + foreseen.first_s + (foreseen.end_s - foreseen.first_s) * stretch
        pace_s = (end_s - first_s) / np.maximum(foreseen.output_tokens - 1.0, 1.0)
        rest = np.maximum(pace_s / tpot_s, (end_s - came_s) / e2e_s)
        used: Floats = np.maximum(rest, (first_s - came_s) / ttft_s)
        return used


def _row(arrival: Arrival, first_s: float) -> tuple[float, float, float, float, float]:
    slo = arrival.request.slo
    return arrival.came_s, slo.ttft_s, slo.tpot_s, slo.e2e_s, first_s


def gpu_seconds_least(played: Played) -> float:
    """A lower bound on the GPU-seconds of what was served: each request where it costs least, at the fullest batch.

    Prompts at the speed of compute alone; every decoded token at the least share of a step that any batch gives it,
    plus the reading of its own context. Queues, gaps and unlucky batches come on top.
    """
    books = played.books
    prompts = books.column("prompt_tokens") - books.column("cached_tokens")
    outputs = books.column("output_tokens")
    least = None
    for engine in played.engines.values():
        cards = engine.site.member.tp * engine.site.member.pp
        c = engine.site.truth.coefficients
        share_s = engine.replica.least_share_s()
        work = prompts * c.token_s + prompts**2 / 2 * c.token_context_s
        work = work + outputs * (share_s + engine.site.truth.context_s * (prompts + outputs / 2))
        least = work * cards if least is None else least.clip(max=work * cards)
    return float(least.sum()) if least is not None else 0.0
