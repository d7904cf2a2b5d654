"""One engine on a clock: continuous batching, walked event by event instead of token by token.

Between two events nothing is decided: k steps in which b sequences only decode take a time with a closed form (see
``truth.py``), and who is done when is known in steps (see ``batch.py``). So a request costs the same whatever its
length. ``coalesce=False`` walks every step instead, by the same scheduler, and says at each which sequences got a
token: for an engine in real time, and to check the closed form against. Tokens come at the end of a step.

Time here is shifted by the network: a request reaches the engine a whole round trip after it was sent and its
tokens reach the router at once, which with constant delays is what a router sees either way.
Must not know: routers, policies, SLOs.
"""

from collections import deque
from collections.abc import Callable
from heapq import heappop
from math import nan, sqrt

from router.core.types import EngineReport
from simulator.replica.batch import Batch
from simulator.replica.clock import Clock
from simulator.replica.sequence import ARRIVING, DECODE, ENDED, WAITING, EngineLimits, Sequence
from simulator.replica.truth import Drift, Truth

OnSequence = Callable[[Sequence], None]


class Replica(Batch):
    """One engine. ``add`` and ``drop`` go in; *first_token* and *finished* come out, at the clock's time."""

    def __init__(
        self,
        name: str,
        truth: Truth,
        limits: EngineLimits,
        clock: Clock,
        first_token: OnSequence,
        finished: OnSequence,
        *,
        coalesce: bool = True,
        tokens: Callable[[list[Sequence]], None] | None = None,
    ) -> None:
        """Idle and empty. *tokens* hears at each step, with ``coalesce=False``, who decoded a token and goes on."""
        super().__init__(limits)
        self.name, self.coalesce = name, coalesce
        self._clock = clock
        self._first_token, self._finished, self._tokens = first_token, finished, tokens
        self._base_s = truth.decode_base_s(limits.seqs_max)
        self._roof_s = truth.roof_s(limits.chunk_tokens)
        self._prompt_token_s, self._pair_s, self._context_s = truth.prompt_token_s(), truth.pair_s, truth.context_s
        self._eager_s, self._stages = truth.eager_s, truth.coefficients.stages
        self._drift, self._slowed = Drift(truth), 1.0
        self._factor = self._drift.factor
        self._arrivals: deque[tuple[float, Sequence]] = deque()  # on their way in
        self._dropped: list[Sequence] = []
        self._order = 0
        # Under way: _run steps since _started_s, the first _stride_s long, each _growth_s longer, done at _due_s.
        self._run = 0
        self._started_s = self._due_s = 0.0
        self._stride_s = self._growth_s = 0.0
        self._version = 0
        self._deciding = False
        self._act = self._woken
        self.busy_s = 0.0

    # ---- what goes in -------------------------------------------------------

    def add(self, sequence: Sequence, at_s: float) -> None:
        """*sequence* reaches the engine at *at_s*, not before those added earlier (its front door is a queue)."""
        arrivals = self._arrivals
        if arrivals and arrivals[-1][0] > at_s:
            at_s = arrivals[-1][0]
        self._order = sequence.order = self._order + 1
        arrivals.append((at_s, sequence))
        if self._deciding:
            return
        if not self._run:
            if len(arrivals) == 1:
                self._wake(at_s)
        elif self._run > 1 and at_s < self._due_s:
            self._cut(at_s)

    def drop(self, sequence: Sequence) -> None:
        """The client is gone: *sequence* leaves at the end of the step under way."""
        if sequence.state == ENDED:
            return
        if sequence.state in {ARRIVING, WAITING}:
            self._dropped_waiting += sequence.state == WAITING
            sequence.state = ENDED
        else:
            self._dropped.append(sequence)
        if self._run > 1 and not self._deciding:
            self._cut(self._clock.now_s)

    def slow(self, factor: float) -> None:
        """From the next step on every step takes *factor* times as long (1: as ever)."""
        self._slowed = factor
        self._drift.until_s = min(self._drift.until_s, self._clock.now_s)  # the next plan asks again
        if self._run > 1 and not self._deciding:
            self._cut(self._clock.now_s)

    def fits(self, prompt_tokens: int) -> bool:
        """Whether the engine would take such a prompt at all."""
        return 0 < prompt_tokens <= self.limits.prompt_tokens_max

    # ---- what can be asked ---------------------------------------------------

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that have arrived and are not in the batch."""
        here = 0
        if self._arrivals:
            now_s = self._clock.now_s
            here = sum(1 for at_s, sequence in self._arrivals if at_s <= now_s and sequence.state == ARRIVING)
        return len(self._waiting) - self._dropped_waiting + here

    @property
    def waiting_max(self) -> int:
        """The same with those still on their way, and with those whose clients have left: no less than ``waiting``."""
        return len(self._waiting) + len(self._arrivals)

    @property
    def decoding(self) -> int:
        """Sequences that have their first token and want more."""
        return self._batch

    def kv_usage(self) -> float:
        """Share of KV blocks in use as of the clock's time."""
        if not self._run:
            return (self.blocks.used if self._exact else self._held(0)) / self.blocks.total
        k = min(self._run, self._steps_by(self._clock.now_s))
        used = self.blocks.used + self._opened(k) - self._taken if self._exact else self._held(k)
        return used / self.blocks.total

    def report(self, requested_s: float, before: tuple[int, int] | None) -> EngineReport:
        """What its metrics page says, as a router reads it. ``before``: prompt tokens, and those of them found cached,
        that it had counted when it was last asked (None: never).
        """
        limits, rate = self.limits, nan
        if before is not None and self.prompt_tokens > before[0]:
            rate = (self.cached_tokens - before[1]) / (self.prompt_tokens - before[0])
        return EngineReport(
            requested_s,
            float(self.running),
            float(self.waiting),
            self.kv_usage(),
            rate if limits.prefix_caching else 0.0,
            float(limits.kv_blocks * limits.block_tokens),
        )

    # For bounds, which may see everything:

    @property
    def context_tokens(self) -> int:
        """Tokens in KV of those decoding, as of the last event."""
        return self._context

    def sequences(self) -> list[Sequence]:
        """Everybody in the engine: running, oldest first; waiting, in their order; on their way in."""
        waiting = [entry[2] for entry in sorted(self._waiting)]
        return [*self._running, *waiting, *(sequence for _, sequence in self._arrivals)]

    def arrives_in_s(self) -> list[float]:
        """Seconds until each of those on their way reaches the engine, in the order in which ``sequences`` ends."""
        now_s = self._clock.now_s
        return [max(0.0, at_s - now_s) for at_s, _ in self._arrivals]

    def cached_tokens_of(self, sequence: Sequence) -> int:
        """Leading tokens of a sequence's text that lie in the prefix cache now."""
        if not self._exact or not sequence.prefix or not self.limits.prefix_caching:
            return 0
        most = (sequence.prompt_tokens + sequence.generated - 1) // self._size
        return self.blocks.found(sequence.prefix, self._unit_blocks(sequence), most)[0] * self._size

    def shared_tokens(self) -> int:
        """Tokens of KV that those running need not hold themselves, for they share a prefix with another."""
        if not self._exact:
            return 0
        return max(0, (self._held(0) - self.blocks.used + self._taken) * self._size)

    def change_counts(self) -> tuple[int, int, int]:
        """Sequences ever added, those of them that have left, those that have ever begun to decode or left: what an
        engine's future follows from changes only when one of these does.
        """
        left = self._order - len(self._running) - len(self._waiting) - len(self._arrivals)
        return self._order, left, left + self._batch

    def steps_under_way(self) -> int:
        """Steps since the last event that are over once the one under way is."""
        return self._steps_by(self._clock.now_s) if self._run else 0

    def step_left_s(self) -> float:
        """Until the step under way is over."""
        if not self._run:
            return 0.0
        k, now_s = self._steps_by(self._clock.now_s), self._clock.now_s
        return max(0.0, self._started_s + k * (self._stride_s + self._growth_s / 2 * (k - 1)) - now_s)

    def step_s(self, batch: int, context: float, tokens: int, pairs: float) -> float:
        """A step in which *batch* sequences decode over *context* tokens beside so many of prompts."""
        spread = -(-batch // self._stages)
        over_s = self._roof_s[spread + tokens] - self._roof_s[spread]
        return self._factor * (
            self._base_s[batch]
            + sqrt(over_s * over_s + (self._eager_s * self._eager_s if tokens else 0.0))
            + self._prompt_token_s * tokens
            + self._pair_s * pairs
            + self._context_s * (context + batch)
        )

    def prompt_token_s(self) -> float:
        """Seconds that a prompt token adds where prompts fill whole chunks."""
        tokens = self.limits.chunk_tokens - self._batch
        return (self.step_s(self._batch, 0, tokens, 0.0) - self.step_s(self._batch, 0, 0, 0.0)) / tokens

    def step_share_min_s(self) -> float:
        """The least of a step that one sequence can cost, at any batch."""
        return min(self._base_s[b] / b for b in range(1, len(self._base_s)))

    def abandon(self) -> list[Sequence]:
        """The engine dies: everything in it is lost, its cache too. Who was there, oldest first."""
        lost = [*self._running, *(entry[2] for entry in sorted(self._waiting)), *(s for _, s in self._arrivals)]
        lost = [sequence for sequence in lost if sequence.state != ENDED]
        if self._run:
            self.busy_s += self._clock.now_s - self._started_s
        for sequence in lost:
            sequence.state = ENDED
        self._empty()
        self._arrivals.clear()
        self._dropped.clear()
        self._run = 0
        self._version += 1
        return lost

    # ---- the walk ------------------------------------------------------------

    def _wake(self, at_s: float) -> None:
        self._version = version = self._version + 1
        self._due_s = at_s
        self._clock.at(at_s, self._act, version)

    def _woken(self, version: int) -> None:
        """The steps under way are over (or something came to an idle engine): settle, hear, decide."""
        if version != self._version:
            return
        now_s = self._due_s
        self._deciding = True
        if self._run:
            self._settle(now_s)
        if self._dropped or (self._arrivals and self._arrivals[0][0] <= now_s):
            self._take_arrivals(now_s)
        self._deciding = False
        if now_s >= self._drift.until_s:
            self._drift.move(now_s)
            self._factor = self._drift.factor * self._slowed
        if self._waiting or self._exact or self._partial is not None:
            self._plan(now_s)
        elif self._batch:
            self._decode(now_s)
        elif self._arrivals:
            self._wake(self._arrivals[0][0])

    def _take_arrivals(self, now_s: float) -> None:
        """Who left lets go, who has come by now waits."""
        if self._dropped:
            self._remove_dropped()
        arrivals = self._arrivals
        while arrivals and arrivals[0][0] <= now_s:
            sequence = arrivals.popleft()[1]
            if sequence.state == ARRIVING:
                self._queue(sequence)

    def _settle(self, now_s: float) -> None:
        """The steps under way have ended: tokens are there, some sequences are done, some have their first."""
        k, batch = self._run, self._batch
        self._run = 0
        self.busy_s += now_s - self._started_s
        if batch:
            if self._exact and k > 1:
                self.blocks.take(self._opened(k) - self._taken)
            self._context += batch * k
            self.generated_tokens += batch * k
        self.steps = steps = self.steps + k
        ends = self._ends
        while ends and ends[0][0] <= steps:
            end, _, sequence = heappop(ends)
            if sequence.state == DECODE and sequence.finish_step == end:
                self._leave_decode(sequence)
                self._finish(sequence)
            else:
                self._stale -= 1
        if self._tokens is not None and self._batch:
            self._tokens([s for s in self._running if s.state == DECODE])
        if self._chunks:
            self._prefilled()

    def _finish(self, sequence: Sequence) -> None:
        sequence.generated = sequence.output_tokens
        if self._exact:
            if sequence.unit_blocks:
                self._remember(sequence)
            self._release(sequence)
        sequence.state = ENDED
        self._reserved_blocks -= sequence.reserved_blocks
        del self._running[sequence]
        self._finished(sequence)

    def _prefilled(self) -> None:
        """The step's chunks are computed: whoever has no prompt left has a token, and decodes from here."""
        chunks, self._chunks = self._chunks, []
        for sequence in chunks:
            if sequence is self._partial:
                continue
            self.generated_tokens += 1
            sequence.generated += 1
            if sequence.generated < sequence.output_tokens:
                self._enter_decode(sequence)
            if sequence.generated == 1:
                self._first_token(sequence)
            if sequence.generated >= sequence.output_tokens:
                self._finish(sequence)

    def _remove_dropped(self) -> None:
        """Those whose clients have left give back what they hold."""
        dropped, self._dropped = self._dropped, []
        for sequence in dropped:
            if sequence.state == WAITING:  # preempted in the meantime
                self._dropped_waiting += 1
            elif sequence.state != ENDED:
                self._vacate(sequence)
            sequence.state = ENDED

    # ---- deciding the next step ------------------------------------------------

    def _plan(self, now_s: float) -> None:
        """As vLLM's ``schedule``: running first, then waiting; then the clock is asked to call at its end."""
        self._taken, self._squeezed = 0, False
        self._choose_counting()
        if self._exact and self._batch:
            self._open()
        tokens, pairs = 0, 0.0
        if self._partial is not None or self._waiting:
            tokens, pairs = self._fill()
        if tokens:
            self._stride_s, self._growth_s = self.step_s(self._batch, self._context, tokens, pairs), 0.0
            self._started_s, self._run = now_s, 1
            self._wake(now_s + self._stride_s)
        elif self._batch:
            self._decode(now_s)
        elif self._arrivals:
            self._wake(self._arrivals[0][0])

    def _decode(self, now_s: float) -> None:
        """Steps in which nobody has prompt to do, as many in one as can be."""
        batch = self._batch
        slope_s = self._factor * self._context_s
        self._growth_s = growth_s = slope_s * batch
        self._stride_s = stride_s = self._factor * self._base_s[batch] + slope_s * (self._context + batch)
        self._started_s = now_s
        k = self._run_length()
        if k < 1:  # blocks that nobody counted might run short
            self._count()
            self._plan(now_s)
            return
        due_s = now_s + k * (stride_s + growth_s / 2 * (k - 1))
        until_s = self._drift.until_s
        if self._arrivals and self._arrivals[0][0] < until_s:
            until_s = self._arrivals[0][0]
        if k > 1 and due_s > until_s:
            k = min(k, self._steps_by(until_s))
            due_s = now_s + k * (stride_s + growth_s / 2 * (k - 1))
        self._run = k
        self._wake(due_s)

    def _run_length(self) -> int:
        """Steps until somebody is done or blocks might run short; 0: they have to be counted first."""
        if self._exact and (self._squeezed or not self.coalesce):
            return 1
        k = (self._next_end() if self._stale else self._ends[0][0]) - self.steps
        batch = self._batch
        if self._exact:
            room = self.blocks.total - self.blocks.used + self._taken
            return min(k, self._steps_in(room)) if batch * (k // self._size + 1) > room else k
        uncounted = (self._kv_tokens - self._context) // batch - self._size
        return min(k if self.coalesce else 1, uncounted)

    def _steps_by(self, at_s: float) -> int:
        """The first step of the run under way that ends at or after *at_s* (1 or more)."""
        first_s, half_s = self._stride_s, self._growth_s / 2
        gone_s = at_s - self._started_s
        if gone_s <= first_s:
            return 1
        middle_s = first_s - half_s
        k = int(2 * gone_s / (middle_s + sqrt(middle_s * middle_s + 4 * half_s * gone_s)))
        while k > 1 and (k - 1) * (first_s + half_s * (k - 2)) >= gone_s:
            k -= 1
        while k * (first_s + half_s * (k - 1)) < gone_s:
            k += 1
        return k

    def _cut(self, at_s: float) -> None:
        """Something comes at *at_s*: the run ends with the step then under way, to decide anew."""
        k = self._steps_by(at_s)
        if k < self._run:
            self._run = k
            self._wake(self._started_s + k * (self._stride_s + self._growth_s / 2 * (k - 1)))
