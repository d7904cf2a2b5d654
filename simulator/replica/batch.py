"""Which sequences are in an engine, and which blocks they hold: the state that the scheduler changes, without time.

Decoding sequences are counted, not walked: a sequence is as long as its offset plus the step number, it ends at a step
known in advance, and it opens a block whenever its length is a multiple of the block size. While a bound shows that
blocks cannot run short and no prefix is cached, blocks are not counted at all. Must not depend on time, routers or
policies.
"""

from heapq import heappop, heappush
from itertools import pairwise

from simulator.replica.blocks import Blocks, Text
from simulator.replica.sequence import DECODE, WAITING, EngineLimits, Sequence


class Batch:
    """The sequences of one engine: waiting, running, decoding. ``steps`` counts the steps so far."""

    def __init__(self, limits: EngineLimits) -> None:
        """No sequences."""
        self.limits = limits
        self.steps = 0
        self.preemptions = 0
        self.prompt_tokens = self.cached_tokens = self.prefilled_tokens = self.generated_tokens = 0
        self._size, self._kv_tokens = limits.block_tokens, limits.kv_blocks * limits.block_tokens
        self._by_priority, self._caches = limits.priority, limits.prefix_caching
        self._watermark = int(limits.watermark * (limits.kv_blocks + 1))  # vLLM counts its null block too
        self._turn = 0
        self._empty()

    def _empty(self) -> None:
        self.blocks = Blocks(self.limits.kv_blocks)
        self._exact = False  # whether blocks are counted
        self._phase = [0] * (2 * self._size)  # how many open a block at a step of this remainder; twice, for slices
        self._waiting: list[tuple[int, int, Sequence]] = []  # urgent and old first
        self._dropped_waiting = 0  # dropped ones among them
        self._running: dict[Sequence, None] = {}  # in order of admission
        self._ends: list[tuple[int, int, Sequence]] = []  # those decoding, by the step that ends them
        self._stale = 0  # entries there of sequences that were preempted, passed over or dropped
        self._batch = 0  # how many decode
        self._context = 0  # and how many tokens of theirs are in KV
        self._partials: list[Sequence] = []  # those with prompt left to do, in order of admission
        self._chunks: dict[Sequence, int] = {}  # sequences with a chunk in this step, and its tokens
        self._idle: list[Sequence] = []  # decoding sequences that this step passes over
        self._idle_context = 0  # and how many tokens of _context are theirs
        self._reserved_blocks = 0  # blocks reserved for running sequences, with no_evict
        self._taken = 0  # blocks taken for the first step under way
        self._ended: list[Sequence] = []  # over, in their room until the next step is decided (async scheduling)

    # ---- coming and going ------------------------------------------------------

    def _queue(self, sequence: Sequence) -> None:
        sequence.state = WAITING
        heappush(self._waiting, (sequence.priority if self._by_priority else 0, sequence.order, sequence))
        if sequence.prefix and not self._exact and self._caches:
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
        heappush(self._ends, (end, sequence.turn, sequence))

    def _leave_decode(self, sequence: Sequence) -> None:
        sequence.computed = computed = sequence.offset + self.steps
        self._batch -= 1
        self._context -= computed
        if self._exact:
            self._mark(-sequence.offset, -1)

    def _pass_over(self, sequence: Sequence) -> None:
        """A decoding sequence has no token in this step: from the next one on it is a step later than it was."""
        if self._exact:
            self._mark(-sequence.offset, -1)
            self._mark(1 - sequence.offset, 1)
        sequence.offset -= 1
        sequence.finish_step += 1
        self._stale += 1
        heappush(self._ends, (sequence.finish_step, sequence.turn, sequence))
        self._context -= 1  # the end of the step adds one to each
        self._idle_context += sequence.offset + self.steps
        self._idle.append(sequence)

    def _vacate(self, sequence: Sequence, scheduled: int = 0, *, returns: bool = False) -> None:
        """Remove a sequence from the batch and release its blocks; its generated tokens stay.

        *scheduled*: tokens it decodes in this very step; *returns*: it was preempted and will be admitted again.
        """
        if sequence.state == DECODE:
            sequence.generated = sequence.output_tokens - (sequence.finish_step - self.steps)
            self._leave_decode(sequence)
            self._stale += 1
        elif sequence in self._partials:
            self._partials.remove(sequence)
        del self._running[sequence]
        self._reserved_blocks -= sequence.reserved_blocks
        sequence.reserved_blocks = 0
        if self._exact:
            self._release(sequence, sequence.computed + scheduled, returns=returns)

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
        self.blocks.restart(self._held(0))
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
        for s in self._ended:
            held += -(-s.computed // size)
        return held

    def _tokens_at_most(self) -> int:
        """A bound on the tokens that the blocks held after the next step have room for."""
        limits, most = self.limits, self._context + self.limits.chunk_tokens
        for partial in self._partials:
            most += partial.computed
        for ended in self._ended:
            most += ended.computed + self._size
        return most + (len(self._running) + min(len(self._waiting), limits.seqs_max) + 1 + self._watermark) * self._size

    def _choose_counting(self) -> None:
        """Count blocks while they might run short in the next step, or while anything in them can be found."""
        most = self._tokens_at_most()
        if not self._exact:
            if most > self._kv_tokens:
                self._count()
        elif most * 1.25 < self._kv_tokens and not self.blocks.caching and not self._awaits_prefix():
            self._exact, self._taken = False, 0
            self.blocks.restart(0)

    def _awaits_prefix(self) -> bool:
        """Whether a sequence will look for a prefix, or leave one."""
        if not self._caches:
            return False
        return any(entry[2].prefix for entry in self._waiting) or any(s.prefix for s in self._running)

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

    # ---- what sequences leave in their blocks ------------------------------------------

    def _unit_blocks(self, sequence: Sequence) -> list[int]:
        """Whole blocks in each prefix unit of the sequence."""
        if not sequence.unit_blocks:
            size, unit, known = self._size, sequence.unit_tokens, sequence.known_tokens
            edges = [min(i * unit, known) // size for i in range(len(sequence.prefix) + 1)]
            sequence.unit_blocks = [b - a for a, b in pairwise(edges)]
        return sequence.unit_blocks

    def _publish(self, sequence: Sequence, tokens: int) -> None:
        """Full blocks of units among the first *tokens* can be found (vLLM: as soon as they are scheduled)."""
        done, published, at = tokens // self._size, sequence.shared_blocks, 0
        for key, count in zip(sequence.prefix, sequence.unit_blocks, strict=True):
            if at >= done:
                break
            start, end = max(published, at), min(at + count, done)
            if end > start:
                self.blocks.publish(sequence.holds, key, start - at, end - start)
                published = end
            at += count
        sequence.shared_blocks = published

    def _release(self, sequence: Sequence, tokens: int, *, returns: bool = False) -> None:
        """Give back the blocks of a sequence with so many *tokens* in KV: what it computed last is taken first."""
        blocks, size = self.blocks, self._size
        full = tokens // size
        held = full + (1 if tokens % size else 0)
        if not self._caches:
            blocks.give_blank(held)
            return
        if sequence.unit_blocks:
            self._publish(sequence, tokens)
        blocks.give_blank(held - full)
        own = full - sequence.shared_blocks
        if not returns:
            blocks.give_full(own)
            if sequence.own is not None:
                blocks.disown(sequence.own)
        elif own:
            if sequence.own is None:
                sequence.own = Text()
            blocks.give_own(sequence.own, 0, own)
        if sequence.holds:
            blocks.give_holds(sequence.holds)
            sequence.shared_blocks, sequence.holds = 0, []


def _live(entry: tuple[int, int, Sequence]) -> bool:
    return entry[2].state == DECODE and entry[2].finish_step == entry[0]
