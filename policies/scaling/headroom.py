"""As many replicas of each variant as the demand needs to keep its SLO, and the reason in words.

Per replica: the largest batch whose predicted TPOT and TTFT meet the SLO; by Little's law (Little 1961) that
batch serves ``batch / life`` requests per second. Demand over that rate, with a margin for bursts, is the count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, isinf
from typing import Final

from router.core import Backend, Demand, ScaleTo, attention_pairs, decode_step_s, step_s, step_terms

TOKENS_MAX: Final = 1e8  # of a mean: what is longer is as impossible, and no float overflows


@dataclass(frozen=True, slots=True)
class Headroom:
    """``load_max``: the share of a replica's capacity to plan for; ``replicas_min`` and ``replicas_max`` bound each
    variant; ``attainment_goal``: below it one replica more than the model asks for is wanted.
    """

    load_max: float = 0.75
    replicas_min: int = 1
    replicas_max: int = 64
    attainment_goal: float = 0.99

    def __post_init__(self) -> None:
        """Refuse bounds that contradict each other."""
        if not 0 < self.load_max <= 1:
            raise ValueError(f"headroom: load_max must be above 0 and at most 1, not {self.load_max}")
        if not 0 <= self.replicas_min <= self.replicas_max:
            raise ValueError("headroom: expected 0 <= replicas_min <= replicas_max")

    def scale(self, demand: Demand) -> Sequence[ScaleTo]:
        """Scale the cheapest variant per request to what the others, as they run, leave over.

        A demand that is not known (not finite, or below 0) leaves all as they run; none at all asks for the minimum.
        """
        if not demand.variants:
            return []
        if not _known(demand):
            return [ScaleTo(name, demand.replicas.get(name, 0), "the demand is not known") for name in demand.variants]
        rates = {name: self._rate(demand, backend) for name, backend in demand.variants.items()}
        chosen = min(rates, key=lambda name: _cost(demand.variants[name], rates[name]))
        answers = [self._scaled(demand, chosen, rates)]
        others = [name for name in rates if name != chosen]
        answers += [ScaleTo(name, demand.replicas.get(name, 0), f"{chosen} costs less per request") for name in others]
        return answers

    def _scaled(self, demand: Demand, name: str, rates: dict[str, float]) -> ScaleTo:
        served = sum(rate * demand.replicas.get(other, 0) for other, rate in rates.items() if other != name)
        short = max(0.0, demand.requests_per_s - served * self.load_max)
        if rates[name] <= 0.0:
            now = demand.replicas.get(name, 0)
            return ScaleTo(name, now, "no variant can meet this SLO, with any number of replicas")
        wanted = ceil(min(short / (rates[name] * self.load_max), self.replicas_max))
        late = demand.attainment < self.attainment_goal
        if late:
            wanted = max(wanted, demand.replicas.get(name, 0) + 1)
        bounded = min(max(wanted, self.replicas_min), self.replicas_max)
        why = f"{demand.requests_per_s:.2f} req/s at {rates[name]:.2f} per full replica, planned to {self.load_max:.0%}"
        return ScaleTo(name, bounded, why + (f", attainment {demand.attainment:.1%}" if late else ""))

    def _rate(self, demand: Demand, backend: Backend) -> float:
        """Requests per second of one replica at the largest batch that keeps the SLO (0: none does)."""
        best = 0.0
        for batch in _batches(_batch_max(demand, backend)):
            ttft_s, tpot_s = _times(demand, backend, batch)
            e2e_s = ttft_s + max(demand.output_tokens - 1, 0.0) * tpot_s
            if e2e_s > 0.0 and demand.slo.met(ttft_s, tpot_s, e2e_s, demand.prompt_tokens, demand.output_tokens):
                best = max(best, batch / e2e_s)
        return best


def _known(demand: Demand) -> bool:
    means = (demand.requests_per_s, demand.prompt_tokens, demand.output_tokens)
    return all(0.0 <= mean < inf for mean in means)


def _batches(largest: int) -> list[int]:
    return sorted({max(1, round(largest * step / 32)) for step in range(1, 33)})


def _batch_max(demand: Demand, backend: Backend) -> int:
    held = max(demand.prompt_tokens + demand.output_tokens, 1.0)
    return max(1, min(backend.seqs_max, int(backend.kv_tokens_max / held)))


def _times(demand: Demand, backend: Backend, batch: int) -> tuple[float, float]:
    """TTFT and TPOT with ``batch`` sequences in steady state: as many prefills as ends, in equal parts of each step.

    A prompt waits for the step under way and shares its own steps with those that came just before it.
    """
    p, prompt = backend.prior, min(demand.prompt_tokens, TOKENS_MAX)
    output = min(max(demand.output_tokens, 1.0), TOKENS_MAX)
    context = batch * (prompt + min(demand.output_tokens, TOKENS_MAX) / 2)
    step = float(decode_step_s(p, batch, context))
    ends = batch / output  # a step
    tpot_s = float(sum(step_terms(p, batch, context, ends * prompt, ends * attention_pairs(prompt))))
    prefill = float(step_s(p, batch, context, prompt)) - step
    return p.first_token_s + 1.5 * step + prefill * 2, tpot_s


def _cost(backend: Backend, rate: float) -> float:
    return inf if rate <= 0 or isinf(rate) else backend.price_per_hour / rate


policy = Headroom
