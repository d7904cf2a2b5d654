"""The most that one replica can serve of a load, were requests a fluid: an upper bound, without a simulation.

At batch ``B`` a replica that is always busy gives ``B`` tokens in each step and, between steps, prompts the time that
they take. A request occupies it for ``output x step(B) / B + prefill``, and a token comes every ``step(B) + prefill x B
/ output``. So the best batch is the largest whose tokens come in time and whose context fits the KV cache. Waiting,
bursts and unequal requests are left out, each of which only takes away. Must not depend on prices or on how many
replicas there are.
"""

from dataclasses import dataclass
from math import inf
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core.physics import StepCoefficients, decode_step_s, prefill_s, step_s
from router.core.types import Backend
from simulator.planning.demand import Demand
from simulator.planning.stepping import COMMUNICATION, COMPUTE, KV, WEIGHTS, parts_s
from simulator.planning.variants import Variant
from simulator.run.result_table import Floats

SLACK: Final = 1.1
"""A replica may be that much better than physics expects: the bound stays one."""

MEMORY: Final = "memory"
PREFILL: Final = "prefill compute"
BANDWIDTH: Final = "bandwidth"
LIMIT_COMMUNICATION: Final = "communication"
DECODE_COMPUTE: Final = "decode compute"
OVERHEAD: Final = "engine overhead"
SEQUENCES: Final = "sequences"
_BINDING: Final = {
    WEIGHTS: BANDWIDTH,
    KV: BANDWIDTH,
    COMMUNICATION: LIMIT_COMMUNICATION,
    COMPUTE: DECODE_COMPUTE,
}
_GRID: Final = 24


