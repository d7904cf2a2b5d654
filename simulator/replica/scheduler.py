"""Which sequences are in an engine's next step: the scheduler of vLLM V1, without time.

A step gives every running sequence its next token or its next chunk of prompt, in order of admission, within
``chunk_tokens``. If no block is free for one, the last admitted is preempted (with priorities: the least urgent,
wherever it stands), loses its blocks and is computed again later, as far as they have been taken by then. Where a
sequence has to preempt itself, those after it have no token in this step. Then waiting sequences are admitted, in
order, while there is room for all of their prompt; none in a step that preempted.

`python -m simulator steps` walks it over worlds that vLLM's own scheduler has walked too. Must not depend on time,
routers or policies.
"""

from heapq import heappop, heappush

from simulator.replica.batch import Batch
from simulator.replica.sequence import DECODE, ENDED, PREFILL, EngineLimits, Sequence


class Scheduler(Batch):
    """A batch that decides its next step: ``_schedule``; afterwards ``_step_tokens`` prompt tokens are in it."""

    def __init__(self, limits: EngineLimits) -> None:
        """No sequences."""
        super().__init__(limits)
        self._no_evict = limits.no_evict
        self._reserves = limits.reserve_prompt and not limits.no_evict  # which reserves more
        self._active_max = limits.active_max or limits.seqs_max
        self._budget = 0  # tokens that the step has room for
        self._step_tokens = 0  # of prompts, in this step
        self._step_pairs = 0.0  # (prompt token, token before it) pairs
        self._chunk_max = 0  # of one prompt in this step
        self._squeezed = False  # whether a sequence was preempted in this step

    def _schedule(self) -> None:
        """Decide the next step."""
        self._taken, self._squeezed = 0, False
        self._step_tokens, self._step_pairs = 0, 0.0
        self._budget = self.limits.chunk_tokens
        if self._ended:
            self._budget -= sum([s.ends_itself for s in self._ended])
        self._choose_counting()
        if self._partials or self._waiting:
            self._chunk_max = self._longest_chunk()
        if self._running:
            self._serve_running()
        if self._waiting and not self._squeezed:
            self._admit_waiting()

    def _longest_chunk(self) -> int:
        """The most of one prompt in this step: what the limit for long ones says, while anybody else is here."""
        limits = self.limits
        others = len(self._running) + len(self._ended) + len(self._waiting) - self._dropped_waiting
        if not limits.long_prompt_chunk or others <= 1:
            return limits.chunk_tokens
        fair = limits.chunk_tokens // others if limits.long_prompt_adaptive else 0
        return max(limits.long_prompt_chunk, fair)

    # ---- those that run --------------------------------------------------------------

    def _serve_running(self) -> None:
        """Tokens and chunks of the running sequences: all at once where there is enough of everything for all."""
        wanted, need, size = self._batch, 0, self._size
        for partial in self._partials:
            chunk = min(_left(partial), self._chunk_max)
            wanted += chunk
            need += -(-(partial.computed + chunk) // size) - -(-partial.computed // size)
        if wanted > self._budget and (len(self._partials) > 1 or next(reversed(self._running)).state == DECODE):
            self._serve_each()
            return
        opened = 0
        if self._exact:
            opened = self._opened(1)
            if opened + need > self.blocks.total - self.blocks.used:
                self._serve_each()
                return
            self.blocks.take(opened)
            self._taken = opened
        self._budget -= self._batch
        if self._partials:
            for partial in list(self._partials):
                self._continue(partial, min(_left(partial), self._chunk_max, self._budget))

    def _serve_each(self) -> None:
        """Tokens or blocks do not suffice: in order of admission each takes its own, while there are any."""
        served: dict[Sequence, int] = {}
        for sequence in list(self._running):
            if sequence not in self._running:
                continue
            if self._budget <= 0 or not self._serve(sequence, served):
                break
        for sequence in self._running:
            if sequence.state == DECODE and sequence not in served:
                self._pass_over(sequence)
        if self._exact:
            self._taken = self._opened(1)

    def _serve(self, sequence: Sequence, served: dict[Sequence, int]) -> bool:
        """A token or a chunk for *sequence*; False if it was preempted itself for want of blocks."""
        decodes = sequence.state == DECODE
        tokens = 1 if decodes else min(_left(sequence), self._chunk_max, self._budget)
        if self._exact and not self._make_room(sequence, tokens, served):
            return False
        served[sequence] = tokens
        if not decodes:
            self._continue(sequence, tokens)
            return True
        self._budget -= 1
        if self._exact and (sequence.offset + self.steps) % self._size == 0:
            self.blocks.take(1)
        return True

    def _make_room(self, sequence: Sequence, tokens: int, served: dict[Sequence, int]) -> bool:
        """Preempt until there are blocks for *tokens* more of the sequence; False if it was preempted itself."""
        at, size = sequence.offset + self.steps if sequence.state == DECODE else sequence.computed, self._size
        need = -(-(at + tokens) // size) - -(-at // size)
        while need > self.blocks.total - self.blocks.used:
            victim = self._youngest()
            self._preempt(victim, served.pop(victim, 0))
            if victim is sequence:
                return False
        return True

    def _youngest(self) -> Sequence:
        """The sequence to preempt: the last admitted, or the least urgent and latest if priorities count."""
        if self._by_priority:
            return max(self._running, key=lambda s: (s.priority, s.order))
        return next(reversed(self._running))

    def _preempt(self, sequence: Sequence, scheduled: int) -> None:
        """Back to waiting; the *scheduled* tokens it had in this very step are free for others."""
        self._squeezed = True
        self._budget += scheduled
        if sequence.state == DECODE:
            self._vacate(sequence, scheduled, returns=True)
        else:
            if scheduled:
                del self._chunks[sequence]
                self.prefilled_tokens -= scheduled
                self._step_tokens -= scheduled
                self._step_pairs -= scheduled * (sequence.computed - scheduled / 2)
            self._vacate(sequence, returns=True)
        sequence.computed = 0
        sequence.preemptions += 1
        self.preemptions += 1
        self._queue(sequence)

    def _continue(self, sequence: Sequence, chunk: int) -> None:
        """The next chunk of an unfinished prompt, for which there is room."""
        if not chunk:
            return
        if self._exact:
            size = self._size
            self.blocks.take(-(-(sequence.computed + chunk) // size) - -(-sequence.computed // size))
        self._advance(sequence, chunk)
        if not _left(sequence):
            self._partials.remove(sequence)

    def _advance(self, sequence: Sequence, chunk: int) -> None:
        """*chunk* more tokens of its prompt are in this step."""
        sequence.computed += chunk
        self._budget -= chunk
        self._step_tokens += chunk
        self._step_pairs += chunk * (sequence.computed - chunk / 2)
        self.prefilled_tokens += chunk
        self._chunks[sequence] = chunk
        if sequence.unit_blocks:
            self._publish(sequence, sequence.computed)

    # ---- those that wait -------------------------------------------------------------

    def _admit_waiting(self) -> None:
        """Waiting sequences join the batch, in order, until one finds no room; those whose adapters find none are
        passed over.
        """
        waiting, running = self._waiting, self._running
        adapters = self._adapters() if self.limits.adapters_max else None
        passed: list[tuple[int, int, Sequence]] = []
        while waiting and self._budget > 0 and len(running) + len(self._ended) < self._active_max:
            sequence = waiting[0][2]
            if sequence.state == ENDED:
                heappop(waiting)
                self._dropped_waiting -= 1
                continue
            if adapters is not None and self._has_no_place(sequence, adapters):
                passed.append(heappop(waiting))
                continue
            if not self._enter(sequence):
                break
            heappop(waiting)
            if adapters is not None and sequence.adapter:
                adapters.add(sequence.adapter)
        for entry in passed:
            heappush(waiting, entry)

    def _enter(self, sequence: Sequence) -> bool:
        """Reserve what *sequence* needs and admit it. False: no room."""
        if self._no_evict and not self._reserve_whole(sequence):
            return False
        if not self._admit(sequence):
            self._reserved_blocks -= sequence.reserved_blocks
            return False
        return True

    def _has_no_place(self, sequence: Sequence, adapters: set[str]) -> bool:
        """Whether its adapter would be one too many beside these."""
        return bool(sequence.adapter) and sequence.adapter not in adapters and len(adapters) >= self.limits.adapters_max

    def _adapters(self) -> set[str]:
        """Those of the running sequences that have tokens in this step."""
        idle, chunks = self._idle, self._chunks
        found: set[str] = set()
        for sequence in self._running:
            if sequence.adapter and (sequence in chunks or (sequence.state == DECODE and sequence not in idle)):
                found.add(sequence.adapter)
        return found

    def _reserve_whole(self, sequence: Sequence) -> bool:
        """With no_evict: reserve blocks for prompt and longest reply. False if there is no room beside earlier
        reservations.

        A prompt that does not fit the rest of the step waits for the next one, unless it would be the first in it.
        """
        whole = sequence.prompt_tokens + max(sequence.reply_tokens_max, sequence.output_tokens)
        blocks = min(-(-whole // self._size), self.limits.kv_blocks)
        if self._reserved_blocks + blocks > self.limits.kv_blocks or (
            self._chunks and sequence.prompt_tokens > self._budget
        ):
            return False
        self._reserved_blocks += blocks
        sequence.reserved_blocks = blocks
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Put a waiting sequence into the batch with a first chunk, without its cached prefix. False: no room."""
        target = sequence.prompt_tokens + sequence.generated
        chunk_max = min(self._chunk_max, self._budget)
        if self._reserves and target > chunk_max and not self._exact:
            self._count_for(target)
        cached = 0
        if self._exact:
            cached = self._reserve(sequence, target, chunk_max)
            if cached < 0:
                return False
        sequence.computed = cached
        sequence.state = PREFILL
        self._turn = sequence.turn = self._turn + 1
        self._running[sequence] = None
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = min(cached, sequence.prompt_tokens)
            self.prompt_tokens += sequence.prompt_tokens
            self.cached_tokens += sequence.cached_tokens
        self._advance(sequence, min(target - cached, chunk_max))
        if _left(sequence):
            self._partials.append(sequence)
        return True

    def _count_for(self, target: int) -> None:
        """Count blocks if no bound shows that all of *target* tokens fit beside this step."""
        if self._tokens_at_most() + sum([s.computed for s in self._chunks]) + target > self._kv_tokens:
            self._count()
            self._taken = self._opened(1)
            self.blocks.take(self._taken)

    def _reserve(self, sequence: Sequence, target: int, chunk_max: int) -> int:
        """Take the blocks of a first chunk. Returns the tokens found in the cache; -1: no room."""
        size, blocks = self._size, self.blocks
        free = blocks.total - blocks.used - (self._watermark if self._running or self._ended else 0)
        if self._caches and (sequence.prefix or sequence.own is not None):
            units = self._unit_blocks(sequence) if sequence.prefix else sequence.unit_blocks
            found, cached, idle = blocks.find(sequence.prefix, units, sequence.own, (target - 1) // size)
        else:
            found, cached, idle = [], 0, 0
        computed = min(target, cached * size + chunk_max)
        if -(-(target if self._reserves else computed) // size) - cached + idle > free:
            return -1
        if found:
            sequence.holds = holds = blocks.share(found)
            sequence.shared_blocks = sum([count for _, count in holds])
        blocks.take(-(-computed // size) - cached)
        return cached * size


def _left(sequence: Sequence) -> int:
    """Tokens of its text, prompt and what was generated before, that are not in KV."""
    return sequence.prompt_tokens + sequence.generated - sequence.computed
