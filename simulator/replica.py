"""One engine: continuous batching as vLLM V1 schedules it, walked event by event instead of token by token.

A step gives every running sequence its next token (or its next chunk of prompt), oldest first, within
``chunk_tokens``; only then come waiting ones, while there is room for their first chunk. No block free for a
running sequence: the youngest is preempted, loses its blocks and is recomputed later. Tokens come at the end of
a step.

Between two events nothing is decided: k steps in which b sequences only decode take a time with a closed form
(see ``truth.py``), each sequence's end is a step number known in advance, and the blocks they take follow from
how full each one's last block is. So a request costs the same whatever its length. ``coalesce=False`` walks every
step instead, by the same scheduler, and says at each which sequences got a token: for an engine in real time,
and to check the closed form against.

Time here is shifted by the network: a request reaches the engine a whole round trip after it was sent and its
tokens reach the router at once, which with constant delays is what a router sees either way.
Must not know: routers, policies, SLOs.
"""

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import pairwise
from math import sqrt

from simulator.blocks import Blocks
from simulator.kernel import Clock
from simulator.sequence import COMING, DECODE, OVER, PREFILL, WAITING, Limits, Sequence
from simulator.truth import Drift, Truth

Heard = Callable[[Sequence], None]


class Replica:
    """One engine on a clock. ``add`` and ``drop`` go in; *first_token* and *finished* come out, at the clock's time."""

    def __init__(
        self,
        name: str,
        truth: Truth,
        limits: Limits,
        clock: Clock,
        first_token: Heard,
        finished: Heard,
        *,
        coalesce: bool = True,
        tokens: Callable[[list[Sequence]], None] | None = None,
    ) -> None:
        """Idle and empty. *tokens* hears at each step, with ``coalesce=False``, who decoded a token and goes on."""
        self.name, self.limits, self.coalesce = name, limits, coalesce
        self._truth, self._clock = truth, clock
        self._first_token, self._finished, self._tokens = first_token, finished, tokens
        self._base_s = truth.decode_base_s(limits.seqs_max)
        self._roof_s = truth.roof_s(limits.chunk_tokens)
        self._prompt_token_s, self._pair_s, self._context_s = truth.prompt_token_s(), truth.pair_s, truth.context_s
        self._stages = truth.coefficients.stages
        self._drift, self._slowed, self._factor = Drift(truth), 1.0, 1.0
        self.blocks = Blocks(limits.kv_blocks)
        # Sequences: on their way in, waiting (urgent and old first), running (by admission).
        self._arrivals: deque[tuple[float, Sequence]] = deque()
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._running: dict[Sequence, None] = {}
        self._dropped: list[Sequence] = []
        self._ghosts = 0  # dropped ones still among those waiting or on their way
        self._order = 0
        # The batch: those decoding, by the step that ends them; the one with prompt left to do; this step's chunks.
        self._ends: list[tuple[int, int, Sequence]] = []
        self._batch = 0
        self._context = 0  # tokens in KV of those decoding
        self._phase = [0] * (
            2 * limits.block_tokens
        )  # how many of them open a block at a step of this remainder, twice
        self._by_priority, self._size = limits.priority, limits.block_tokens
        self._partial: Sequence | None = None
        self._chunks: list[Sequence] = []
        # Under way: _run steps since _started_s, the first _stride_s long, each _growth_s longer, done at _due_s.
        self._steps = 0
        self._run = 0
        self._taken = 0  # blocks taken for the first of those steps
        self._squeezed = False  # whether somebody was preempted for them
        self._served: set[Sequence] | None = None  # who has its block for this step, while blocks are short
        self._started_s = self._due_s = 0.0
        self._stride_s = self._growth_s = 0.0
        self._version = 0
        self._deciding = False
        # What a report adds up.
        self.busy_s = 0.0
        self.steps = 0
        self.preemptions = 0
        self.prompt_tokens = self.cached_tokens = self.prefilled_tokens = self.generated_tokens = 0

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
        if sequence.state == OVER:
            return
        if sequence.state in {COMING, WAITING}:
            self._ghosts += sequence.state == WAITING
            sequence.state = OVER
        else:
            self._dropped.append(sequence)
        if self._run > 1 and not self._deciding:
            self._cut(self._clock.now_s)

    def slow(self, factor: float) -> None:
        """From the next step on every step takes *factor* times as long (1: as ever)."""
        self._slowed = factor
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
        now_s = self._clock.now_s
        here = sum(1 for at_s, sequence in self._arrivals if at_s <= now_s and sequence.state == COMING)
        return len(self._waiting) - self._ghosts + here

    @property
    def waiting_at_most(self) -> int:
        """The same with those still on their way, and with those whose clients have left: no less than ``waiting``."""
        return len(self._waiting) + len(self._arrivals)

    @property
    def decoding(self) -> int:
        """Sequences that have their first token and want more."""
        return self._batch

    def kv_usage(self) -> float:
        """Share of KV blocks in use as of the clock's time."""
        used = self.blocks.used
        if self._run > 1:
            used += self._opened(min(self._run, self._steps_by(self._clock.now_s))) - self._taken
        return used / self.blocks.total

    def abandon(self) -> list[Sequence]:
        """The engine dies: everything in it is lost, its cache too. Who was there, oldest first."""
        lost = [*self._running, *(entry[2] for entry in sorted(self._waiting)), *(s for _, s in self._arrivals)]
        self.busy_s += max(0.0, min(self._clock.now_s, self._due_s) - self._started_s) if self._run else 0.0
        for sequence in lost:
            sequence.state = OVER
        self.blocks = Blocks(self.limits.kv_blocks)
        self._arrivals.clear()
        self._waiting.clear()
        self._running.clear()
        self._dropped.clear()
        self._ends.clear()
        self._chunks = []
        self._batch = self._context = self._run = 0
        self._phase = [0] * len(self._phase)
        self._partial, self._taken, self._ghosts = None, 0, 0
        self._version += 1
        return lost

    # ---- the walk ------------------------------------------------------------

    def _wake(self, at_s: float) -> None:
        self._version = version = self._version + 1
        self._due_s = at_s
        self._clock.at(at_s, self._woken, version)

    def _woken(self, version: int) -> None:
        """The steps under way are over (or something came to an idle engine): settle, hear, decide."""
        if version != self._version:
            return
        now_s = self._due_s
        self._deciding = True
        if self._run:
            self._settle()
        if self._dropped:
            self._let_go()
        arrivals = self._arrivals
        while arrivals and arrivals[0][0] <= now_s:
            sequence = arrivals.popleft()[1]
            if sequence.state == COMING:
                self._queue(sequence)
        self._deciding = False
        if now_s >= self._drift.until_s:
            self._drift.move(now_s)
        self._factor = self._drift.factor * self._slowed
        self._plan(now_s)

    def _queue(self, sequence: Sequence) -> None:
        sequence.state = WAITING
        heappush(self._waiting, (sequence.priority if self._by_priority else 0, sequence.order, sequence))

    def _steps_by(self, at_s: float) -> int:
        """The first step of the run under way that ends at or after *at_s* (1 or more)."""
        first_s, half_s = self._stride_s, self._growth_s / 2
        gone_s = at_s - self._started_s
        if gone_s <= first_s:
            return 1
        lean_s = first_s - half_s
        k = int(2 * gone_s / (lean_s + sqrt(lean_s * lean_s + 4 * half_s * gone_s)))
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

    def _opened(self, k: int) -> int:
        """Blocks that those decoding open in the next *k* steps: each opens one whenever its last is full."""
        size = self._size
        whole, rest = divmod(k, size)
        start = self._steps % size
        return whole * self._batch + (sum(self._phase[start : start + rest]) if rest else 0)

    def _settle(self) -> None:
        """The steps under way have ended: tokens are there, some sequences are done, some have their first."""
        k, batch = self._run, self._batch
        self.busy_s += self._due_s - self._started_s
        self.steps += k
        if batch:
            if k > 1:
                more = self._opened(k) - self._taken
                if more:
                    self.blocks.take(more)
            self._context += batch * k
            self.generated_tokens += batch * k
        self._steps = steps = self._steps + k
        self._run = 0
        ends = self._ends
        while ends and ends[0][0] <= steps:
            end, _, sequence = heappop(ends)
            if sequence.state == DECODE and sequence.finish_step == end:
                self._leave_decode(sequence)
                self._finish(sequence)
        if self._tokens is not None and self._batch:
            self._tokens([s for s in self._running if s.state == DECODE])
        if self._chunks:
            self._prefilled()

    def _finish(self, sequence: Sequence) -> None:
        sequence.generated = sequence.output_tokens
        self._release(sequence)
        sequence.state = OVER
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

    def _let_go(self) -> None:
        """Those whose clients have left give back what they hold."""
        dropped, self._dropped = self._dropped, []
        for sequence in dropped:
            if sequence.state == WAITING:  # preempted in the meantime
                self._ghosts += 1
            elif sequence.state != OVER:
                self._vacate(sequence)
            sequence.state = OVER

    def _vacate(self, sequence: Sequence) -> None:
        """Out of the batch, with its blocks given back; what it generated is remembered."""
        if sequence.state == DECODE:
            sequence.generated = sequence.output_tokens - (sequence.finish_step - self._steps)
            self._leave_decode(sequence)
        elif sequence is self._partial:
            self._partial = None
        self._release(sequence)
        del self._running[sequence]

    def _release(self, sequence: Sequence) -> None:
        self.blocks.give(sequence.own_blocks, sequence.units)
        sequence.own_blocks, sequence.units = 0, []

    # ---- decoding, counted and not walked ------------------------------------

    def _enter_decode(self, sequence: Sequence) -> None:
        steps, size, computed = self._steps, self._size, sequence.computed
        sequence.state = DECODE
        sequence.offset = computed - steps
        sequence.own_blocks -= -(-computed // size)  # the rest is counted from its length when it leaves
        sequence.finish_step = end = steps + sequence.output_tokens - sequence.generated
        self._batch += 1
        self._context += computed
        at = (steps - computed) % size
        self._phase[at] += 1
        self._phase[at + size] += 1
        heappush(self._ends, (end, sequence.order, sequence))

    def _leave_decode(self, sequence: Sequence) -> None:
        size, offset = self._size, sequence.offset
        computed = offset + self._steps
        sequence.own_blocks += -(-computed // size)
        self._batch -= 1
        self._context -= computed
        at = -offset % size
        self._phase[at] -= 1
        self._phase[at + size] -= 1

    # ---- deciding the next step ------------------------------------------------

    def _plan(self, now_s: float) -> None:
        """As vLLM's ``schedule``: running first, then waiting; then the clock is asked to call at its end."""
        self._taken, self._squeezed = 0, False
        if self._batch:
            opened = self._opened(1)
            if opened > self.blocks.total - self.blocks.used:
                self._squeeze()
            elif opened:
                self.blocks.take(opened)
                self._taken = opened
        tokens, pairs = 0, 0.0
        if self._partial is not None or self._waiting:
            tokens, pairs = self._fill()
        if tokens:
            self._stride_s, self._growth_s = self._step_s(tokens, pairs), 0.0
            self._launch(now_s, 1)
        elif self._batch:
            batch, factor = self._batch, self._factor
            self._growth_s = factor * self._context_s * batch
            self._stride_s = factor * (self._base_s[batch] + self._context_s * (self._context + batch))
            self._launch(now_s, 1 if self._squeezed or not self.coalesce else self._run_length(now_s))
        elif self._arrivals:
            self._wake(self._arrivals[0][0])

    def _launch(self, now_s: float, k: int) -> None:
        self._started_s, self._run = now_s, k
        self._wake(now_s + k * (self._stride_s + self._growth_s / 2 * (k - 1)))

    def _step_s(self, tokens: int, pairs: float) -> float:
        """Seconds of a step with *tokens* of prompt in it, beside those decoding."""
        batch = self._batch
        spread = batch if self._stages == 1 else -(-batch // self._stages)
        return self._factor * (
            self._base_s[batch]
            + self._roof_s[spread + tokens]
            - self._roof_s[spread]
            + self._prompt_token_s * tokens
            + self._pair_s * pairs
            + self._context_s * (self._context + batch)
        )

    def _run_length(self, now_s: float) -> int:
        """Steps until somebody is done or comes, blocks run short, or the replica's speed drifts."""
        ends = self._ends
        while ends[0][2].state != DECODE or ends[0][2].finish_step != ends[0][0]:
            heappop(ends)
        k = ends[0][0] - self._steps
        room = self.blocks.total - self.blocks.used + self._taken
        if self._batch * (k // self._size + 1) > room:
            k = min(k, self._steps_in(room))
        until_s = self._drift.until_s
        if self._arrivals and self._arrivals[0][0] < until_s:
            until_s = self._arrivals[0][0]
        if k > 1 and now_s + k * (self._stride_s + self._growth_s / 2 * (k - 1)) > until_s:
            self._started_s = now_s
            k = min(k, self._steps_by(until_s))
        return k

    def _steps_in(self, room: int) -> int:
        """The most steps for which *room* blocks suffice (1 at least: the first step has its blocks)."""
        size = self._size
        whole, rest = divmod(room, self._batch)
        k, at = whole * size, self._steps % size
        while self._phase[at] <= rest:
            rest -= self._phase[at]
            at = at + 1 if at + 1 < size else 0
            k += 1
        return k if k > 1 else 1

    def _fill(self) -> tuple[int, float]:
        """Chunks of prompt for this step: the one under way, then waiting ones; (tokens, attention pairs)."""
        tokens, pairs = 0, 0.0
        if self._partial is not None:
            tokens, pairs = self._continue(self._partial)
        waiting, running, limits, blocks = self._waiting, self._running, self.limits, self.blocks
        budget = limits.chunk_tokens - self._batch - tokens
        while waiting and budget > 0 and len(running) < limits.seqs_max and not self._squeezed:
            sequence = waiting[0][2]
            if sequence.state == OVER:
                heappop(waiting)
                self._ghosts -= 1
                continue
            chunk = self._admit(sequence, budget, blocks)
            if not chunk:
                break
            heappop(waiting)
            tokens += chunk
            budget -= chunk
            pairs += chunk * (sequence.computed - chunk / 2)
        return tokens, pairs

    def _admit(self, sequence: Sequence, budget: int, blocks: Blocks) -> int:
        """Into the batch with a first chunk, cached prefix left out; its tokens, 0 without room."""
        size = self._size
        target = sequence.prompt_tokens + sequence.generated
        found = idle = 0
        if sequence.prefix and self.limits.prefix_caching:
            found, idle = blocks.found(sequence.prefix, self._unit_blocks(sequence), (target - 1) // size)
        cached = found * size
        chunk = min(target - cached, budget)
        computed = cached + chunk
        need = -(-computed // size) - found
        if need + idle > blocks.total - blocks.used:
            return 0
        if found:
            sequence.units = blocks.share(sequence.prefix, sequence.unit_blocks, found)
        blocks.take(need)
        sequence.own_blocks = need
        sequence.computed = computed
        sequence.state = PREFILL
        self._running[sequence] = None
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = min(cached, sequence.prompt_tokens)
            self.prompt_tokens += sequence.prompt_tokens
            self.cached_tokens += sequence.cached_tokens
        self._scheduled(sequence, chunk, target)
        return chunk

    def _continue(self, sequence: Sequence) -> tuple[int, float]:
        """The next chunk of the prompt under way: (tokens, pairs), none when it had to give way itself."""
        size = self._size
        target = sequence.prompt_tokens + sequence.generated
        chunk = min(self.limits.chunk_tokens - self._batch, target - sequence.computed)
        need = -(-(sequence.computed + chunk) // size) - -(-sequence.computed // size)
        while need > self.blocks.total - self.blocks.used:
            victim = self._youngest()
            self._preempt(victim)
            if victim is sequence:
                return 0, 0.0
        self.blocks.take(need)
        sequence.own_blocks += need
        sequence.computed += chunk
        self._scheduled(sequence, chunk, target)
        return chunk, chunk * (sequence.computed - chunk / 2)

    def _scheduled(self, sequence: Sequence, chunk: int, target: int) -> None:
        self.prefilled_tokens += chunk
        self._chunks.append(sequence)
        self._partial = sequence if sequence.computed < target else None
        if sequence.unit_blocks:
            self._remember(sequence)

    # ---- prefixes ----------------------------------------------------------------

    def _unit_blocks(self, sequence: Sequence) -> list[int]:
        """Whole blocks in each unit of the prompt."""
        if not sequence.unit_blocks:
            size, unit, prompt = self._size, sequence.unit_tokens, sequence.prompt_tokens
            edges = [min(i * unit, prompt) // size for i in range(len(sequence.prefix) + 1)]
            sequence.unit_blocks = [b - a for a, b in pairwise(edges)]
        return sequence.unit_blocks

    def _remember(self, sequence: Sequence) -> None:
        """Units now computed can be found by others (vLLM: as soon as they are scheduled)."""
        done = sequence.computed // self._size
        at = sum(sequence.unit_blocks[: len(sequence.units)])
        for key, count in zip(
            sequence.prefix[len(sequence.units) :], sequence.unit_blocks[len(sequence.units) :], strict=False
        ):
            at += count
            if at > done or not self.blocks.keep(key, count):
                break
            sequence.units.append(key)
            sequence.own_blocks -= count

    # ---- when blocks run short ------------------------------------------------------

    def _youngest(self) -> Sequence:
        """Who gives way: the last admitted, or the least urgent and latest where priorities count."""
        if self._by_priority:
            return max(self._running, key=lambda s: (s.priority, s.order))
        return next(reversed(self._running))

    def _squeeze(self) -> None:
        """Blocks do not suffice for a step: oldest first take theirs, youngest are preempted until it is enough."""
        blocks, size, steps = self.blocks, self._size, self._steps
        self._served = served = set()
        for sequence in list(self._running):
            if sequence.state != DECODE:
                continue
            if (sequence.offset + steps) % size == 0:
                while blocks.used >= blocks.total and sequence.state == DECODE:
                    self._preempt(self._youngest())
                if sequence.state != DECODE:
                    continue
                blocks.take(1)
                self._taken += 1
            served.add(sequence)
        self._served = None

    def _preempt(self, sequence: Sequence) -> None:
        """Back to waiting with nothing computed; a block it had opened for this very step goes back too."""
        self._squeezed = True
        opens = sequence.state == DECODE and (sequence.offset + self._steps) % self._size == 0
        if opens and (self._served is None or sequence in self._served):
            self.blocks.give(1, [])
            self._taken -= 1
        self._vacate(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self.preemptions += 1
        self._queue(sequence)