@dataclass(frozen=True, slots=True)
class Idle:
    """What an idle replica takes for each request, seconds; ``met``: within all bounds, with ``SLACK``."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    met: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Flow:
    """The most of a load that one replica serves: ``rate_per_s`` at ``batch``; ``limit``: what binds."""

    rate_per_s: float
    batch: int
    step_s: float
    limit: str


NOTHING: Final = Flow(0.0, 0, 0.0, "")


@dataclass(frozen=True, slots=True)
class Bound:
    """One variant under a load. ``whole``: it serves all of it; ``part``: only what it can serve in time when idle."""

    variant: Variant
    idle: Idle
    whole: Flow
    part: Flow


def bound(variant: Variant, demand: Demand) -> Bound:
    """The bound of one variant."""
    backend = variant.backend()
    idle = _idle(backend, demand)
    everything = np.ones(len(demand), dtype=np.bool_)
    whole = _flow(variant, backend, demand, everything)
    part = whole if idle.met.all() else _flow(variant, backend, demand, idle.met)
    return Bound(variant, idle, whole, part)


def _idle(backend: Backend, demand: Demand) -> Idle:
    """TTFT, TPOT and E2E of each request alone on the replica; prompts by interpolation between some lengths."""
    prior = backend.prior
    shortest, longest = float(demand.fresh_tokens.min()), float(demand.fresh_tokens.max())
    at = np.unique(np.round(np.geomspace(shortest, longest + 1.0, _GRID)))
    first = [prefill_s(prior, float(tokens), backend.chunk_tokens) for tokens in at]
    ttft_s = np.interp(demand.fresh_tokens, at, first) + backend.network_s
    tpot_s = np.asarray(decode_step_s(prior, 1.0, demand.prompt_tokens + demand.output_tokens / 2), dtype=np.float64)
    e2e_s = ttft_s + (demand.output_tokens - 1.0) * tpot_s
    fits = demand.prompt_tokens + demand.output_tokens <= backend.kv_tokens_max
    met = (ttft_s <= SLACK * demand.ttft_s) & (tpot_s <= SLACK * demand.tpot_s) & (e2e_s <= SLACK * demand.e2e_s)
    return Idle(ttft_s, tpot_s, e2e_s, met & fits)


def _flow(variant: Variant, backend: Backend, demand: Demand, which: NDArray[np.bool_]) -> Flow:
    """The best batch over the requests that are chosen."""
    if not which.any():
        return NOTHING
    outputs, prompts = demand.output_tokens[which], demand.prompt_tokens[which]
    output = float(outputs.mean())
    context = float((outputs * (prompts + outputs / 2)).sum() / outputs.sum())
    allowed_s = _tpot_s(demand, which)
    prompt_s = _prefill_s(backend.prior, demand.fresh_tokens[which], backend.chunk_tokens)
    room = max(0, int(backend.kv_tokens_max / context))
    batches = np.arange(1.0, min(backend.seqs_max, room) + 1.0)
    steps_s = np.asarray(decode_step_s(backend.prior, batches, batches * context), dtype=np.float64)
    in_time = steps_s + prompt_s * batches / output <= SLACK * allowed_s
    if not in_time.any():
        return NOTHING
    best = int(np.nonzero(in_time)[0][-1])
    batch, step = int(batches[best]), float(steps_s[best])
    decode_s = output * step / batch
    limit = MEMORY if batch == room else SEQUENCES if batch == backend.seqs_max else ""
    if not limit:
        limit = PREFILL if prompt_s > decode_s else _decode_limit(variant, batch, context)
    return Flow(SLACK / (decode_s + prompt_s), batch, step, limit)


def _tpot_s(demand: Demand, which: NDArray[np.bool_]) -> float:
    """The loosest TPOT that any of these requests allows; a bound on the whole reply allows that over its tokens."""
    allowed = np.minimum(demand.tpot_s, demand.e2e_s / demand.output_tokens)[which]
    return float(allowed.max()) if len(allowed) else inf


def _prefill_s(prior: StepCoefficients, fresh_tokens: Floats, chunk_tokens: int) -> float:
    """Seconds that a prompt adds to steps in which others decode, mean; stages work on several at a time."""
    first = np.minimum(fresh_tokens, float(chunk_tokens))
    chunk_s: Any = step_s(prior, 1.0, 0.0, first) - step_s(prior, 1.0, 0.0)
    pairs_s = prior.token_context_s * (fresh_tokens**2 - first**2) / 2
    return float((chunk_s * (fresh_tokens / first) + pairs_s).mean()) / prior.stages


def _decode_limit(variant: Variant, batch: int, context_tokens: float) -> str:
    """What takes most of a step."""
    parts = parts_s(variant.shape, batch, batch * context_tokens, variant.profile)
    together: dict[str, float] = {}
    for name, seconds in parts.items():
        limit = _BINDING.get(name, OVERHEAD)
        together[limit] = together.get(limit, 0.0) + seconds
    return max(together, key=lambda name: together[name])


def never(of: Bound, demand: Demand, shares: dict[str, float]) -> str:
    """Why no number of replicas attains the goals; empty where some may. *shares*: what is asked for, by metric."""
    for metric, taken, allowed in (
        ("ttft", of.idle.ttft_s, demand.ttft_s),
        ("tpot", of.idle.tpot_s, demand.tpot_s),
        ("e2e", of.idle.e2e_s, demand.e2e_s),
    ):
        within = float((taken <= SLACK * allowed).mean())
        if within < shares.get(metric, 0.0):
            return _late(of, demand, metric, within)
    if of.whole.rate_per_s == 0.0:
        if not (demand.prompt_tokens + demand.output_tokens <= of.variant.kv_tokens).any():
            return f"memory: {of.variant.kv_tokens:,} tokens of KV hold no request"
        return "no batch gives tokens in time beside the prompts"
    return ""


def _late(of: Bound, demand: Demand, metric: str, within: float) -> str:
    """In words, by the request at the edge of the 99th percentile."""
    if metric == "ttft":
        tokens = float(np.percentile(demand.fresh_tokens, 99))
        takes_s = float(np.percentile(of.idle.ttft_s, 99))
        return (
            f"long prompts cannot be prefilled in {_seconds(demand.ttft_s)}: {tokens:,.0f} tokens take {takes_s:.2f} s "
            f"alone; {within:.0%} can"
        )
    if metric == "tpot":
        parts = parts_s(of.variant.shape, 1.0, demand.context_tokens, of.variant.profile)
        most = max(parts, key=lambda name: parts[name])
        return (
            f"a step of one sequence takes {float(np.median(of.idle.tpot_s)) * 1e3:.0f} ms, above "
            f"{_seconds(demand.tpot_s)} ({most} {parts[most] * 1e3:.0f} ms)"
        )
    takes_s = float(np.percentile(of.idle.e2e_s, 99))
    return f"replies cannot end in {_seconds(demand.e2e_s)}: the longest take {takes_s:.1f} s alone; {within:.0%} can"


def _seconds(bounds: Floats) -> str:
    """The bound in words; the tightest, where requests differ."""
    bound_s = float(bounds.min())
    return f"{bound_s * 1e3:.0f} ms" if bound_s < 1 else f"{bound_s:g} s"
