"""The load of a plan as numbers: rate, lengths and bounds of its requests.

Must not depend on what serves it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Final

import numpy as np

from simulator.run.result_table import Floats
from simulator.workload.arrivals import Arrival, Workload
from simulator.workload.walking import walked

UNBOUNDED_TTFT_S: Final = 10.0
UNBOUNDED_TPOT_S: Final = 0.25
"""What a reply of a loop may take where its SLO has no bound: nobody reads more slowly than four tokens a second."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One element a request. ``fresh_tokens``: of the prompt, those that no earlier prompt began with.

    ``rate_per_s``: requests, over the time in which they came. ``models``: the names that are asked for. ``follows``:
    whether later requests follow from the ends of earlier ones; the rate is then the least that attains, where every
    reply takes all the time that its SLO allows.
    """

    rate_per_s: float
    prompt_tokens: Floats
    fresh_tokens: Floats
    output_tokens: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    models: tuple[str, ...]
    follows: bool = False

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def longest_tokens(self) -> int:
        """Of a prompt with its reply, with a quarter of room, in whole thousands (1024)."""
        return ceil(1.25 * float((self.prompt_tokens + self.output_tokens).max()) / 1024) * 1024

    @property
    def context_tokens(self) -> float:
        """Tokens that a decoding sequence holds, mean over time."""
        held = self.output_tokens * (self.prompt_tokens + self.output_tokens / 2)
        return float(held.sum() / self.output_tokens.sum())


def demand_of(workload: Sequence[Arrival] | Workload) -> Demand:
    """The load of these arrivals. Raises ValueError for fewer than two of them, or all at one time."""
    follows = hasattr(workload, "after")
    arrivals = walked(workload, _allowed_s)
    requests = [arrival.request for arrival in arrivals]
    span_s = requests[-1].arrived_s - requests[0].arrived_s if requests else 0.0
    if span_s <= 0.0:
        raise ValueError("a plan needs at least two requests, at different times")
    outputs = [_output_tokens(arrival) for arrival in arrivals]
    slos = [r.slo.in_base(r.prompt_tokens, n) for r, n in zip(requests, outputs, strict=True)]
    rate_per_s = (len(requests) - 1) / span_s
    return Demand(
        min(rate_per_s, _later_rate(arrivals), _rate_to_the_end(arrivals)) if follows else rate_per_s,
        _numbers([request.prompt_tokens for request in requests]),
        _numbers(_fresh(arrivals)),
        _numbers(outputs),
        _numbers([slo.ttft_s for slo in slos]),
        _numbers([slo.tpot_s for slo in slos]),
        _numbers([slo.e2e_s for slo in slos]),
        tuple(dict.fromkeys(request.model for request in requests)),
        follows,
    )


def _output_tokens(arrival: Arrival) -> int:
    """Of one of its sequences."""
    return max(1, arrival.output_tokens // arrival.request.sequences)


def _allowed_s(arrival: Arrival) -> float:
    """The longest that a reply may take within its SLO."""
    output = _output_tokens(arrival)
    slo = arrival.request.slo.in_base(arrival.request.prompt_tokens, output)
    ttft_s = slo.ttft_s if slo.ttft_s < inf else UNBOUNDED_TTFT_S
    tpot_s = slo.tpot_s if slo.tpot_s < inf else UNBOUNDED_TPOT_S
    return float(min(slo.e2e_s, ttft_s + (output - 1) * tpot_s))


def _later_rate(arrivals: Sequence[Arrival]) -> float:
    """Requests per second of the later half of the time: clients that all begin at once are no rate."""
    first_s, last_s = arrivals[0].request.arrived_s, arrivals[-1].request.arrived_s
    middle_s = (first_s + last_s) / 2
    return sum(arrival.request.arrived_s > middle_s for arrival in arrivals) / (last_s - middle_s)


def _rate_to_the_end(arrivals: Sequence[Arrival]) -> float:
    """Requests per second until the last reply is over: of clients in step, who send in bursts, each burst has its time
    then, also the last one.
    """
    ends_s = max(arrival.request.arrived_s + _allowed_s(arrival) for arrival in arrivals)
    return len(arrivals) / (ends_s - arrivals[0].request.arrived_s)


def _numbers(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=np.float64)


def _fresh(arrivals: Sequence[Arrival]) -> list[float]:
    """Prompt tokens that are in no cache, were it without limit; at least one has to be computed."""
    seen: set[Hashable] = set()
    fresh = []
    for arrival in arrivals:
        request = arrival.request
        known = next((n for n, block in enumerate(request.prefix) if block not in seen), len(request.prefix))
        seen.update(request.prefix)
        fresh.append(float(max(1, request.prompt_tokens - known * request.prefix_block_tokens)))
    return fresh
