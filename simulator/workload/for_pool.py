"""A workload generated for a pool without a trace: enough to tell a good policy from a harmful one.

It is derived from the router's belief about the backends and from the operator's SLO classes. The rate is a share of
what they could serve together within the tightest of the classes. Without classes the SLO is one that the slowest of
them meets while it is not overloaded: a policy that spreads the load meets all of it; one that sends everything to one
backend, or nowhere, does not. Must not depend on policies or the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp
from random import Random
from typing import Final

from router.core.step import decode_step_s, prefill_s
from router.core.types import Backend, Request, Slo
from simulator.workload.arrivals import Arrival, SloClass

LOAD: Final = 0.6  # of what the pool could serve within the SLO
PROMPT_TOKENS: Final = 400.0  # medians of log-normal lengths, as chats have them
OUTPUT_TOKENS: Final = 80.0
SPREAD: Final = 0.7
TPOT_USE: Final = 0.8  # of a TPOT bound: as full as batches become
TPOT_FACTOR: Final = 2.5  # TPOT bound over the TPOT of the slowest backend when idle
WAIT_FACTOR: Final = 4.0
API_S: Final = 0.25
SPAN_S: Final = 90.0  # long enough for a queue of 20 % overload to show


@dataclass(frozen=True, slots=True)
class PoolCapacity:
    """The SLO of the generated workload, and the rate each backend could serve within it, requests per second."""

    slo: Slo
    rates: tuple[float, ...]


def capacity_of(backends: Sequence[Backend]) -> PoolCapacity:
    """An SLO that each of these backends can meet, and how fast each could serve."""
    idle = [decode_step_s(b.prior, 1.0, PROMPT_TOKENS + OUTPUT_TOKENS / 2) for b in backends]
    tpot_s = TPOT_FACTOR * float(max(idle))
    first_s = max(prefill_s(b.prior, PROMPT_TOKENS, b.chunk_tokens) + b.network_s for b in backends)
    slo = Slo(ttft_s=WAIT_FACTOR * (first_s + tpot_s) + API_S, tpot_s=tpot_s)
    return PoolCapacity(slo, tuple(_rate(b, TPOT_USE * tpot_s) for b in backends))


def rates_within(backends: Sequence[Backend], slos: Sequence[Slo]) -> tuple[float, ...]:
    """How fast each backend could serve within the tightest of these SLOs that it meets when idle, requests per second.

    Replies of all classes share a batch, so the tightest bound on TPOT limits it.
    """
    return tuple(_rate(b, TPOT_USE * _tpot_bound_s(b, slos)) for b in backends)


def _tpot_bound_s(backend: Backend, slos: Sequence[Slo]) -> float:
    idle_s = float(decode_step_s(backend.prior, 1.0, PROMPT_TOKENS + OUTPUT_TOKENS / 2))
    first_s = prefill_s(backend.prior, PROMPT_TOKENS, backend.chunk_tokens) + backend.network_s
    based = [slo.in_base(PROMPT_TOKENS, OUTPUT_TOKENS) for slo in slos]
    bounds = [min(slo.tpot_s, (slo.e2e_s - first_s) / OUTPUT_TOKENS) for slo in based]
    return min([bound for bound in bounds if bound > idle_s], default=idle_s)


def _rate(backend: Backend, tpot_s: float) -> float:
    """Requests per second at the largest batch whose step meets the TPOT."""
    context = PROMPT_TOKENS + OUTPUT_TOKENS / 2
    low, high = 1, max(1, min(backend.seqs_max, int(backend.kv_tokens_max / context)))
    while low < high:
        batch = (low + high + 1) // 2
        met = decode_step_s(backend.prior, float(batch), batch * context) <= tpot_s
        low, high = (batch, high) if met else (low, batch - 1)
    step_s = float(decode_step_s(backend.prior, float(low), low * context))
    mean_output = OUTPUT_TOKENS * exp(SPREAD**2 / 2)
    return 1.0 / (mean_output * step_s / low + prefill_s(backend.prior, PROMPT_TOKENS, backend.chunk_tokens))


def workload_for(
    backends: Sequence[Backend], requests_max: int, seed: int, classes: Sequence[SloClass] = ()
) -> list[Arrival]:
    """At most *requests_max* Poisson arrivals with log-normal lengths, of all classes by their shares (none: one that
    the pool can meet); models in proportion to the rates of the backends that serve them.
    """
    capacity, draw = capacity_of(backends), Random(f"{seed}/workload_for")
    rates = rates_within(backends, [each.slo for each in classes]) if classes else capacity.rates
    classes = classes or (SloClass("default", capacity.slo),)
    rate = LOAD * sum(rates)
    upto, shares = list(accumulate(rates)), [each.share for each in classes]
    count = max(50, min(requests_max, int(rate * SPAN_S)))
    now_s, arrivals = 0.0, []
    for number in range(count):
        now_s += draw.expovariate(rate)
        at = draw.random() * upto[-1]
        model = draw.choice(next(b for b, bound in zip(backends, upto, strict=True) if at <= bound).models)
        arrivals.append(_arrival(number, model, now_s, draw.choices(classes, shares)[0], draw))
    return arrivals


def _arrival(number: int, model: str, now_s: float, slo_class: SloClass, draw: Random) -> Arrival:
    prompt, output = (
        min(int(4 * median), max(1, int(median * exp(SPREAD * draw.gauss(0.0, 1.0)))))
        for median in (PROMPT_TOKENS, OUTPUT_TOKENS)
    )
    request = Request(
        f"g{number}", model, now_s, prompt, slo=slo_class.slo, slo_class=slo_class.name, tenant=f"t{number % 7}"
    )
    return Arrival(request, output)
