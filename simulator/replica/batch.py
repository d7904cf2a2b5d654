"""Which sequences are in an engine's next step, and which blocks they hold: the scheduler of vLLM V1, without time.

A step gives every running sequence its next token (or its next chunk of prompt), oldest first, within ``chunk_tokens``;
then waiting sequences follow, while there is room for their first chunk. If no block is free for a running sequence,
the youngest is preempted, loses its blocks and is recomputed later.

Decoding sequences are counted, not walked: a sequence is as long as its offset plus the step number, it ends at a step
known in advance, and it opens a block whenever its length is a multiple of the block size. While a bound shows that
blocks cannot run short and no prefix is cached, blocks are not counted at all. Must not depend on time, routers or
policies.
"""

from heapq import heappop, heappush
from itertools import pairwise

from simulator.replica.blocks import Blocks
from simulator.replica.sequence import DECODE, ENDED, PREFILL, WAITING, EngineLimits, Sequence


class Batch:
    """The sequences of one engine: waiting, running, decoding. ``steps`` counts the steps so far."""

    def __init__(self, limits: EngineLimits) -> None:
        """No sequences."""
        self.limits = limits
        self.steps = 0
        self.preemptions = 0
        self.prompt_tokens = self.cached_tokens = self.prefilled_tokens = self.generated_tokens = 0
        self._size, self._kv_tokens = limits.block_tokens, limits.kv_blocks * limits.block_tokens
        self._by_priority, self._no_evict = limits.priority, limits.no_evict
        self._empty()

    def _empty(self) -> None:
        self.blocks = Blocks(self.limits.kv_blocks)
        self._exact = False  # whether blocks are counted
        self._phase = [0] * (2 * self._size)  # how many open a block at a step of this remainder; twice, for slices
        self._waiting: list[tuple[int, int, Sequence]] = []  # urgent and old first
        self._dropped_waiting = 0  # dropped ones among them
        self._running: dict[Sequence, None] = {}  # in order of admission
        self._ends: list[tuple[int, int, Sequence]] = []  # those decoding, by the step that ends them
        self._stale = 0  # entries there of sequences that were preempted or dropped
        self._batch = 0  # how many decode
        self._context = 0  # and how many tokens of theirs are in KV
        self._partial: Sequence | None = None  # the one with prompt left to do
        self._chunks: list[Sequence] = []  # sequences with a chunk in this step
        self._reserved_blocks = 0  # blocks reserved for running sequences, with no_evict
        self._taken = 0  # blocks taken for the first step under way
        self._squeezed = False  # whether a sequence was preempted for them
        self._served: set[Sequence] | None = (
            None  # sequences that have their block for this step, while blocks are short
        )

    # ---- coming and going ------------------------------------------------------

    def _queue(self, sequence: Sequence) -> None:
        sequence.state = WAITING
        heappush(self._waiting, (sequence.priority if self._by_priority else 0, sequence.order, sequence))
        if sequence.prefix and not self._exact and self.limits.prefix_caching:
            self._count()

    def _enter_decode(self, sequence: Sequence) -> None:
        steps, computed = self.steps, sequence.computed
        sequence.state = DECODE
        sequence.offset = computed - steps
        sequence.finish_step = end = steps + sequence.output_tokens - sequence.generated
        self._batch += 1
        self._context += computed
        if self._exact:
            self._mark(steps - computed, 1)
        heappush(self._ends, (end, sequence.order, sequence))

    def _leave_decode(self, sequence: Sequence) -> None:
        sequence.computed = computed = sequence.offset + self.steps
        self._batch -= 1
        self._context -= computed
        if self._exact:
            self._mark(-sequence.offset, -1)

    def _vacate(self, sequence: Sequence) -> None:
        """Remove a sequence from the batch and release its blocks; its generated tokens stay."""
        if sequence.state == DECODE:
            sequence.generated = sequence.output_tokens - (sequence.finish_step - self.steps)
            self._leave_decode(sequence)
            self._stale += 1
        elif sequence is self._partial:
            self._partial = None
        del self._running[sequence]
        self._reserved_blocks -= sequence.reserved_blocks
        sequence.reserved_blocks = 0
        if self._exact:
            self._release(sequence)

    def _next_end(self) -> int:
        """The step at which the next sequence ends."""
        ends = self._ends
        while self._stale and not _live(ends[0]):
            heappop(ends)
            self._stale -= 1
        return ends[0][0]

    # ---- counting blocks ---------------------------------------------------------

    def _count(self) -> None:
        """Count blocks from here on: running sequences hold what their lengths say (nothing is shared yet)."""
        self._exact = True
        self.blocks.used = self._held(0)
        self._phase = [0] * (2 * self._size)
        for sequence in self._running:
            if sequence.state == DECODE:
                self._mark(-sequence.offset, 1)

    def _held(self, later: int) -> int:
        """Blocks held after *later* more decode steps, while none is shared."""
        size, steps = self._size, self.steps + later
        held = 0
        for s in self._running:
            held += -(-(s.offset + steps if s.state == DECODE else s.computed) // size)
        return held

    def _choose_counting(self) -> None:
        """Count blocks while they might run short in the next step, or while prefixes are cached."""
        limits, partial = self.limits, self._partial
        most = self._context + (partial.computed if partial is not None else 0) + limits.chunk_tokens
        most += (len(self._running) + min(len(self._waiting), limits.seqs_max) + 1) * self._size
        if not self._exact:
            if most > self._kv_tokens:
                self._count()
        elif most * 1.25 < self._kv_tokens and not self.blocks.caching and not self._awaits_prefix():
            self._exact, self._taken, self.blocks.used = False, 0, 0

    def _awaits_prefix(self) -> bool:
        return self.limits.prefix_caching and any(entry[2].prefix for entry in self._waiting)

    def _mark(self, at: int, change: int) -> None:
        at %= self._size
        self._phase[at] += change
        self._phase[at + self._size] += change

    def _opened(self, k: int) -> int:
        """Blocks that the decoding sequences open in the next *k* steps; each opens one when its last is full."""
        size = self._size
        whole, rest = divmod(k, size)
        start = self.steps % size
        return whole * self._batch + (sum(self._phase[start : start + rest]) if rest else 0)

    def _open(self) -> None:
        """Take the blocks that decoding sequences open in the next step."""
        opened = self._opened(1)
        if opened > self.blocks.total - self.blocks.used:
            self._squeeze()
        elif opened:
            self.blocks.take(opened)
            self._taken = opened

    def _steps_in(self, room: int) -> int:
        """The most steps for which *room* blocks suffice (at least 1: the first step has its blocks)."""
        size = self._size
        whole, rest = divmod(room, self._batch)
        k, at = whole * size, self.steps % size
        while self._phase[at] <= rest:
            rest -= self._phase[at]
            at = at + 1 if at + 1 < size else 0
            k += 1
        return k if k > 1 else 1

    def _release(self, sequence: Sequence) -> None:
        self.blocks.give(-(-sequence.computed // self._size) - sequence.shared_blocks, sequence.units)
        sequence.shared_blocks, sequence.units = 0, []

    # ---- prompts -------------------------------------------------------------------

    def _fill(self) -> tuple[int, float]:
        """Prompt chunks of this step: the unfinished one, then waiting sequences. Returns (tokens, attention pairs)."""
        tokens, pairs = 0, 0.0
        if self._partial is not None:
            tokens, pairs = self._continue(self._partial)
        waiting, running, seqs_max = self._waiting, self._running, self.limits.seqs_max
        budget = self.limits.chunk_tokens - self._batch - tokens
        while waiting and budget > 0 and len(running) < seqs_max and not self._squeezed:
            sequence = waiting[0][2]
            if sequence.state == ENDED:
                heappop(waiting)
                self._dropped_waiting -= 1
                continue
            if self._no_evict and not self._reserve_whole(sequence, budget):
                break
            chunk = self._admit(sequence, budget)
            if not chunk:
                self._reserved_blocks -= sequence.reserved_blocks
                break
            heappop(waiting)
            tokens += chunk
            budget -= chunk
            pairs += chunk * (sequence.computed - chunk / 2)
        return tokens, pairs

    def _reserve_whole(self, sequence: Sequence, budget: int) -> bool:
        """With no_evict: reserve blocks for prompt and longest reply. False if there is no room beside earlier
        reservations.

        A prompt that does not fit the rest of the step waits for the next one, unless it would be the first in it.
        """
        whole = sequence.prompt_tokens + max(sequence.reply_tokens_max, sequence.output_tokens)
        blocks = min(-(-whole // self._size), self.limits.kv_blocks)
        if self._reserved_blocks + blocks > self.limits.kv_blocks or (self._chunks and sequence.prompt_tokens > budget):
            return False
        self._reserved_blocks += blocks
        sequence.reserved_blocks = blocks
        return True

    def _admit(self, sequence: Sequence, budget: int) -> int:
        """Put a waiting sequence into the batch with a first chunk, without its cached prefix. Returns the tokens; 0:
        no room.
        """
        target = sequence.prompt_tokens + sequence.generated
        cached = 0
        if self._exact:
            cached = self._reserve(sequence, target, budget)
            if cached < 0:
                return 0
        chunk = min(target - cached, budget)
        sequence.computed = cached + chunk
        sequence.state = PREFILL
        self._running[sequence] = None
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = min(cached, sequence.prompt_tokens)
            self.prompt_tokens += sequence.prompt_tokens
            self.cached_tokens += sequence.cached_tokens
        self._scheduled(sequence, chunk, target)
        return chunk

    def _reserve(self, sequence: Sequence, target: int, budget: int) -> int:
        """Take the blocks of a first chunk. Returns the tokens found in the cache; -1: no room."""
        size, blocks = self._size, self.blocks
        found = idle = 0
        if sequence.prefix and self.limits.prefix_caching:
            found, idle = blocks.found(sequence.prefix, self._unit_blocks(sequence), (target - 1) // size)
        computed = min(target, found * size + budget)
        need = -(-computed // size) - found
        if need + idle > blocks.total - blocks.used:
            return -1
        if found:
            sequence.units = blocks.share(sequence.prefix, sequence.unit_blocks, found)
            sequence.shared_blocks = found
        blocks.take(need)
        return found * size

    def _continue(self, sequence: Sequence) -> tuple[int, float]:
        """The next chunk of the unfinished prompt, as (tokens, pairs); (0, 0) if it was preempted itself."""
        target = sequence.prompt_tokens + sequence.generated
        chunk = min(self.limits.chunk_tokens - self._batch, target - sequence.computed)
        if self._exact and not self._extend(sequence, chunk):
            return 0, 0.0
        sequence.computed += chunk
        self._scheduled(sequence, chunk, target)
        return chunk, chunk * (sequence.computed - chunk / 2)

    def _extend(self, sequence: Sequence, chunk: int) -> bool:
        """Take blocks for *chunk* more tokens; False if the sequence itself was preempted."""
        size = self._size
        need = -(-(sequence.computed + chunk) // size) - -(-sequence.computed // size)
        while need > self.blocks.total - self.blocks.used:
            victim = self._youngest()
            self._preempt(victim)
            if victim is sequence:
                return False
        self.blocks.take(need)
        return True

    def _scheduled(self, sequence: Sequence, chunk: int, target: int) -> None:
        self.prefilled_tokens += chunk
        self._chunks.append(sequence)
        self._partial = sequence if sequence.computed < target else None
        if sequence.unit_blocks:
            self._remember(sequence)

    # ---- prefixes --------------------------------------------------------------------

    def _unit_blocks(self, sequence: Sequence) -> list[int]:
        """Whole blocks in each prefix unit of the sequence."""
        if not sequence.unit_blocks:
            size, unit, known = self._size, sequence.unit_tokens, sequence.known_tokens
            edges = [min(i * unit, known) // size for i in range(len(sequence.prefix) + 1)]
            sequence.unit_blocks = [b - a for a, b in pairwise(edges)]
        return sequence.unit_blocks

    def _remember(self, sequence: Sequence) -> None:
        """Publish computed units to the cache (vLLM: as soon as they are scheduled)."""
        done, units, sizes = sequence.computed // self._size, sequence.units, sequence.unit_blocks
        at = sum(sizes[: len(units)])
        for key, count in zip(sequence.prefix[len(units) :], sizes[len(units) :], strict=True):
            at += count
            if at > done or not self.blocks.keep(key, count):
                break
            units.append(key)
            sequence.shared_blocks += count

    # ---- when blocks run short ---------------------------------------------------------

    def _youngest(self) -> Sequence:
        """The sequence to preempt: the last admitted, or the least urgent and latest if priorities count."""
        if self._by_priority:
            return max(self._running, key=lambda s: (s.priority, s.order))
        return next(reversed(self._running))

    def _squeeze(self) -> None:
        """Blocks do not suffice for the step: oldest first take theirs, youngest are preempted until they do."""
        blocks, size, steps = self.blocks, self._size, self.steps
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
        """Back to waiting with nothing computed; a block opened for this very step is released too."""
        self._squeezed = True
        opens = sequence.state == DECODE and (sequence.offset + self.steps) % self._size == 0
        if opens and (self._served is None or sequence in self._served):
            self.blocks.give(1, [])
            self._taken -= 1
        self._vacate(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self.preemptions += 1
        self._queue(sequence)


def _live(entry: tuple[int, int, Sequence]) -> bool:
    return entry[2].state == DECODE and entry[2].finish_step == entry[0]
