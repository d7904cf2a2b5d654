"""What no policy can beat by much: a clairvoyant router, and the least GPU-seconds the work could take.

The clairvoyant reads what routers never see: every reply's length, every engine's true step, and who is where at this
moment. It still decides request by request and does not know who will come: a bound to measure regret against, not the
optimum of the whole trace, which nobody can compute.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng, Slo
from simulator.fleet import Engine
from simulator.replica import Replica
from simulator.run import Played
from simulator.sequence import DECODE, Sequence
from simulator.workload import Arrival


@dataclass(frozen=True, slots=True)
class Outlook:
    """What would happen on one engine: seconds, and how many there would miss their SLO because of it."""

    ttft_s: float
    tpot_s: float
    e2e_s: float
    harmed: int


class Clairvoyant:
    """A routing that looks into the engines. Not a policy: a policy could not be so."""

    def __init__(self, engines: Mapping[str, Engine], arrival: Callable[[str], Arrival]) -> None:
        """*engines* as they are at any moment; *arrival* of a request that is not over."""
        self._engines, self._arrival = engines, arrival

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Where it keeps its SLO and harms fewest; among those, where most of its bounds is left."""
        output = self._arrival(request.id).output_tokens
        best, best_rank = 0, (inf, inf, inf)
        for index in range(len(fleet)):
            engine = self._engines[fleet.backend(index).name]
            outlook = outlook_on(engine, request, output, self._arrival)
            met = request.slo.met(outlook.ttft_s, outlook.tpot_s, outlook.e2e_s)
            rank = (float(outlook.harmed + (not met)), _use(request.slo, outlook), outlook.e2e_s)
            if rank < best_rank:
                best, best_rank = index, rank
        return Dispatch(int(fleet.slots[best]), "clairvoyant")


def _use(slo: Slo, outlook: Outlook) -> float:
    """The share of the tightest bound that is used up (0 where nothing was promised)."""
    return max(outlook.ttft_s / slo.ttft_s, outlook.tpot_s / slo.tpot_s, outlook.e2e_s / slo.e2e_s)


def outlook_on(engine: Engine, request: Request, output: int, arrival: Callable[[str], Arrival]) -> Outlook:
    """Follow the engine, with this request and without further ones, to its last token."""
    replica = engine.replica
    queued = [sequence for sequence in replica.unstarted() if sequence.state != DECODE]
    ahead = sum(s.prompt_tokens + s.generated for s in queued)
    prefill_s = replica.prefill_s(ahead, len(queued)) if ahead else 0.0
    own_s = replica.prefill_s(request.prompt_tokens, 1)
    ttft_s = engine.delay_s + replica.step_left_s() + prefill_s + own_s
    remaining = replica.remaining()
    ends = sorted([*(left for left, _ in remaining), *(s.output_tokens - s.generated for s in queued)])
    decode_s = _decode_s(replica, ends, request.prompt_tokens, output)
    tpot_s = decode_s / (output - 1) if output > 1 else 0.0
    harmed = sum(_harms(replica, left, sequence, own_s, arrival) for left, sequence in remaining)
    return Outlook(ttft_s, tpot_s, ttft_s + decode_s, harmed)


def _decode_s(replica: Replica, ends: list[int], prompt: int, output: int) -> float:
    """Seconds of ``output - 1`` steps beside others of whom one leaves at each of *ends* (steps from now)."""
    batch, context = len(ends) + 1, replica.context_tokens + prompt
    done, spent_s = 0, 0.0
    for end in [*ends, output]:
        steps = min(end, output - 1) - done
        if steps > 0:
            spent_s += steps * replica.decode_step_s(batch, context + batch * steps // 2)
            done += steps
        if done >= output - 1:
            break
        context = context * (batch - 1) // batch
        batch -= 1
    return spent_s


def _harms(replica: Replica, left: int, sequence: Sequence, pause_s: float, arrival: Callable[[str], Arrival]) -> bool:
    """Whether a pause of *pause_s* now breaks the pace that one running there was promised."""
    bound_s = arrival(sequence.id).request.slo.tpot_s
    if bound_s == inf or sequence.output_tokens <= 1:
        return False
    made = sequence.output_tokens - left
    pace_s = replica.decode_step_s(replica.decoding + 1, replica.context_tokens)
    return (made * pace_s + pause_s + left * pace_s) / (sequence.output_tokens - 1) > bound_s >= pace_s


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
