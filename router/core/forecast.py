"""Fleet x request -> TTFT, TPOT and E2E on every candidate, mean and tail.

The model of one engine (DESIGN section 5; continuous batching with chunked prefill, as vLLM V1 schedules it). A step
in which ``b`` sequences decode over ``S`` tokens takes ``fixed + seq b + context S``, prompt tokens ride along as far
as ``chunk_tokens`` go, and the roof says what the tokens of a step add to reading the weights. Each term is physics
times its learnt factor. The loops over candidates are in ``kernels.py``.

- TTFT = network + first + the steps that the prompts ahead and the own one take: half of the step under way, which has
  taken in what it could of the queue, then as many as the rest fills; and, on a full engine, the steps until room.
- TPOT = the step with this request and those queued before it in the batch, stretched by the share of time that the
  engine spends on prompts, as lately seen.
- E2E = TTFT + (expected output - 1) x TPOT.

Nothing is computed before it is asked for, so a policy that needs no forecast pays nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, hypot
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.core import kernels
from router.core.belief import Belief, Expectation
from router.core.fleet import Fleet
from router.core.kernels import E2E, METRICS, NETWORK_S, TERMS, TPOT, TTFT
from router.core.ledger import RATE_TAU_S, Floats, Slots
from router.core.lengths import BINS_PER_OCTAVE
from router.core.tails import between
from router.core.types import Request

_NO_TAILS: Final = np.empty((0, 0))
WIDTH_MIN: Final = 0.1  # of E2E, when the length is known: its pace and first token vary all the same

Answers = tuple[Floats | None, Mapping[float, Floats]]


@dataclass(init=False, slots=True, unsafe_hash=True)
class Prediction:
    """The means for one backend, as they stood when the request was sent, in seconds from the send; and what learning
    needs to know of them (None: nobody asked for a forecast).
    """

    ttft_s: Final[float]
    tpot_s: Final[float]
    e2e_s: Final[float]
    expectation: Final[Expectation | None]

    def __init__(
        self,
        ttft_s: float,
        tpot_s: float,
        e2e_s: float,
        expectation: Expectation | None = None,
    ) -> None:
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.e2e_s = e2e_s
        self.expectation = expectation

    def tails_s(self, quantile: float) -> tuple[float, float, float]:
        """The quantiles of TTFT, TPOT and E2E that were promised with these means; nan without a forecast."""
        expected = self.expectation
        if expected is None:
            return self.ttft_s, self.tpot_s, self.e2e_s
        row, share = between(quantile)
        spreads: list[list[float]] = expected.promised.tolist()
        return (
            self.ttft_s * exp(_between(spreads[TTFT], row, share)),
            self.tpot_s * exp(_between(spreads[TPOT], row, share)),
            self.e2e_s * exp(expected.width * _between(spreads[E2E], row, share)),
        )


def _between(spreads: list[float], row: int, share: float) -> float:
    return spreads[row] + share * (spreads[row + 1] - spreads[row])


class Forecast:
    """Predictions aligned with ``fleet.slots``; seconds from now."""

    __slots__ = (
        "_belief",
        "_cached",
        "_fleet",
        "_means",
        "_outlook",
        "_request",
        "_tails",
        "prompt_tokens",
        "tokens",
    )

    prompt_tokens: float  # as engines are expected to count them
    tokens: float  # that this request holds when half of its reply is out

    def __init__(self, request: Request, fleet: Fleet, belief: Belief) -> None:
        self._request = request
        self._fleet = fleet
        self._belief = belief
        self._outlook = belief.lengths.outlook(request.model, request.slo_class, request.output_tokens_max)
        self.prompt_tokens = request.prompt_tokens * belief.prompts.scale(request.model)
        self.tokens = max(self.prompt_tokens + self._outlook.tokens / 2, 1.0)
        self._cached: Floats | None = None
        self._means: Floats | None = None
        self._tails: dict[float, Floats] = {}

    @property
    def made(self) -> bool:
        """Whether anybody asked for a prediction."""
        return self._means is not None

    @property
    def output_tokens(self) -> float:
        """Expected output tokens of this request."""
        return self._outlook.tokens

    @property
    def state(self) -> NDArray[np.int8]:
        """How far each candidate's forecast can be trusted: score.LEARNING, TRUSTED or OFF."""
        return self._fleet.of(self._belief.state)

    @property
    def cached_tokens(self) -> Floats:
        """Prompt tokens each candidate should find in its prefix cache: by what it was sent before when the request
        says its prefix, else by the share that prompts were lately found there.
        """
        if self._cached is None:
            if self._request.prefix:
                self._cached = np.minimum(self._fleet.cached_tokens(self._request), self.prompt_tokens)
            else:
                self._cached = self.prompt_tokens * self._fleet.of(self._belief.hit)
        return self._cached

    @property
    def prefill_tokens(self) -> Floats:
        """Prompt tokens that each candidate would have to compute."""
        return self.prompt_tokens - self.cached_tokens

    def prefill_tokens_at(self, index: int) -> float:
        """The same for one candidate."""
        if self._cached is None and not self._request.prefix:
            return self.prompt_tokens * (1.0 - self._belief.hit.item(self._fleet.slots.item(index)))
        return self.prompt_tokens - float(self.cached_tokens[index])

    # -- means ---------------------------------------------------------------------------------------------------

    def _met(self) -> Floats:
        """The means on every candidate, and the load band that each is in."""
        return self._predicted(0, 0.0, _NO_TAILS) if self._means is None else self._means

    def _predicted(self, row: int, share: float, tails_s: Floats) -> Floats:
        """Make the means, and the tails that were asked for before any mean was; see ``kernels.tails``."""
        fleet, belief = self._fleet, self._belief
        means_s = self._means = np.empty((METRICS + 1, len(fleet.slots)))
        cached_tokens = self.cached_tokens
        load, gathered = fleet.load_or_room()
        kernels.predicted(
            fleet.columns,
            load,
            gathered,
            belief.prior,
            belief.regression.factor,
            belief.roofs.rows,
            belief.lean,
            fleet.slots,
            cached_tokens,
            fleet.now_s,
            self.prompt_tokens,
            self._mean_prompt_tokens,
            self._outlook.tokens,
            self._mean_output_tokens,
            self.tokens,
            RATE_TAU_S,
            fleet.beside_tokens_per_s,
            means_s,
            belief.tails.spread,
            row,
            share,
            self._width,
            tails_s,
        )
        return means_s

    @property
    def _mean_prompt_tokens(self) -> float:
        return max(1.0, self._belief.prompts.mean_tokens(self._request.model, self.prompt_tokens))

    @property
    def _mean_output_tokens(self) -> float:
        return self._belief.lengths.mean_tokens(self._request.model, self._outlook.tokens)

    @property
    def means_s(self) -> Floats:
        """All means: rows TTFT, TPOT, E2E."""
        rows: Floats = self._met()[:METRICS]
        return rows

    @property
    def ttft_s(self) -> Floats:
        """Mean time from a send now to the first token."""
        row: Floats = self._met()[TTFT]
        return row

    @property
    def tpot_s(self) -> Floats:
        """Mean time per output token after the first, over this request's life."""
        row: Floats = self._met()[TPOT]
        return row

    @property
    def e2e_s(self) -> Floats:
        """Mean time from a send now to the last token."""
        row: Floats = self._met()[E2E]
        return row

    @property
    def broken(self) -> Floats:
        """How many replies this prompt should cost the pace promised to them on each candidate: those so short that
        they end before one long step is made up for.
        """
        fleet, belief, request = self._fleet, self._belief, self._request
        alive = belief.lengths.survival(request.model, request.slo_class)
        expected = np.empty(len(fleet.slots))
        kernels.broken(
            fleet.columns,
            fleet.load,
            belief.prior,
            belief.regression.factor,
            belief.roofs.rows,
            fleet.slots,
            self.cached_tokens,
            fleet.now_s,
            self.prompt_tokens,
            alive,
            float(BINS_PER_OCTAVE),
            expected,
        )
        return expected

    # -- tails ---------------------------------------------------------------------------------------------------

    @property
    def _width(self) -> float:
        return hypot(self._outlook.spread, WIDTH_MIN)

    def tails_s(self, quantile: float) -> Floats:
        """All at that quantile: rows TTFT, TPOT, E2E."""
        known = self._tails.get(quantile)
        if known is None:
            row, share = between(quantile)
            known = self._tails[quantile] = np.empty((METRICS, len(self._fleet.slots)))
            if self._means is None:
                self._predicted(row, share, known)
            else:
                spread = self._belief.tails.spread
                kernels.tails(self._means, spread, self._fleet.slots, row, share, self._width, known)
        return known

    def ttft_tail_s(self, quantile: float) -> Floats:
        """The quantile of TTFT."""
        row: Floats = self.tails_s(quantile)[TTFT]
        return row

    def tpot_tail_s(self, quantile: float) -> Floats:
        """The quantile of TPOT."""
        row: Floats = self.tails_s(quantile)[TPOT]
        return row

    def e2e_tail_s(self, quantile: float) -> Floats:
        """The quantile of E2E; most of its spread is the reply's length, as far as that is not capped."""
        row: Floats = self.tails_s(quantile)[E2E]
        return row

    # -- for the books --------------------------------------------------------------------------------------------

    @property
    def slots(self) -> Slots:
        """The candidates."""
        return self._fleet.slots

    @property
    def answers(self) -> Answers:
        """What was asked of this forecast so far, a row a metric: means (None: nothing), and tails by quantile."""
        return self._means, self._tails

    # -- the one that was chosen ---------------------------------------------------------------------------------

    def at(self, index: int) -> Prediction:
        """The means for the candidate at ``index``, with what learning will want to know of them."""
        ttft_s, tpot_s, e2e_s, band = self._met()[:, index].tolist()
        fleet, belief = self._fleet, self._belief
        slot, terms_s = int(fleet.slots[index]), np.empty(TERMS)
        doubt = kernels.expected(
            fleet.columns,
            fleet.load,
            belief.prior,
            belief.regression.factor,
            belief.roofs.rows,
            slot,
            index,
            float(self.cached_tokens[index]),
            fleet.now_s,
            self.prompt_tokens,
            self._mean_output_tokens,
            self.tokens,
            ttft_s,
            terms_s,
        )
        network_s, promised = float(fleet.columns[NETWORK_S, slot]), belief.tails.promised(int(band), slot)
        return Prediction(
            ttft_s, tpot_s, e2e_s, Expectation(terms_s, network_s, doubt, int(band), self._width, promised)
        )
