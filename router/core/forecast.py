"""Fleet x request -> TTFT, TPOT and E2E on every candidate, mean and tail, in a handful of vector operations.

The model of one engine (DESIGN section 5, linear in the believed coefficients): a step with ``b`` decoding sequences
that hold ``S`` tokens takes ``fixed + seq b + context S``; prompt tokens ride along in chunks, ``token`` seconds each.

- TTFT = network + first + prefill of the queue ahead and of the own prompt, each chunk riding on a decode step,
  + half a step already running + the wait for a free sequence or KV block when the engine is full.
- TPOT = the step with this request and those queued before it in the batch, stretched by the share of time that the
  engine spends on prompts, as lately seen.
- E2E = TTFT + (expected output - 1) x TPOT.

Nothing is computed before it is asked for, so a policy that needs no forecast pays nothing.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from router.core.belief import CONTEXT, E2E, FIRST, FIXED, SEQ, TOKEN, TOKEN_CONTEXT, TPOT, TTFT, Belief
from router.core.fleet import Fleet, Floats
from router.core.types import Request

PREFILL_SHARE_MAX: Final = 0.9  # beyond it the engine only prefills; the stretch would be without bound


@dataclass(frozen=True, slots=True)
class Prediction:
    """The means for one backend, as they stood when the request was sent; seconds from the send."""

    ttft_s: float
    tpot_s: float
    e2e_s: float


class Forecast:
    """Predictions aligned with ``fleet.slots``; seconds from now."""

    __slots__ = ("_belief", "_cached", "_e2e", "_fleet", "_request", "_step", "_tpot", "_ttft", "output_tokens")

    def __init__(self, request: Request, fleet: Fleet, belief: Belief) -> None:
        self._request = request
        self._fleet = fleet
        self._belief = belief
        self._cached: Floats | None = None
        self._ttft: Floats | None = None
        self._tpot: Floats | None = None
        self._e2e: Floats | None = None
        self._step: tuple[Floats, Floats] | None = None
        self.output_tokens = belief.lengths.expected(request.model, request.slo_class, request.output_tokens_max)

    @property
    def made(self) -> bool:
        """Whether anybody asked for a prediction."""
        return self._step is not None

    def _now(self) -> tuple[Floats, Floats]:
        """The coefficients of the candidates, and the decode step as it stands there now."""
        if self._step is None:
            c = self._belief.coefficients[:, self._fleet.slots]
            load = self._fleet.load
            self._step = c, c[FIXED] + c[SEQ] * load[2] + c[CONTEXT] * load[3]
        return self._step

    @property
    def tokens(self) -> float:
        """Tokens this request holds when half of its reply is out."""
        return max(self._request.prompt_tokens + self.output_tokens / 2, 1.0)

    @property
    def cached_tokens(self) -> Floats:
        """Prompt tokens each candidate should find in its prefix cache."""
        if self._cached is None:
            self._cached = self._fleet.cached_tokens(self._request)
        return self._cached

    @property
    def ttft_s(self) -> Floats:
        """Mean time from a send now to the first token."""
        if self._ttft is None:
            c, step = self._now()
            fleet, prompt = self._fleet, self._request.prompt_tokens
            work = fleet.load[1] + prompt - self.cached_tokens
            busy = fleet.load[2] > 0
            prefill = work * (c[TOKEN] + c[TOKEN_CONTEXT] * (prompt / 2)) + (work / fleet.chunk_tokens + 0.5) * step
            own = c[FIRST] + prefill + 0.5 * step * busy + self._wait_for_room()
            self._ttft = fleet.network_s + own * self._belief.ratio[TTFT, fleet.slots]
        return self._ttft

    def _wait_for_room(self) -> Floats | float:
        """Wait until enough sequences have ended, when slots or KV are taken.

        With ``n`` sequences of mean life L one ends every L / n (they are spread evenly over their lives), so the
        k-th from now is k L / n away.
        """
        fleet = self._fleet
        requests = fleet.requests
        over = requests + 1.0 - fleet.seqs_max
        kv_over = fleet.load[1] + fleet.load[3] + self.tokens - fleet.kv_tokens_max
        if over.max() <= 0.0 and kv_over.max() <= 0.0:
            return 0.0
        ahead = np.maximum(np.maximum(over, kv_over / self.tokens), 0.0)
        life_s = self.output_tokens * self.tpot_s
        wait: Floats = ahead * life_s / np.maximum(np.minimum(requests, fleet.seqs_max), 1.0)
        return wait

    @property
    def tpot_s(self) -> Floats:
        """Mean time per output token after the first, over this request's life."""
        if self._tpot is None:
            c, step = self._now()
            load = self._fleet.load
            joined = c[SEQ] * (load[0] + 1.0) + c[CONTEXT] * (load[1] + self.tokens)
            share = np.minimum(self._fleet.prefill_tokens_per_s * c[TOKEN], PREFILL_SHARE_MAX)
            self._tpot = (step + joined) / (1.0 - share) * self._belief.ratio[TPOT, self._fleet.slots]
        return self._tpot

    @property
    def e2e_s(self) -> Floats:
        """Mean time from a send now to the last token."""
        if self._e2e is None:
            self._e2e = self.ttft_s + max(self.output_tokens - 1.0, 0.0) * self.tpot_s
        return self._e2e

    def ttft_tail_s(self, quantile: float) -> Floats:
        """The quantile of TTFT."""
        return self.ttft_s * self._belief.tail(TTFT, quantile)[self._fleet.slots]

    def tpot_tail_s(self, quantile: float) -> Floats:
        """The quantile of TPOT."""
        return self.tpot_s * self._belief.tail(TPOT, quantile)[self._fleet.slots]

    def e2e_tail_s(self, quantile: float) -> Floats:
        """The quantile of E2E."""
        return self.e2e_s * self._belief.tail(E2E, quantile)[self._fleet.slots]

    def at(self, index: int) -> Prediction:
        """The means for the candidate at ``index``."""
        return Prediction(float(self.ttft_s[index]), float(self.tpot_s[index]), float(self.e2e_s[index]))
