"""Fleet x request -> TTFT, TPOT and E2E on every candidate, mean and tail, in a handful of vector operations.

The model of one engine (DESIGN section 5; continuous batching with chunked prefill, as vLLM V1 schedules it). A step
in which ``b`` sequences decode over ``S`` tokens takes ``fixed + seq b + context S``, prompt tokens ride along as far
as ``chunk_tokens`` go, and the roof says what the tokens of a step add to reading the weights. Each term is physics
times its learnt factor.

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

from router.core.belief import Belief, Expectation
from router.core.fleet import Fleet
from router.core.ledger import Floats, Slots
from router.core.regression import CONTEXT, FIRST, FIXED, PAIR, SEQ, TERMS, TOKEN
from router.core.score import E2E, TPOT, TTFT
from router.core.tails import FULL, interpolated
from router.core.types import Request

PREFILL_SHARE_MAX: Final = 0.8  # beyond it the engine hardly decodes; the stretch would be without bound
LEFT_MIN: Final = 0.1  # of a step under way that should be over, as a share of it
WIDTH_MIN: Final = 0.1  # of E2E, when the length is known: its pace and first token vary all the same
WAIT_DOUBT: Final = 0.5**2  # variance of the log of a wait for room: when others end is chance
STEP_DOUBT: Final = 1.0 / 12.0  # variance of how much of a step under way is left, in steps


Answers = tuple[Floats | None, Floats | None, Floats | None, Mapping[tuple[int, float], Floats]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The means for one backend, as they stood when the request was sent, in seconds from the send; and what learning
    needs to know of them (None: nobody asked for a forecast).
    """

    ttft_s: float
    tpot_s: float
    e2e_s: float
    expectation: Expectation | None = None

    def tails_s(self, quantile: float) -> tuple[float, float, float]:
        """The quantiles of TTFT, TPOT and E2E that were promised with these means; nan without a forecast."""
        expected = self.expectation
        if expected is None:
            return self.ttft_s, self.tpot_s, self.e2e_s
        ttft, tpot, e2e = (interpolated(spreads, quantile) for spreads in expected.promised)
        return self.ttft_s * exp(ttft), self.tpot_s * exp(tpot), self.e2e_s * exp(expected.width * e2e)


