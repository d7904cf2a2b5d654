"""The state of one engine between two events, and the queries on it: load, step times, progress of the present steps.

Nothing here changes the state; ``replica.py`` does. Must not depend on routers, policies or SLOs.
"""

from collections import deque
from math import isnan, sqrt

from router.core.signals import Share, Value, registered, simulated, value_since
from router.core.types import EngineReport
from simulator.replica.clock import Clock
from simulator.replica.scheduler import Scheduler
from simulator.replica.sequence import ARRIVING, DECODE, ENDED, UNLIMITED, EngineLimits, Sequence
from simulator.replica.truth import Truth


class ReplicaState(Scheduler):
    """A scheduler with its arrivals, its step times, and the steps under way on a clock."""

    def __init__(self, name: str, truth: Truth, limits: EngineLimits, clock: Clock) -> None:
        """Idle and empty."""
        super().__init__(limits)
        self.name = name
        self._clock = clock
        self._base_s = truth.decode_base_s(limits.seqs_max)
        self._roof_s = truth.roof_s(limits.chunk_tokens)
        self._prompt_token_s, self._pair_s, self._context_s = truth.prompt_token_s(), truth.pair_s, truth.context_s
        self._eager_s, self._stages = truth.eager_s, truth.coefficients.stages
        self._factor = 1.0  # of every step, by drift and faults
        self._arrivals: deque[tuple[float, Sequence]] = deque()  # sent, not in the engine yet
        self._order = 0
        # Under way: _run steps since _started_s, the first _stride_s long, each _growth_s longer, done at _due_s.
        self._run = 0
        self._started_s = self._due_s = 0.0
        self._stride_s = self._growth_s = 0.0
        self.busy_s = 0.0

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
        """An upper bound of ``waiting``, cheap: with sequences in transit and those of disconnected clients."""
        return len(self._waiting) + len(self._arrivals)

    @property
    def unfinished_max(self) -> int:
        """An upper bound of all sequences in the engine, cheap: those that run, and ``waiting_max``."""
        return len(self._running) + len(self._waiting) + len(self._arrivals)

    def refuses(self, more: int) -> bool:
        """Whether the queue has no room for a request of *more* sequences."""
        limits = self.limits
        if self.unfinished_max + more > limits.queue_max:
            return True
        return limits.queue_tokens_max < UNLIMITED and self._queued_tokens() >= limits.queue_tokens_max

    def _queued_tokens(self) -> int:
        """Prompt tokens of the sequences that have no first token yet."""
        return sum([s.prompt_tokens for s in self.sequences() if not s.generated and s.state != ENDED])

    @property
    def decoding(self) -> int:
        """Sequences that have their first token and are not finished."""
        return self._batch

    def kv_usage(self) -> float:
        """Share of the KV blocks in use at the clock's time."""
        if not self._run:
            return (self.blocks.used if self._exact else self._held(0)) / self.blocks.total
        k = min(self._run, self._steps_by(self._clock.now_s))
        used = self.blocks.used + self._opened(k) - self._taken if self._exact else self._held(k)
        return used / self.blocks.total

    def signals(self) -> tuple[Value, ...]:
        """What the engine's metrics page has for each signal, in the order of ``router.core.signals``."""
        return tuple([of_engine(self) for of_engine in simulated()])

    def report(self, requested_s: float, now: tuple[Value, ...], before: tuple[Value, ...] | None) -> EngineReport:
        """The metrics page of the engine as a router reads it, requested at *requested_s*.

        *now*: the ``signals``; *before*: what they were at the last report (None: no report yet).
        """
        found: list[float] = []
        for index, signal in enumerate(registered()):
            value = now[index]
            if isinstance(value, Share):
                value = value_since(value, None if before is None else before[index])
            found.append(signal.absent if isnan(value) else value)
        return EngineReport(
            requested_s,
            float(self.running),
            float(self.waiting),
            float(self.limits.kv_blocks * self.limits.block_tokens),
            tuple(found),
        )

    # ---- for bounds, which read everything -----------------------------------------

    @property
    def context_tokens(self) -> int:
        """KV tokens of the decoding sequences, as of the last event."""
        return self._context

    def sequences(self) -> list[Sequence]:
        """All sequences: running, oldest first; waiting, in their order; then those in transit."""
        waiting = [entry[2] for entry in sorted(self._waiting)]
        return [*self._running, *waiting, *(sequence for _, sequence in self._arrivals)]

    def arrives_in_s(self) -> list[float]:
        """Seconds until each sequence in transit reaches the engine, in the order in which ``sequences`` ends."""
        now_s = self._clock.now_s
        return [max(0.0, at_s - now_s) for at_s, _ in self._arrivals]

    def cached_tokens_of(self, sequence: Sequence) -> int:
        """Leading tokens of the sequence's text that are in the prefix cache now."""
        if not self._exact or not self._caches or not (sequence.prefix or sequence.own is not None):
            return 0
        most = (sequence.prompt_tokens + sequence.generated - 1) // self._size
        units = self._unit_blocks(sequence) if sequence.prefix else sequence.unit_blocks
        return self.blocks.find(sequence.prefix, units, sequence.own, most)[1] * self._size

    def shared_tokens(self) -> int:
        """KV tokens that running sequences share with others and need not hold themselves."""
        if not self._exact:
            return 0
        return max(0, (self._held(0) - self.blocks.used + self._taken) * self._size)

    def scheduled(self) -> list[tuple[Sequence, int]]:
        """The sequences in the step under way (of several: in the first), in order of admission, with their tokens."""
        if not self._run:
            return []
        idle, chunks = self._idle, self._chunks
        return [(s, chunks.get(s, 1)) for s in self._running if s in chunks or (s.state == DECODE and s not in idle)]

    def change_counts(self) -> tuple[int, int, int]:
        """Sequences ever added, those of them that have left, and those that ever began to decode or left. The
        projection of the engine changes only if one of these does.
        """
        left = self._order - len(self._running) - len(self._waiting) - len(self._arrivals)
        return self._order, left, left + self._batch

    def steps_under_way(self) -> int:
        """Steps since the last event that are over once the present one is."""
        return self._steps_by(self._clock.now_s) if self._run else 0

    def step_left_s(self) -> float:
        """Seconds until the present step is over."""
        if not self._run:
            return 0.0
        k, now_s = self._steps_by(self._clock.now_s), self._clock.now_s
        return max(0.0, self._started_s + k * (self._stride_s + self._growth_s / 2 * (k - 1)) - now_s)

    def step_s(self, batch: int, context: float, tokens: int, pairs: float) -> float:
        """Seconds of a step in which *batch* sequences decode over *context* tokens beside *tokens* prompt tokens."""
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
        """Seconds that one prompt token adds to a step full of prompts."""
        tokens = self.limits.chunk_tokens - self._batch
        return (self.step_s(self._batch, 0, tokens, 0.0) - self.step_s(self._batch, 0, 0, 0.0)) / tokens

    def step_share_min_s(self) -> float:
        """The smallest share of a step's fixed time that one sequence takes, over all batch sizes."""
        return min(self._base_s[b] / b for b in range(1, len(self._base_s)))

    # ---- the steps under way ---------------------------------------------------------

    def _steps_by(self, at_s: float) -> int:
        """The first of the present steps that ends at or after *at_s* (1 or more)."""
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
