"""What is believed of each backend: its physics as its streams corrected it, how far off predictions tend to be, and
whether to trust them.

Assumes: data-sheet physics (``Backend.prior``) times learnt factors (``regression.py``), a small factor left over in
each load band, conformal tails (``tails.py``), reply lengths (``lengths.py``). Must not depend on: what is true in the
simulator; the belief learns there as in production, from the streams it sent.

A stream is two measurements. Its first token: the steps and prompt tokens that stood ahead when it was sent. Its
TPOT: the mean batch, context and prompt load that the backend carried while it decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, inf, isnan, log, nan
from typing import Any, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from router.core import border, loops
from router.core.arrays import Floats
from router.core.columns import (
    BANDS,
    E2E,
    EAGER,
    EXPECTATION,
    FULL,
    KEPT_QUANTILES,
    LEARNING,
    PRIOR,
    SCALE,
    SHARE,
    SPREADS,
    TERMS,
    TPOT,
    TRUSTED,
    TTFT,
)
from router.core.evidence import Outcome, SharedEvidence
from router.core.lengths import Lengths
from router.core.metering import WorkSnapshot
from router.core.prompts import Prompts
from router.core.regression import Regression
from router.core.roof import Roofs
from router.core.score import STATES, TRUSTED_AFTER, ForecastStats, Score
from router.core.tails import Tails
from router.core.types import Backend

VERSION: Final = 3  # of an exported belief
STEPS_AHEAD: Final = 0.5  # that a busy engine has scheduled beyond the one under way: none, or (vLLM's async) one
STEPS_AHEAD_SIGMA: Final = 1.0
SIGMA_ASSUMED: Final = 1.0  # of every term: neither card nor model is known, or one of them is not
REQUESTS_UNSEEN: Final = 4  # in flight on such a backend before any of its replies has begun
BIAS_GAIN: Final = 0.04
CREDIT_GAIN: Final = 0.1  # of a prompt that should be cached whole: an engine that caches nothing is known after 30
STEPS_MIN: Final = 4  # a shorter reply says more of rounding than of TPOT
SHORTEST_S: Final = 1e-9  # what took less was not timed: the log of its ratio would know no bound
STEP_LOG_VARIANCE: Final = 0.25  # of the TPOT of a single step: a prompt may or may not be in it


@dataclass(init=False, slots=True, eq=False)
class Expectation:
    """What one send was expected to take, as it stood then, in seconds and logs.

    ``terms_and_spreads``: the terms of TTFT at factor 1, then the spreads of each metric, as ``kernels.expected``
    fills them in; ``constant_s``: network; ``log_variance``: of TTFT, by the queue's chance; ``width``: expected spread
    of the log of E2E.
    """

    terms_and_spreads: Final[Floats]
    constant_s: Final[float]
    log_variance: Final[float]
    band: Final[int]
    width: Final[float]

    def __init__(
        self,
        terms_and_spreads: Floats,
        constant_s: float,
        log_variance: float,
        band: int,
        width: float,
    ) -> None:
        self.terms_and_spreads = terms_and_spreads
        self.constant_s = constant_s
        self.log_variance = log_variance
        self.band = band
        self.width = width


class Belief:
    """Columns and rows over the ledger's slots."""

    prior: Floats  # a row a slot: a step's seconds by the data sheet, of one stage's share of the batch; SHARE, SCALE
    load_band_bias: Floats  # of TTFT and TPOT, by band and slot: what is left between model and outcome, as a factor
    hit: Floats  # share of prompt tokens found in the prefix cache, by slot
    credit: Floats  # of the tokens that should be there by what was sent, the share that is found; 1 until known
    finds: Floats  # whether the engine's own metrics have ever shown a hit: 1 or 0 (nan: they have none)

    def __init__(self, capacity: int = 16) -> None:
        self.lengths = Lengths()
        self.prompts = Prompts()
        self.roofs = Roofs(capacity)
        self.regression = Regression(capacity, kinds=2)
        self.tails = Tails(capacity)
        self.stats = ForecastStats(capacity)
        self.peers_stats = ForecastStats(capacity)  # how this belief did for what peers measured
        self.evidence = SharedEvidence()
        self._sheets: dict[int, int] = {}  # digests of the data sheets, by slot
        self._backends: dict[int, Backend] = {}
        self.assumed: dict[int, int] = {}  # replies that began on new backends whose prior is a guess, by slot
        self.prior = np.zeros((capacity, PRIOR))
        self.load_band_bias = np.ones((2, BANDS, capacity))
        self.hit = np.zeros(capacity)
        self.credit = np.ones(capacity)
        self.finds = np.full(capacity, nan)

    @property
    def state(self) -> NDArray[np.int8]:
        """How far each backend's forecast can be trusted: LEARNING, TRUSTED or OFF."""
        return self.stats.state

    # -- who is there --------------------------------------------------------------------------------------------

    def joined(self, slot: int, backend: Backend) -> None:
        """Start from the data sheet for what is now in ``slot``."""
        while slot >= len(self.hit):
            self._grow(2 * len(self.hit))
        p = backend.prior
        self._backends[slot] = backend
        self.assumed.pop(slot, None)
        if min(p.sigma) >= SIGMA_ASSUMED:
            self.assumed[slot] = 0
        scale = self.roofs.joined(slot, p, float(backend.chunk_tokens + backend.seqs_max))
        self.prior[slot, :TERMS] = (
            p.fixed_s,
            p.seq_s / p.stages,
            p.context_s / p.stages,
            p.token_s - p.gemm_token_s,  # what the roof does not hold
            p.token_context_s,
            p.first_token_s,
            STEPS_AHEAD,
        )
        self.prior[slot, SHARE], self.prior[slot, SCALE], self.prior[slot, EAGER] = 1.0 / p.stages, scale, p.eager_s
        self.regression.joined(slot, (*p.sigma, STEPS_AHEAD_SIGMA))
        self.tails.joined(slot, backend.models[0] if backend.models else "")
        self.stats.joined(slot)
        self.peers_stats.joined(slot)
        self._sheets[slot] = crc32(self.prior[slot].tobytes())
        self.load_band_bias[..., slot] = 1.0
        self.hit[slot] = 0.0
        self.credit[slot], self.finds[slot] = 1.0, nan

    def serves(self, slot: int, backend: Backend) -> None:
        """The same engine with other models: what was learnt of it stays."""
        self._backends[slot] = backend

    def restarted(self, slot: int) -> None:
        """The backend was away and is back: it may be another version, or have others on its machine."""
        self.regression.widen(slot)

    def _grow(self, capacity: int) -> None:
        prior, bias, hit = self.prior, self.load_band_bias, self.hit
        self.prior = np.zeros((capacity, PRIOR))
        self.load_band_bias = np.ones((2, BANDS, capacity))
        self.hit = np.zeros(capacity)
        self.prior[: len(hit)], self.load_band_bias[..., : len(hit)], self.hit[: len(hit)] = prior, bias, hit
        self.credit = np.concatenate((self.credit, np.ones(capacity - len(hit))))
        self.finds = np.concatenate((self.finds, np.full(capacity - len(hit), nan)))
        for part in (self.roofs, self.regression, self.tails, self.stats, self.peers_stats):
            part.grow(capacity)

    # -- what happened -------------------------------------------------------------------------------------------

    def shown(self, slot: int) -> None:
        """A reply has begun with its first token, or came whole, whether it was predicted or not."""
        if slot in self.assumed:
            self.assumed[slot] += 1

    def first_token(self, slot: int, expected: Expectation, predicted_s: float, actual_s: float) -> None:
        """A first token came ``actual_s`` after its send."""
        if not (predicted_s > 0.0 and actual_s >= SHORTEST_S):
            return
        terms, constant_s = expected.terms_and_spreads, expected.constant_s
        if expected.band == FULL:  # the wait for room is a matter of other replies' ends, not of this engine's steps
            left = log(actual_s / (float(terms[:TERMS] @ self.regression.factor[slot]) + constant_s))
        else:
            left = self.regression.update(slot, TTFT, terms, constant_s, actual_s, expected.log_variance)
        self._update_load_band_bias(TTFT, slot, expected.band, left)
        self._judge(TTFT, slot, expected, log(actual_s / predicted_s))
        if self.evidence.outcomes_left:
            self._share(TTFT, slot, expected.band, actual_s, constant_s, expected.log_variance, terms)

    def tpot(
        self,
        slot: int,
        model: str,
        expected: Expectation,
        predicted_s: float,
        steps: float,
        since: WorkSnapshot,
        until: WorkSnapshot,
    ) -> None:
        """A stream decoded ``steps`` tokens after its first, between two marks; ``predicted_s`` a token."""
        actual_s = until.at_s - since.at_s
        if not (predicted_s > 0.0 and actual_s >= SHORTEST_S):
            return
        sure = steps >= STEPS_MIN
        if sure:
            terms = self._lived(slot, model, steps, since, until)
            left = self.regression.update(slot, TPOT, terms, 0.0, actual_s, STEP_LOG_VARIANCE / steps)
            self._update_load_band_bias(TPOT, slot, expected.band, left)
            if self.evidence.outcomes_left:
                self._share(TPOT, slot, expected.band, actual_s, 0.0, STEP_LOG_VARIANCE / steps, terms)
        self._judge(TPOT, slot, expected, log(actual_s / (steps * predicted_s)), sure)

    def _lived(self, slot: int, model: str, steps: float, since: WorkSnapshot, until: WorkSnapshot) -> Floats:
        """The terms, at factor 1, of the steps between two marks: of the mean batch, and of the prompts that came."""
        prompts, backend, terms = until.prefilled_tokens - since.prefilled_tokens, self._backends[slot], np.empty(TERMS)
        loops.lived(
            self.prior,
            self.roofs.rows,
            slot,
            float(backend.prior.stages),
            float(backend.chunk_tokens),
            float(steps),
            until.at_s - since.at_s,
            until.decoding_s - since.decoding_s,
            until.context_s - since.context_s,
            prompts,
            self.prompts.mean_tokens(model, prompts),
            terms,
        )
        return terms

    def end(self, slot: int, expected: Expectation, predicted_s: float, actual_s: float) -> None:
        """A reply was complete ``actual_s`` after its send."""
        if predicted_s > 0.0 and actual_s >= SHORTEST_S:
            self._judge(E2E, slot, expected, log(actual_s / predicted_s) / expected.width)

    def cached(self, slot: int, share: float, expected: float = 0.0, stated: bool = True) -> None:
        """The share of a prompt that was found in the prefix cache, and the share that should have been, by what was
        sent there; ``stated``: the reply's usage says what was found.

        Engines leave a count of 0 out, and many all counts: where none was ever stated that says nothing, unless the
        engine's own metrics show whether anything is ever found.
        """
        hit = self.hit.item(slot)
        if hit != share:
            self.hit[slot] = hit + BIAS_GAIN * (share - hit)
        if expected == 0.0:
            return
        finds, found = self.finds.item(slot), min(share, expected)
        if not stated and self.hit.item(slot) == 0.0:
            if isnan(finds):
                return
            found = expected * finds
        self.credit[slot] += CREDIT_GAIN * (found - expected * self.credit.item(slot))

    def reported(self, slot: int, hit_rate: float) -> None:
        """The share of prompt tokens that the engine itself says it found lately (nan: it does not report it)."""
        if hit_rate > 0.0:
            self.finds[slot] = 1.0
        elif hit_rate == 0.0 and isnan(self.finds.item(slot)):
            self.finds[slot] = 0.0

    def _update_load_band_bias(self, metric: int, slot: int, band: int, left: float) -> None:
        """Learn what the factors leave over in this load band: the queue is modelled only so well."""
        bias = self.load_band_bias.item(metric, band, slot)
        self.load_band_bias[metric, band, slot] = bias * exp(BIAS_GAIN * (min(1.0, max(-1.0, left)) - log(bias)))

    def _judge(self, metric: int, slot: int, expected: Expectation, score: float, sure: bool = True) -> None:
        """Count an outcome against its predicted quantiles; ``sure``: its error is one of the model, not of chance."""
        width = expected.width if metric == E2E else 1.0
        self._fold(self.stats, metric, slot, expected.band, score, width, expected.terms_and_spreads, sure)

    def _fold(
        self,
        stats: ForecastStats,
        metric: int,
        slot: int,
        band: int,
        score: float,
        width: float,
        expectation: Floats,
        sure: bool,
    ) -> None:
        tails = self.tails
        own, own_order, pooled, pooled_order = tails.scores(metric, band, slot)
        if loops.judge(
            own,
            own_order,
            pooled,
            pooled_order,
            tails.spread,
            tails.borrows,
            stats.rows,
            stats.state,
            metric,
            band,
            slot,
            score,
            width,
            expectation,
            sure,
        ):
            tails.lend(metric, band, slot)

    # -- what peers measured -------------------------------------------------------------------------------------

    def _share(
        self, metric: int, slot: int, band: int, actual_s: float, constant_s: float, log_variance: float, terms: Floats
    ) -> None:
        """Peers are to have this outcome too, if the budget of this moment has room for it."""
        if self.evidence.has_room(slot):
            name, sheet, each = self._backends[slot].name, self._sheets[slot], tuple(terms[:TERMS].tolist())
            self.evidence.add(slot, Outcome(name, sheet, metric, band, actual_s, constant_s, log_variance, each))

    def learn_from_peer(self, slot: int, seen: Outcome) -> None:
        """Fold in an outcome that a peer measured, like one of this router's own; passed over where the peer has other
        facts of the backend. How far off it was is judged by this belief: what the peer expected is not of interest.
        """
        if seen.sheet != self._sheets.get(slot):
            return
        metric, band, terms = seen.metric, seen.band, np.array(seen.terms)
        expected_s = float(terms @ self.regression.factor[slot]) + seen.constant_s
        if not expected_s > 0.0:
            return
        off = log(seen.actual_s / expected_s)
        score = off - log(self.load_band_bias.item(metric, band, slot))
        if metric != TTFT or band != FULL:  # see first_token
            off = self.regression.update(slot, metric, terms, seen.constant_s, seen.actual_s, seen.log_variance)
        self._update_load_band_bias(metric, slot, band, off)
        expectation, first = np.zeros(EXPECTATION), SPREADS + KEPT_QUANTILES * metric
        expectation[first : first + KEPT_QUANTILES] = self.tails.spread[metric, :, band, slot]
        self._fold(self.peers_stats, metric, slot, band, score, 1.0, expectation, True)
        if metric == TTFT:
            self.shown(slot)
            if self.state.item(slot) == LEARNING and self.peers_stats.state.item(slot) == TRUSTED:
                self.state[slot] = TRUSTED

    # -- what it is worth ----------------------------------------------------------------------------------------

    def requests_max(self, slot: int) -> float:
        """How many requests a backend may have in flight while others are there for them.

        One whose prior is a guess has not shown yet what it takes: it begins with a few, and each reply that begins
        there (a whole one does as it ends) allows one more, so that they double with every round. Time alone allows
        none. There is no such limit once enough were seen to trust a forecast, whether the policy reads one or not.
        """
        shown = self.assumed.get(slot)
        if shown is None:
            return inf
        if shown >= TRUSTED_AFTER or self.state.item(slot) != LEARNING:
            del self.assumed[slot]
            return inf
        return float(REQUESTS_UNSEEN + shown)

    def seen(self, slot: int) -> int:
        """First tokens observed on this backend."""
        return self.stats.seen(slot, TTFT)

    def score(self, slot: int) -> Score:
        """How its predictions did."""
        ttft, tpot, e2e = (self.stats.accuracy(slot, metric) for metric in (TTFT, TPOT, E2E))
        return Score(STATES[self.state[slot]], ttft, tpot, e2e, self.regression.changes(slot))

    # -- warm start ----------------------------------------------------------------------------------------------

    def export(self, slot: int) -> dict[str, Any]:
        """What was learnt of one backend, as JSON can hold it."""
        return {
            "version": VERSION,
            "lengths": {model: self.lengths.export(model) for model in self._backends[slot].models},
            "prior": self.prior[slot, :TERMS].tolist(),
            "regression": self.regression.plain(slot),
            "tails": self.tails.plain(slot),
            "load_band_bias": self.load_band_bias[..., slot].tolist(),
            "hit": float(self.hit[slot]),
            "credit": float(self.credit[slot]),
            "state": int(self.state[slot]),
        }

    def adopt(self, slot: int, learnt: Mapping[str, Any]) -> None:
        """Start from what another router learnt of the same backend, or refuse it whole: ValueError when it is of
        another version or other physics, Implausible when it holds a number that cannot have been learnt.
        """
        if learnt.get("version") != VERSION:
            raise ValueError(f"a belief of version {learnt.get('version')!r}; expected {VERSION}")
        if not np.allclose(learnt["prior"], self.prior[slot, :TERMS], rtol=1e-6, atol=0.0):
            raise ValueError("a belief about other physics: its prior is not that of this backend")
        border.belief(learnt)
        for model, classes in learnt["lengths"].items():
            if model in self._backends[slot].models:
                self.lengths.adopt(model, classes)
        self.regression.adopt(slot, learnt["regression"])
        self.tails.adopt(slot, learnt["tails"])
        self.load_band_bias[..., slot] = learnt["load_band_bias"]
        self.hit[slot] = learnt["hit"]
        self.credit[slot] = min(1.0, max(0.0, learnt.get("credit", 1.0)))
        self.state[slot] = learnt["state"]