class _Engines:
    """The candidates' terms as this request meets them; arrays of one entry a candidate."""

    __slots__ = (
        "batch",
        "c",
        "cached",
        "context",
        "each",
        "factor",
        "first",
        "fixed",
        "full",
        "growing",
        "last",
        "left",
        "mean_prompt",
        "own",
        "piece",
        "queued",
        "roof",
        "room",
        "step",
        "under_way",
    )

    def __init__(
        self, fleet: Fleet, belief: Belief, own_tokens: Floats, cached_tokens: Floats, mean_prompt_tokens: float
    ) -> None:
        believed = fleet.of(belief.believed)
        self.c, self.factor, share, scale = believed[:TERMS], believed[TERMS : 2 * TERMS], believed[-2], believed[-1]
        prefilling, self.queued, self.batch, self.context = fleet.load
        self.own, self.cached, self.mean_prompt = own_tokens, cached_tokens, mean_prompt_tokens
        self.each = self.queued / np.maximum(prefilling, 1.0)
        self.growing = np.minimum(self.batch + prefilling + 1.0, fleet.seqs_max)
        self._fill(fleet.chunk_tokens)
        self._roofs(belief, fleet, share, scale)
        self.fixed = self.c[FIXED] + self.factor[FIXED] * self.roof[0]
        self.step = self.fixed + self.c[SEQ] * self.batch + self.c[CONTEXT] * self.context
        self._progress(fleet.unanswered_s)

    def _roofs(self, belief: Belief, fleet: Fleet, share: Floats, scale: Floats) -> None:
        """The roof over the batch now and over the batch to come, and what prompt tokens beside it add."""
        rows = np.empty((6, len(fleet)))
        np.multiply(self.batch, share, out=rows[0])
        rows[1], rows[2], rows[3] = self.first, self.last, self.room
        self.piece = rows[4] = np.minimum(self.mean_prompt, self.room)
        rows[1:5] += rows[0]
        np.multiply(self.growing, share, out=rows[5])
        self.roof = belief.roofs.at(fleet.slots, rows, scale)
        self.roof[1:5] -= self.roof[0]

    def _fill(self, chunk_tokens: Floats) -> None:
        """How the prompts ahead and the own one fall into steps: the one under way has taken in ``first`` tokens of the
        queue and is half done on average; ``full`` ones and a last with ``last`` take what is ``left``.
        """
        room = self.room = np.maximum(chunk_tokens - self.batch, 1.0)
        self.first = np.minimum(self.queued, room)
        left = self.left = self.queued - self.first
        left += self.own
        full = np.ceil(left / room)
        full -= 1.0
        np.maximum(full, 0.0, out=full)
        self.full = full
        self.last = left - full * room

    def _progress(self, unanswered_s: Floats) -> None:
        """How much of the step under way is left, as a share of it.

        Half on average. But when the newest prompt ahead was sent ``unanswered_s`` ago (nan: not by this router), and
        one step holds all that wait: on an engine that had nothing to do its step began at once; on one that decoded it
        began with the next step, and so will ours if that has not come yet.
        """
        self.under_way = 0.5 * (self.batch + self.queued > 0.0)
        if not self.queued.any():
            return
        prompt_s = self.factor[TOKEN] * self.roof[1] + self.first * (self.c[TOKEN] + self.c[PAIR] * (0.5 * self.each))
        joined = np.maximum(unanswered_s - self.step, 0.0) + 0.5 * self.step
        gone_s = np.where(self.batch > 0.0, joined, unanswered_s)
        share = np.clip(1.0 - gone_s / (self.step + prompt_s), LEFT_MIN, 1.0)
        known = (self.queued > 0.0) & (self.queued <= self.room) & (unanswered_s >= 0.0)
        self.under_way = np.where(known, share, self.under_way)

    def prompt_s(self) -> tuple[Floats, Floats]:
        """What prompt tokens add to those steps: through roof and network, and by attention."""
        _, first, last, full, _, _ = self.roof
        tokens = self.left + self.under_way * self.first
        pairs = self.own * (self.cached + 0.5 * self.own) + (tokens - self.own) * (0.5 * self.each)
        pairs *= self.c[PAIR]
        beyond = self.under_way * first + self.full * full + last
        beyond *= self.factor[TOKEN]
        beyond += self.c[TOKEN] * tokens
        return beyond, pairs

    def life_s(self, tokens: float, kv_tokens_max: Floats) -> Floats:
        """A step with this request and those queued before it in the batch."""
        fixed = self.c[FIXED] + self.factor[FIXED] * self.roof[5]
        held = np.minimum(self.context + self.queued + tokens, kv_tokens_max)
        step: Floats = fixed + self.c[SEQ] * self.growing + self.c[CONTEXT] * held
        return step

    def prefill_share(
        self, tokens_per_s: Floats, waiting: Floats | None, step_s: Floats, output_tokens: float
    ) -> Floats:
        """The share of its time that an engine spends on prompts: on those that are sent to it; on a full engine, which
        takes in one whenever one ends, on those that take the places of its batch (Little 1961).
        """
        each_s = self.factor[TOKEN] * self.roof[4] / self.piece + self.c[TOKEN] + self.c[PAIR] * (self.mean_prompt / 2)
        share = tokens_per_s * each_s
        if waiting is not None:
            taken_in = self.growing * self.mean_prompt * each_s / (output_tokens * step_s)
            share = np.where(waiting > 0.0, taken_in / (1.0 + taken_in), share)
        bounded: Floats = np.minimum(share, PREFILL_SHARE_MAX)
        return bounded

    def terms_s(self, index: int, steps: float, prompt_s: float, pair_s: float) -> Floats:
        """The terms of TTFT at factor 1 on one candidate."""
        c, factor = self.c[:, index], self.factor[:, index]
        seq_s, context_s = c[SEQ] * self.batch[index], c[CONTEXT] * self.context[index]
        parts = np.array((steps * self.fixed[index], steps * seq_s, steps * context_s, prompt_s, pair_s, c[FIRST]))
        parts /= factor
        return parts


