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

Nothing is computed before it is read, so a policy that needs no forecast pays nothing.
"""

from dataclasses import dataclass
from math import exp, hypot, inf, nan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.core import loops
from router.core.arrays import Bools, Floats, Slots, frozen
from router.core.belief import Belief, Expectation
from router.core.columns import (
    BAND,
    CACHED,
    E2E,
    EXPECTATION,
    EXPECTED_TPOT_VIOLATIONS,
    FORECAST,
    IMPOSED_DELAY_S,
    METRICS,
    NETWORK_S,
    TAILS,
    TPOT,
    TTFT,
)
from router.core.fleet import NONE_UNREPORTED, Fleet
from router.core.lengths import BINS_PER_OCTAVE
from router.core.metering import RATE_TAU_S
from router.core.tails import between
from router.core.types import Request

_NOTHING: Final = np.empty(0)
SHARING_LOG_MAX: Final = 1.4  # about 4 times: what is learnt of wider distributions rests on a few long replies
WIDTH_MIN: Final = 0.1  # of E2E, when the length is known: its TPOT and first token vary all the same


@dataclass(init=False, slots=True, unsafe_hash=True)
class Prediction:
    """The means for one backend and, at the quantile of the request's SLO, its tails, as they stood when the request
    was sent, in seconds from the send; and what learning needs of them (None: no forecast was read).
    """

    ttft_s: Final[float]
    tpot_s: Final[float]
    e2e_s: Final[float]
    ttft_tail_s: Final[float]
    tpot_tail_s: Final[float]
    e2e_tail_s: Final[float]
    expectation: Final[Expectation | None]

    def __init__(
        self,
        ttft_s: float,
        tpot_s: float,
        e2e_s: float,
        ttft_tail_s: float = nan,
        tpot_tail_s: float = nan,
        e2e_tail_s: float = nan,
        expectation: Expectation | None = None,
    ) -> None:
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.e2e_s = e2e_s
        self.ttft_tail_s = ttft_tail_s
        self.tpot_tail_s = tpot_tail_s
        self.e2e_tail_s = e2e_tail_s
        self.expectation = expectation


class Forecast:
    """Predictions aligned with ``fleet.slots``; seconds from now. Every array is read-only."""

    __slots__ = (
        "_adapter_load_s",
        "_belief",
        "_breaks",
        "_cached",
        "_fleet",
        "_longest",
        "_mean_output_tokens",
        "_reply",
        "_request",
        "_resident",
        "_rest",
        "_rows",
        "_tails",
        "_width",
        "prompt_tokens",
        "tokens",
    )

    prompt_tokens: float  # as engines are expected to count them
    tokens: float  # that this request holds when half of each of its replies is out

    def __init__(self, request: Request, fleet: Fleet, belief: Belief) -> None:
        self._request = request
        self._fleet = fleet
        self._belief = belief
        cap, sequences = request.output_tokens_max, request.sequences
        self._reply = belief.lengths.estimate(request.model, request.slo_class, cap)
        self._longest = (
            belief.lengths.longest(request.model, request.slo_class, cap, sequences) if sequences > 1 else self._reply
        )
        self.prompt_tokens = belief.prompts.tokens(request)
        self.tokens = max(self.prompt_tokens + self._reply.tokens / 2 * sequences, 1.0)
        self._adapter_load_s = fleet.adapter_load_s(request)  # None: nothing is to be loaded anywhere
        self._cached: Floats | None = None
        self._resident: Floats | None = None  # tokens of the prompt as estimated, by what was sent before
        self._rows: Floats | None = None
        self._rest: Floats | None = None
        self._breaks = False  # whether EXPECTED_TPOT_VIOLATIONS is filled
        self._tails: dict[float, Floats] | None = None
        self._width = self._mean_output_tokens = 0.0

    @property
    def made(self) -> bool:
        """Whether a prediction was read."""
        return self._rows is not None

    @property
    def output_tokens(self) -> float:
        """Expected output tokens of this request; of several sequences, those of the longest: it sets the end."""
        return self._longest.tokens

    @property
    def state(self) -> NDArray[np.int8]:
        """How far each candidate's forecast can be trusted: LEARNING, TRUSTED or OFF."""
        return self._fleet.of(self._belief.stats.shown_state)

    @property
    def cached_tokens(self) -> Floats:
        """Prompt tokens each candidate should find in its prefix cache: by what it was sent before when the request
        says its prefix, as far as such tokens were found there, else by the share that prompts were lately found there.
        """
        if self._cached is None:
            if self._rows is not None:
                self._cached = self._rows[CACHED]
            elif self._request.prefix:
                found = self._sent_before() * self._fleet.of(self._belief.credit)
                self._cached = frozen(found * self._counted)
            else:
                self._cached = frozen(self.prompt_tokens * self._fleet.of(self._belief.hit))
        return self._cached

    @property
    def prefill_tokens(self) -> Floats:
        """Prompt tokens that each candidate would have to compute."""
        return frozen(self.prompt_tokens - self.cached_tokens)

    def prefill_tokens_at(self, index: int) -> float:
        """The same for one candidate."""
        if self._cached is None and not self._request.prefix:
            return self.prompt_tokens * (1.0 - self._belief.hit.item(self._fleet.slots.item(index)))
        if self._rows is not None:
            return self.prompt_tokens - float(self._rows.item(CACHED, index))
        return self.prompt_tokens - float(self.cached_tokens[index])

    @property
    def _counted(self) -> float:
        """The tokens of the prompt over what they are estimated at."""
        return self.prompt_tokens / max(self._request.prompt_tokens, 1)

    def _sent_before(self) -> Floats:
        """The leading tokens of the prompt, as estimated, that each candidate was sent before."""
        if self._resident is None:
            self._resident = self._fleet.cached_tokens(self._request)
        return self._resident

    def resident_share_at(self, index: int) -> float:
        """The share of the prompt that one candidate was sent before and should still hold, whether or not it finds it
        (0: the request does not say its prefix).
        """
        return self._sent_before().item(index) / max(self._request.prompt_tokens, 1)

    # -- means ---------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> Floats:
        """All there is to know of every candidate, one column each, in the rows that ``router.core`` names (TTFT, TPOT,
        E2E, ...); EXPECTED_TPOT_VIOLATIONS is 0 until ``with_tpot_violations``. Read-only, C-contiguous.
        """
        return self._predicted(_NOTHING) if self._rows is None else self._rows

    def _predicted(self, alive: Floats) -> Floats:
        """Fill the rows, EXPECTED_TPOT_VIOLATIONS only with the share of replies that reach each length."""
        fleet, belief, request, reply = self._fleet, self._belief, self._request, self._reply
        rows, named = self._rows, len(request.prefix) > 0
        if rows is None:
            rows = np.empty((FORECAST, len(fleet.slots)))
        else:
            rows.setflags(write=True)
        unreported_peer_load = fleet.unreported_peer_load
        row, share = between(request.slo.quantile)
        self._width = hypot(self._longest.spread, WIDTH_MIN)
        self._mean_output_tokens = belief.lengths.mean_tokens(request.model, reply.tokens)
        loops.predicted(
            fleet.columns,
            NONE_UNREPORTED if unreported_peer_load is None else unreported_peer_load,
            belief.credit if named else belief.hit,
            self._sent_before() if named else _NOTHING,
            self._counted,
            belief.prior,
            belief.regression.factor,
            belief.roofs.rows,
            belief.load_band_bias,
            belief.tails.spread,
            fleet.slots,
            fleet.now_s,
            self.prompt_tokens,
            max(1.0, belief.prompts.mean_tokens(request.model, self.prompt_tokens)),
            self._longest.tokens,
            self._mean_output_tokens,
            self.tokens,
            float(request.sequences),
            RATE_TAU_S,
            fleet.prompt_tokens_per_s_each,
            row,
            share,
            self._width,
            alive,
            float(BINS_PER_OCTAVE),
            rows,
        )
        if self._adapter_load_s is not None:
            rows[[TTFT, E2E, TAILS + TTFT, TAILS + E2E]] += self._adapter_load_s
        rows.setflags(write=False)
        self._rows = rows
        return rows

    @property
    def means_s(self) -> Floats:
        """All means: rows TTFT, TPOT, E2E."""
        means_s: Floats = self.rows[:METRICS]
        return means_s

    @property
    def ttft_s(self) -> Floats:
        """Mean time from a send now to the first token."""
        row: Floats = self.rows[TTFT]
        return row

    @property
    def tpot_s(self) -> Floats:
        """Mean time per output token after the first, over this request's life."""
        row: Floats = self.rows[TPOT]
        return row

    @property
    def e2e_s(self) -> Floats:
        """Mean time from a send now to the last token."""
        row: Floats = self.rows[E2E]
        return row

    @property
    def expected_tpot_violations(self) -> Floats:
        """How many replies' TPOT SLO this prompt should violate on each candidate: those so short that they end
        before the delay is made up for.
        """
        row: Floats = self.with_tpot_violations()[EXPECTED_TPOT_VIOLATIONS]
        return row

    def with_tpot_violations(self) -> Floats:
        """``rows``, EXPECTED_TPOT_VIOLATIONS among them."""
        if not self._breaks:
            self._predicted(self._belief.lengths.survival(self._request.model, self._request.slo_class))
            self._breaks = True
        return self.rows

    @property
    def rest(self) -> Floats:
        """Rows TTFT, TPOT, E2E of each candidate if nothing else were in flight there: the best that waiting could
        lead to, seconds from the send. To be read.
        """
        if self._rest is None:
            belief = self._belief
            self._rest = self._at_rest(belief.regression.factor, belief.load_band_bias)
        return self._rest

    @property
    def rest_by_sheet(self) -> Floats:
        """The same by the data sheet alone, as it was believed before anything was learnt: what a backend that is slow
        now may take again once it has recovered.
        """
        belief = self._belief
        return self._at_rest(np.ones_like(belief.regression.factor), np.ones_like(belief.load_band_bias))

    def _at_rest(self, factor: Floats, load_band_bias: Floats) -> Floats:
        rest, belief = np.empty((METRICS, len(self._fleet.slots))), self._belief
        loops.at_rest(
            self._fleet.columns,
            belief.prior,
            factor,
            belief.roofs.rows,
            load_band_bias,
            self._fleet.slots,
            self.prompt_tokens,
            self._longest.tokens,
            self.tokens,
            float(self._request.sequences),
            self.rows,
            rest,
        )
        if self._adapter_load_s is not None:
            rest[[TTFT, E2E]] += self._adapter_load_s
        return frozen(rest)

    # -- the reply's length ---------------------------------------------------------------------------------------

    def reply_tokens(self, quantile: float) -> float:
        """The length that no reply of this request exceeds with probability ``quantile``; its cap bounds it."""
        request = self._request
        if request.sequences > 1:
            quantile = quantile ** (1.0 / request.sequences)
        return self._belief.lengths.quantile(request.model, request.slo_class, quantile, request.output_tokens_max)

    def in_time(self, tokens: Floats) -> Floats:
        """Row 0: the probability that every reply of this request has at most so many tokens, an entry a candidate; row
        1: its slope over the log of tokens.
        """
        request, chances = self._request, np.empty((2, len(tokens)))
        tokens = np.ascontiguousarray(tokens, dtype=np.float64)
        alive = self._belief.lengths.survival(request.model, request.slo_class, request.sequences)
        loops.in_time(alive, float(BINS_PER_OCTAVE), float(request.output_tokens_max), tokens, chances)
        return frozen(chances)

    @property
    def imposed_delay_s(self) -> Floats:
        """What a send would take from the replies running on each candidate: seconds, summed over all of them."""
        row: Floats = self.rows[IMPOSED_DELAY_S]
        return row

    @property
    def reply_sharing(self) -> float:
        """How many times its share in time a reply of mean length runs together with those it meets: those that a
        newcomer meets are longer than the mean, the more so the more lengths differ. E[n^2] / E[n]^2, of a lognormal.
        """
        return exp(min(self._reply.spread**2, SHARING_LOG_MAX))

    @property
    def mean_reply_tokens(self) -> float:
        """The mean reply of this model lately, over all SLO classes."""
        return self._belief.lengths.mean_tokens(self._request.model, self._reply.tokens)

    def adapter_ready(self, waited_s: float) -> Bools | None:
        """The candidates that have the request's adapter loaded and keep its SLO with what it has waited, or answer
        first of all; None: nothing is to be loaded anywhere.
        """
        if self._adapter_load_s is None:
            return None
        slo = self._request.slo
        ttft_s, tpot_s, e2e_s = self.tails_s(slo.quantile)
        kept = (waited_s + ttft_s <= slo.ttft_s) & (tpot_s <= slo.tpot_s) & (waited_s + e2e_s <= slo.e2e_s)
        bounded = min(slo.ttft_s, slo.tpot_s, slo.e2e_s) < inf
        first = self.ttft_s <= self.ttft_s.min(initial=inf)
        ready: Bools = (self._adapter_load_s == 0.0) & ((kept & bounded) | first)
        return ready

    # -- tails ---------------------------------------------------------------------------------------------------

    def tails_s(self, quantile: float) -> Floats:
        """All at that quantile: rows TTFT, TPOT, E2E."""
        rows = self.rows
        if quantile == self._request.slo.quantile:
            filled: Floats = rows[TAILS : TAILS + METRICS]
            return filled
        if self._tails is None:
            self._tails = {}
        known = self._tails.get(quantile)
        if known is None:
            row, share = between(quantile)
            known = self._tails[quantile] = np.empty((METRICS, len(self._fleet.slots)))
            if self._adapter_load_s is not None:  # a constant: it is no part of what spreads
                rows = rows.copy()
                rows[[TTFT, E2E]] -= self._adapter_load_s
            loops.tails(rows, self._belief.tails.spread, self._fleet.slots, row, share, self._width, known)
            if self._adapter_load_s is not None:
                known[[TTFT, E2E]] += self._adapter_load_s
            known.setflags(write=False)
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

    # -- for explanations --------------------------------------------------------------------------------------------

    @property
    def slots(self) -> Slots:
        """The candidates."""
        return self._fleet.slots

    @property
    def answer(self) -> Floats | None:
        """The rows; None when no prediction was read."""
        return self._rows

    # -- the one that was chosen ---------------------------------------------------------------------------------

    def at(self, index: int) -> Prediction:
        """What is predicted for the candidate at ``index``, with what learning needs of it."""
        rows, fleet, belief = self.rows, self._fleet, self._belief
        column: list[float] = rows[:, index].tolist()
        slot, expected = fleet.slots.item(index), np.empty(EXPECTATION)
        load_s = self._adapter_load_s.item(index) if self._adapter_load_s is not None else 0.0
        log_variance = loops.expected(
            fleet.columns,
            belief.prior,
            belief.regression.factor,
            belief.roofs.rows,
            belief.tails.spread,
            slot,
            index,
            fleet.now_s,
            self.prompt_tokens,
            self._mean_output_tokens,
            self.tokens,
            rows,
            expected,
        )
        return Prediction(
            column[TTFT],
            column[TPOT],
            column[E2E],
            column[TAILS + TTFT],
            column[TAILS + TPOT],
            column[TAILS + E2E],
            Expectation(
                expected, fleet.columns.item(NETWORK_S, slot) + load_s, log_variance, int(column[BAND]), self._width
            ),
        )
