"""One engine on a clock: continuous batching, simulated event by event instead of token by token.

Between two events nothing is decided: the time of k steps in which b sequences only decode has a closed form (see
``truth.py``), and the step at which a sequence ends is known in advance (see ``batch.py``). So a request costs the
same, whatever its length. ``coalesce=False`` walks every step instead, with the same scheduler, and passes on at each
which sequences got a token: for an engine in real time, and to check the closed form. Tokens come at the end of a step.

Time is shifted by the network: a request reaches the engine a whole round trip after it was sent, and its tokens reach
the router at once. With constant delays a router sees the same times either way. Must not depend on routers, policies
or SLOs.
"""

from collections.abc import Callable
from heapq import heappop

from simulator.replica.clock import Clock
from simulator.replica.sequence import ARRIVING, DECODE, ENDED, WAITING, EngineLimits, Sequence
from simulator.replica.state import ReplicaState
from simulator.replica.truth import Drift, Truth

OnSequence = Callable[[Sequence], None]


class Replica(ReplicaState):
    """One engine: ``add`` and ``drop`` are its inputs; it calls *first_token* and *finished* at the clock's time."""

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
        """Idle and empty. *tokens* is called at each step, with ``coalesce=False``, with the sequences that decoded a
        token and continue.
        """
        super().__init__(name, truth, limits, clock)
        self.coalesce, self._async = coalesce, limits.async_scheduling
        self._first_token, self._finished, self._tokens = first_token, finished, tokens
        self._drift, self._slowed = Drift(truth), 1.0
        self._factor = self._drift.factor
        self._dropped: list[Sequence] = []
        self._version = 0
        self._deciding = False
        self._act = self._woken

    # ---- inputs -------------------------------------------------------------

    def add(self, sequence: Sequence, at_s: float) -> None:
        """*sequence* reaches the engine at *at_s*, or with the last one added before, if that comes later (a FIFO
        queue).
        """
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
        """The client has disconnected: *sequence* leaves at the end of the present step."""
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
        """From the next step on, every step takes *factor* times as long (1: normal speed)."""
        self._slowed = factor
        self._drift.until_s = min(self._drift.until_s, self._clock.now_s)  # makes the next plan update the factor
        if self._run > 1 and not self._deciding:
            self._cut(self._clock.now_s)

    def abandon(self) -> list[Sequence]:
        """The engine crashes: its sequences and its cache are lost. Returns the lost sequences, oldest first."""
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
        """The steps under way are over, or a sequence reached an idle engine: settle, take arrivals, plan the next
        steps.
        """
        if version != self._version:
            return
        now_s = self._due_s
        self._deciding = True
        self._settle_and_take(now_s)
        self._deciding = False
        if now_s >= self._drift.until_s:
            self._drift.move(now_s)
            self._factor = self._drift.factor * self._slowed
        if self._waiting or self._exact or self._partials:
            self._plan(now_s)
        elif self._batch:
            self._decode(now_s)
        elif self._arrivals:
            self._wake(max(now_s, self._arrivals[0][0]))
        if self._ended:
            self._make_way(now_s)

    def _settle_and_take(self, now_s: float) -> None:
        """Account for the steps that are over, and queue what has arrived: with async scheduling, what had arrived when
        the step began that is over now, for then the next one was decided.
        """
        seen_s = now_s
        if self._run:
            if self._async:
                seen_s = self._started_s
            self._settle(now_s)
        if self._dropped or (self._arrivals and self._arrivals[0][0] <= seen_s):
            self._take_arrivals(seen_s)

    def _make_way(self, now_s: float) -> None:
        """The next step is decided: sequences that ended before it leave their room. A step that they held up begins,
        or one that computes no more than a token after an end that nobody foresaw.
        """
        wasted = sum([sequence.ends_itself for sequence in self._ended])
        for sequence in self._ended:
            self._leave_room(sequence)
        self._ended.clear()
        if self._run:
            return
        if wasted:
            self._stride_s, self._growth_s = self.step_s(wasted, 0.0, 0, 0.0), 0.0
            self._started_s, self._run = now_s, 1
            self._wake(now_s + self._stride_s)
        elif self._waiting or self._exact or self._partials:
            self._plan(now_s)

    def _take_arrivals(self, now_s: float) -> None:
        """Remove dropped sequences; queue those that have arrived."""
        if self._dropped:
            self._remove_dropped()
        arrivals = self._arrivals
        while arrivals and arrivals[0][0] <= now_s:
            sequence = arrivals.popleft()[1]
            if sequence.state == ARRIVING:
                self._queue(sequence)

    def _settle(self, now_s: float) -> None:
        """Account for the steps that have ended: tokens, first tokens, finished sequences."""
        k, batch = self._run, self._batch
        self._run = 0
        self.busy_s += now_s - self._started_s
        if batch:
            if self._exact and k > 1:
                self.blocks.take(self._opened(k) - self._taken)
            self._context += batch * k
            self.generated_tokens += batch * k - len(self._idle)
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
            self._tokens([s for s in self._running if s.state == DECODE and s not in self._idle])
        if self._idle:
            self._idle, self._idle_context = [], 0
        if self._chunks:
            self._prefilled()

    def _finish(self, sequence: Sequence) -> None:
        sequence.generated = sequence.output_tokens
        del self._running[sequence]
        if self._async:
            self._ended.append(sequence)
        else:
            self._leave_room(sequence)
        sequence.state = ENDED
        self._finished(sequence)

    def _leave_room(self, sequence: Sequence) -> None:
        if self._exact:
            self._release(sequence, sequence.computed)
        self._reserved_blocks -= sequence.reserved_blocks

    def _prefilled(self) -> None:
        """The chunks of the step are computed: a sequence without prompt left has its first token and decodes from
        here.
        """
        chunks, self._chunks = self._chunks, {}
        for sequence in chunks:
            if sequence.computed < sequence.prompt_tokens + sequence.generated:
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
        """Sequences of disconnected clients release their blocks."""
        dropped, self._dropped = self._dropped, []
        for sequence in dropped:
            if sequence.state == WAITING:  # preempted in the meantime
                self._dropped_waiting += 1
            elif sequence.state != ENDED:
                self._vacate(sequence)
            sequence.state = ENDED

    # ---- deciding the next step ------------------------------------------------

    def _plan(self, now_s: float) -> None:
        """Plan the next step as vLLM's ``schedule`` does, running sequences before waiting ones,
        and wake at its end.
        """
        self._schedule()
        if self._step_tokens or self._idle or (self._squeezed and not self._batch):
            served, context = self._batch - len(self._idle), self._context - self._idle_context
            self._stride_s, self._growth_s = self.step_s(served, context, self._step_tokens, self._step_pairs), 0.0
            self._started_s, self._run = now_s, 1
            self._wake(now_s + self._stride_s)
        elif self._batch:
            self._decode(now_s)
        elif self._arrivals:
            self._wake(max(now_s, self._arrivals[0][0]))

    def _decode(self, now_s: float) -> None:
        """Plan as many decode-only steps as possible at once."""
        batch = self._batch
        slope_s = self._factor * self._context_s
        self._growth_s = growth_s = slope_s * batch
        self._stride_s = stride_s = self._factor * self._base_s[batch] + slope_s * (self._context + batch)
        self._started_s = now_s
        k = self._run_length()
        if k < 1:  # uncounted blocks might run short
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
        """Steps until a sequence ends or blocks may run short; 0: blocks have to be counted first."""
        if self._exact and (self._squeezed or not self.coalesce or self._ended):
            return 1
        k = (self._next_end() if self._stale else self._ends[0][0]) - self.steps
        batch = self._batch
        if self._exact:
            room = self.blocks.total - self.blocks.used + self._taken
            return min(k, self._steps_in(room)) if batch * (k // self._size + 1) > room else k
        uncounted = (self._kv_tokens - self._context) // batch - self._size
        return min(k if self.coalesce and not self._ended else 1, uncounted)

    def _cut(self, at_s: float) -> None:
        """An event comes at *at_s*: end the planned steps with the one then under way."""
        k = self._steps_by(at_s)
        if k < self._run:
            self._run = k
            self._wake(self._started_s + k * (self._stride_s + self._growth_s / 2 * (k - 1)))
