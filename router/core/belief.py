"""What we hold true of each backend: its physics as its streams corrected it, how far off we tend to be, whether to
trust it.

Believes: data-sheet physics (``Backend.prior``) times learnt factors (``regression.py``), a small factor left over in
each load band, conformal tails (``tails.py``), reply lengths (``lengths.py``). Must not know: what is true in the
simulator; it learns there as it does in production, from the streams it sent.

A stream teaches twice. Its first token: the steps and prompt tokens that stood ahead when it was sent. Its pace: the
mean batch, context and prompt load that the backend carried while it decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core.ledger import Floats, Mark, Slots
from router.core.lengths import Lengths, Prompts
from router.core.regression import FIXED, PAIR, TERMS, TOKEN, Regression
from router.core.roof import Roofs
from router.core.score import E2E, LEARNING, STATES, TPOT, TTFT, Books, Score
from router.core.tails import BANDS, FULL, Tails
from router.core.types import Backend

VERSION: Final = 1  # of an exported belief
BIAS_GAIN: Final = 0.04
STEPS_MIN: Final = 4  # a shorter reply says more of rounding than of pace
STEP_DOUBT: Final = 0.25  # variance of the log pace of a single step: a prompt may or may not be in it


@dataclass(frozen=True, slots=True, eq=False)
class Expectation:
    """What one send was expected to take, as it stood then; ``terms_s`` at factor 1, the rest in seconds and logs.

    ``beside_s``: network; ``doubt``: variance of the log of TTFT by the queue's chance; ``width``: expected spread of
    the log of E2E; ``promised``: spreads by metric (TTFT, TPOT, E2E) and kept quantile.
    """

    terms_s: Floats
    beside_s: float
    doubt: float
    band: int
    width: float
    promised: list[list[float]]


class Belief:
    """Columns over the ledger's slots."""

    def __init__(self, capacity: int = 16) -> None:
        self.lengths = Lengths()
        self.prompts = Prompts()
        self.roofs = Roofs(capacity)
        self.regression = Regression(capacity, kinds=2)
        self.tails = Tails(capacity)
        self._backends: dict[int, Backend] = {}
        self._books: dict[int, Books] = {}
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        old = getattr(self, "prior", None)
        keep = 0 if old is None else old.shape[1]
        for name, shape, fill in (
            ("prior", (TERMS, capacity), 0.0),
            ("believed", (2 * TERMS + 2, capacity), 1.0),
            ("_lean", (2, BANDS, capacity), 1.0),
            ("hit", (capacity,), 0.0),
        ):
            column = np.full(shape, fill)
            if keep:
                column[..., :keep] = getattr(self, name)
            setattr(self, name, column)
        state = np.zeros(capacity, dtype=np.int8)
        if keep:
            state[:keep] = self.state
        self.state = state

    prior: Floats  # rows FIXED..FIRST: a step's seconds by the data sheet, of one stage's share of the batch
    believed: Floats  # rows: prior x factor; factor; share of a batch that one stage has at a time; scale of the roof
    _lean: Floats  # TTFT and TPOT, by band: what is left between model and outcome, as a factor
    hit: Floats  # share of prompt tokens found in the prefix cache
    state: NDArray[np.int8]  # LEARNING, TRUSTED, OFF

    def lean(self, metric: int, where: Slots) -> Floats:
        """The factor left over between model and outcome, at the places that ``tails.where`` names."""
        factor: Floats = self._lean[metric].reshape(-1).take(where)
        return factor

    # -- who is there --------------------------------------------------------------------------------------------

    def joined(self, slot: int, backend: Backend) -> None:
        """Start from the data sheet for what is now in ``slot``."""
        while slot >= self.prior.shape[1]:
            self._grow(2 * self.prior.shape[1])
        p = backend.prior
        self._backends[slot] = backend
        self.prior[:, slot] = (
            p.fixed_s,
            p.seq_s / p.stages,
            p.context_s / p.stages,
            p.token_s - p.gemm_token_s,  # what the roof does not hold
            p.token_context_s,
            p.first_token_s,
        )
        scale = self.roofs.joined(slot, p, float(backend.chunk_tokens + backend.seqs_max))
        self.believed[2 * TERMS :, slot] = 1.0 / p.stages, scale
        self.regression.joined(slot, p.sigma)
        self.tails.joined(slot, backend.models[0] if backend.models else "")
        self._lean[..., slot] = 1.0
        self.hit[slot], self.state[slot] = 0.0, LEARNING
        self._books[slot] = Books()
        self._publish(slot)

    def restarted(self, slot: int) -> None:
        """The backend was away and is back: it may be another version, or have others on its machine."""
        self.regression.doubt(slot)

    def _publish(self, slot: int) -> None:
        """Make what was learnt of the terms ready for the next forecast."""
        factor, column = self.regression.factor[slot], self.believed[:, slot]
        column[:TERMS] = self.prior[:, slot] * factor
        column[TERMS : 2 * TERMS] = factor

    def _grow(self, capacity: int) -> None:
        self._allocate(capacity)
        for part in (self.roofs, self.regression, self.tails):
            part.grow(capacity)

    # -- what happened -------------------------------------------------------------------------------------------

    def first_token(self, slot: int, expected: Expectation, predicted_s: float, actual_s: float) -> None:
        """A first token came ``actual_s`` after its send."""
        if not (predicted_s > 0.0 and actual_s > 0.0):
            return
        terms, beside = expected.terms_s, expected.beside_s
        if expected.band == FULL:  # the wait for room is a matter of other replies' ends, not of this engine's steps
            left = log(actual_s / (float(terms @ self.regression.factor[slot]) + beside))
        else:
            left = self.regression.saw(slot, TTFT, terms, beside, actual_s, expected.doubt)
            self._publish(slot)
        self._settle_lean(TTFT, slot, expected.band, left)
        self._judge(TTFT, slot, expected, log(actual_s / predicted_s))

    def pace(
        self, slot: int, model: str, expected: Expectation, predicted_s: float, steps: int, since: Mark, until: Mark
    ) -> None:
        """A stream decoded ``steps`` tokens after its first, between two marks; ``predicted_s`` a token."""
        actual_s = until.at_s - since.at_s
        if not (predicted_s > 0.0 and actual_s > 0.0):
            return
        if steps >= STEPS_MIN:
            terms = self._lived(slot, model, steps, since, until)
            left = self.regression.saw(slot, TPOT, terms, 0.0, actual_s, STEP_DOUBT / steps)
            self._publish(slot)
            self._settle_lean(TPOT, slot, expected.band, left)
        self._judge(TPOT, slot, expected, log(actual_s / (steps * predicted_s)))

    def _lived(self, slot: int, model: str, steps: int, since: Mark, until: Mark) -> Floats:
        """The terms, at factor 1, of the steps between two marks: of the mean batch, and of the prompts that came."""
        lasted_s = until.at_s - since.at_s
        batch = (until.decoding_s - since.decoding_s) / lasted_s
        context = (until.context_s - since.context_s) / lasted_s
        prompts = until.prefilled_tokens - since.prefilled_tokens
        backend, prior, roofs = self._backends[slot], self.prior[:, slot], self.roofs
        rows = batch / backend.prior.stages
        roof_s = roofs.one(slot, rows)
        terms = prior * (steps, steps * batch, steps * context, prompts, 0.0, 0.0)
        terms[FIXED] += steps * roof_s
        if prompts:
            each = self.prompts.mean_tokens(model, prompts)
            piece = min(each, backend.chunk_tokens)
            terms[TOKEN] += prompts / piece * (roofs.one(slot, rows + piece) - roof_s)
            terms[PAIR] = prior[PAIR] * prompts * each / 2
        return terms

    def end(self, slot: int, expected: Expectation, predicted_s: float, actual_s: float) -> None:
        """A reply was complete ``actual_s`` after its send."""
        if predicted_s > 0.0 and actual_s > 0.0:
            self._judge(E2E, slot, expected, log(actual_s / predicted_s) / expected.width)

    def cached(self, slot: int, share: float) -> None:
        """The share of a prompt that was found in the prefix cache."""
        self.hit[slot] += BIAS_GAIN * (share - self.hit[slot])

    def _settle_lean(self, metric: int, slot: int, band: int, left: float) -> None:
        """Learn what the factors leave over in this load band: the queue is modelled only so well."""
        lean = self._lean[metric, band]
        lean[slot] *= exp(BIAS_GAIN * (min(1.0, max(-1.0, left)) - log(lean[slot])))

    def _judge(self, metric: int, slot: int, expected: Expectation, score: float) -> None:
        """Book an outcome against what was promised for it."""
        promised = expected.promised[metric]
        self.tails.saw(metric, expected.band, slot, score, promised)
        books = self._books[slot]
        books.note(metric, score, promised, expected.width if metric == E2E else 1.0)
        if metric == TTFT:
            self.state[slot] = books.state(int(self.state[slot]))

    # -- what it is worth ----------------------------------------------------------------------------------------

    def seen(self, slot: int) -> int:
        """First tokens observed on this backend."""
        return self._books[slot].seen[TTFT]

    def score(self, slot: int) -> Score:
        """How its predictions did."""
        ttft, tpot, e2e = (self._books[slot].accuracy(metric) for metric in (TTFT, TPOT, E2E))
        return Score(STATES[self.state[slot]], ttft, tpot, e2e, self.regression.changes[slot])

    # -- warm start ----------------------------------------------------------------------------------------------

    def export(self, slot: int) -> dict[str, Any]:
        """What was learnt of one backend, as JSON can hold it."""
        return {
            "version": VERSION,
            "lengths": {model: self.lengths.export(model) for model in self._backends[slot].models},
            "prior": self.prior[:, slot].tolist(),
            "regression": self.regression.plain(slot),
            "tails": self.tails.plain(slot),
            "lean": self._lean[..., slot].tolist(),
            "hit": float(self.hit[slot]),
            "state": int(self.state[slot]),
        }

    def adopt(self, slot: int, learnt: Mapping[str, Any]) -> None:
        """Start from what another router learnt of the same backend; ValueError when it is of other physics."""
        if learnt.get("version") != VERSION:
            raise ValueError(f"a belief of version {learnt.get('version')!r}; expected {VERSION}")
        if not np.allclose(learnt["prior"], self.prior[:, slot], rtol=1e-6, atol=0.0):
            raise ValueError("a belief about other physics: its prior is not that of this backend")
        for model, classes in learnt["lengths"].items():
            self.lengths.adopt(model, classes)
        self.regression.adopt(slot, learnt["regression"])
        self.tails.adopt(slot, learnt["tails"])
        self._lean[..., slot] = learnt["lean"]
        self.hit[slot] = learnt["hit"]
        self.state[slot] = learnt["state"]
        self._publish(slot)