class Forecast:
    """Predictions aligned with ``fleet.slots``; seconds from now."""

    __slots__ = (
        "_belief",
        "_cached",
        "_e2e",
        "_engines",
        "_fleet",
        "_mean_prompt",
        "_outlook",
        "_queue",
        "_request",
        "_tails",
        "_tpot",
        "_ttft",
        "_where",
        "prompt_tokens",
    )

    def __init__(self, request: Request, fleet: Fleet, belief: Belief) -> None:
        self._request = request
        self._fleet = fleet
        self._belief = belief
        self._outlook = belief.lengths.outlook(request.model, request.slo_class, request.output_tokens_max)
        self.prompt_tokens = request.prompt_tokens * belief.prompts.scale(request.model)
        self._mean_prompt = max(1.0, belief.prompts.mean_tokens(request.model, self.prompt_tokens))
        self._cached: Floats | None = None
        self._engines: _Engines | None = None
        self._ttft: Floats | None = None
        self._tpot: Floats | None = None
        self._e2e: Floats | None = None
        self._tails: dict[tuple[int, float], Floats] = {}

    @property
    def made(self) -> bool:
        """Whether anybody asked for a prediction."""
        return self._engines is not None

    @property
    def output_tokens(self) -> float:
        """Expected output tokens of this request."""
        return self._outlook.tokens

    @property
    def tokens(self) -> float:
        """Tokens this request holds when half of its reply is out."""
        return max(self.prompt_tokens + self._outlook.tokens / 2, 1.0)

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

    def _met(self) -> _Engines:
        if self._engines is None:
            fleet, mean = self._fleet, self._mean_prompt
            self._engines = _Engines(fleet, self._belief, self.prefill_tokens, self.cached_tokens, mean)
        return self._engines

    # -- means ---------------------------------------------------------------------------------------------------

    @property
    def ttft_s(self) -> Floats:
        """Mean time from a send now to the first token."""
        if self._ttft is None:
            engines, fleet, slots = self._met(), self._fleet, self._fleet.slots
            waiting = self._steps_to_room()
            steps = engines.full + engines.under_way
            steps += 1.0
            bands = (engines.queued > 0.0).astype(np.intp)
            if waiting is not None:
                steps += waiting
                bands[waiting > 0.0] = FULL
            prompt_s, pair_s = engines.prompt_s()
            self._where = self._belief.tails.where(bands, slots)
            self._queue = steps, waiting, prompt_s, pair_s, bands
            modelled_s = steps * engines.step
            for more_s in (fleet.network_s, prompt_s, pair_s, engines.c[FIRST]):
                modelled_s += more_s
            modelled_s *= self._belief.lean(TTFT, self._where)
            self._ttft = modelled_s
        return self._ttft

    def _steps_to_room(self) -> Floats | None:
        """Steps until enough sequences have ended, where slots or KV are taken; None when there is room everywhere.

        With ``n`` sequences of mean life L tokens one ends every L / n steps (they are spread evenly over their lives),
        so the k-th from now is k L / n steps away.
        """
        fleet, load = self._fleet, self._fleet.load
        requests, held = load[:2] + load[2:]  # prefilling and decoding, and the tokens of both
        over = requests + 1.0 - fleet.seqs_max
        kv_over = held + self.tokens - fleet.kv_tokens_max
        if not np.maximum(over, kv_over).max() > 0.0:
            return None
        ahead = np.maximum(np.maximum(over, kv_over / self.tokens), 0.0)
        running = np.maximum(np.minimum(requests, fleet.seqs_max), 1.0)
        steps: Floats = ahead * self._outlook.tokens / running
        return steps

    @property
    def tpot_s(self) -> Floats:
        """Mean time per output token after the first, over this request's life."""
        if self._tpot is None:
            engines, fleet = self._met(), self._fleet
            self.ttft_s  # noqa: B018 - finds the bands
            step_s = engines.life_s(self.tokens, fleet.kv_tokens_max)
            share = engines.prefill_share(fleet.prefill_tokens_per_s, self._queue[1], step_s, self._outlook.tokens)
            step_s /= 1.0 - share
            step_s *= self._belief.lean(TPOT, self._where)
            self._tpot = step_s
        return self._tpot

    @property
    def e2e_s(self) -> Floats:
        """Mean time from a send now to the last token."""
        if self._e2e is None:
            self._e2e = self.ttft_s + max(self._outlook.tokens - 1.0, 0.0) * self.tpot_s
        return self._e2e

    # -- tails ---------------------------------------------------------------------------------------------------

    @property
    def _width(self) -> float:
        return hypot(self._outlook.spread, WIDTH_MIN)

    def _tail_s(self, metric: int, quantile: float, mean_s: Floats, width: float) -> Floats:
        known = self._tails.get((metric, quantile))
        if known is None:
            spread = self._belief.tails.spread(metric, quantile, self._where)
            if width != 1.0:
                spread *= width
            known = self._tails[metric, quantile] = mean_s * np.exp(spread, out=spread)
        return known

    def ttft_tail_s(self, quantile: float) -> Floats:
        """The quantile of TTFT."""
        return self._tail_s(TTFT, quantile, self.ttft_s, 1.0)

    def tpot_tail_s(self, quantile: float) -> Floats:
        """The quantile of TPOT."""
        return self._tail_s(TPOT, quantile, self.tpot_s, 1.0)

    def e2e_tail_s(self, quantile: float) -> Floats:
        """The quantile of E2E; most of its spread is the reply's length, as far as that is not capped."""
        return self._tail_s(E2E, quantile, self.e2e_s, self._width)

    # -- for the books --------------------------------------------------------------------------------------------

    @property
    def slots(self) -> Slots:
        """The candidates."""
        return self._fleet.slots

    @property
    def answers(self) -> Answers:
        """What was asked of this forecast so far: means, and tails by metric and quantile. Nothing is computed here."""
        return self._ttft, self._tpot, self._e2e, self._tails

    # -- the one that was chosen ---------------------------------------------------------------------------------

    def at(self, index: int) -> Prediction:
        """The means for the candidate at ``index``, with what learning will want to know of them."""
        ttft_s, tpot_s, e2e_s = float(self.ttft_s[index]), float(self.tpot_s[index]), float(self.e2e_s[index])
        return Prediction(ttft_s, tpot_s, e2e_s, self._expectation(index, ttft_s))

    def _expectation(self, index: int, ttft_s: float) -> Expectation:
        engines = self._met()
        steps, waiting, prompt_s, pair_s, bands = self._queue
        slot, band, step_s = int(self._fleet.slots[index]), int(bands[index]), float(engines.step[index])
        step_share = step_s / ttft_s
        wait_share = 0.0 if waiting is None else float(waiting[index]) * step_share
        network_s = float(self._fleet.network_s[index])
        return Expectation(
            engines.terms_s(index, steps[index], prompt_s[index], pair_s[index]),
            network_s,
            WAIT_DOUBT * wait_share**2 + STEP_DOUBT * step_share**2,
            band,
            self._width,
            self._belief.tails.promised(band, slot),
        )
