"""What will become of everybody on one engine if nobody else comes: followed step by step to the last token.

Believes: the engine's truth, at its speed of this moment. Not followed: preemption (a prompt waits until the cache has
room for it) and what a prefix cache saves.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from math import nan

import numpy as np

from simulator.books import Floats
from simulator.replica import Replica
from simulator.sequence import DECODE, Sequence
from simulator.workload import Arrival


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Seconds from now to the first and to the last token, and the reply's length: an entry for each that is there, in
    the order of ``Replica.there``, then for those coming. ``first_s`` is 0 for those that have theirs.
    """

    first_s: Floats
    end_s: Floats
    output_tokens: Floats


class _Walk:
    """The engine from the end of the step under way on. Who decodes stands in a heap by the step that ends it."""

    def __init__(self, replica: Replica, there: list[Sequence], coming: list[Arrival]) -> None:
        self.replica, self.now_s, self.step = replica, replica.step_left_s(), 0
        gone = replica.steps_under_way()
        self.first_s, self.end_s = np.zeros(len(there) + len(coming)), np.full(len(there) + len(coming), nan)
        self.batch, self.context = replica.decoding, replica.context_tokens + replica.decoding * gone
        self.ends: list[tuple[int, int, int]] = []
        self.queue: list[tuple[int, int, int]] = []  # index, prompt tokens, and those of them to be computed
        self.reply: dict[int, int] = {}
        for index, sequence in enumerate(there):
            if sequence.state == DECODE:
                left = sequence.finish_step - replica.steps - gone
                self.ends.append((left, index, sequence.prompt_tokens + sequence.output_tokens - 1))
            else:
                self._enters(index, sequence)
        self.ends.sort()
        for index, arrival in enumerate(coming, len(there)):
            self.queue.append((index, arrival.request.prompt_tokens, arrival.request.prompt_tokens))
            self.reply[index] = arrival.output_tokens
        self._ended()

    def _enters(self, index: int, sequence: Sequence) -> None:
        whole = sequence.prompt_tokens + sequence.generated
        self.reply[index] = sequence.output_tokens - sequence.generated
        if sequence.computed >= whole:
            self._first_token(index, whole)
        else:
            self.queue.append((index, whole, whole - sequence.computed))

    def _first_token(self, index: int, tokens: int) -> None:
        self.first_s[index] = self.now_s
        more = self.reply[index] - 1
        if more > 0:
            self.batch += 1
            self.context += tokens
            heappush(self.ends, (self.step + more, index, tokens + more))
        else:
            self.end_s[index] = self.now_s

    def _ended(self) -> None:
        while self.ends and self.ends[0][0] <= self.step:
            _, index, tokens = heappop(self.ends)
            self.end_s[index] = self.now_s
            self.batch -= 1
            self.context -= tokens

    def prefill(self) -> None:
        """Steps until every prompt is computed."""
        while self.queue:
            done, tokens, pairs = self._chunks()
            if tokens:
                self.now_s += self.replica.step_s(self.batch, self.context, tokens, pairs)
                self._passed(1)
            else:  # full: until somebody ends
                self._leap()
            for index, whole in done:
                self._first_token(index, whole)

    def _chunks(self) -> tuple[list[tuple[int, int]], int, float]:
        """What of the queue the next step takes in: who is done with it, tokens, attention pairs."""
        limits, done, tokens, pairs, held = self.replica.limits, [], 0, 0.0, self.context
        budget = limits.chunk_tokens - self.batch
        running = self.batch
        while self.queue and budget > 0:
            index, whole, left = self.queue[0]
            fits = held + whole <= limits.kv_blocks * limits.block_tokens or not self.batch
            if running >= limits.seqs_max or not fits:
                break
            chunk = min(left, budget)
            tokens += chunk
            budget -= chunk
            pairs += chunk * (whole - left + chunk / 2)
            held += whole
            running += 1
            if chunk < left:
                self.queue[0] = (index, whole, left - chunk)
                break
            self.queue.pop(0)
            done.append((index, whole))
        return done, tokens, pairs

    def _passed(self, steps: int) -> None:
        self.step += steps
        self.context += self.batch * steps
        self._ended()

    def _leap(self) -> None:
        steps = self.ends[0][0] - self.step
        self.now_s += steps * self.replica.step_s(self.batch, self.context + self.batch * (steps - 1) // 2, 0, 0.0)
        self._passed(steps)

    def decode(self) -> None:
        """From here on nobody has a prompt to compute: all ends at once, by the closed form between them."""
        if not self.ends:
            return
        self.ends.sort()
        at, indices, held = (np.array(column) for column in zip(*self.ends, strict=True))
        steps = np.diff(at, prepend=self.step)
        batch = len(at) - np.arange(len(at))
        grown = np.cumsum(steps * batch)
        gone = np.concatenate(([0], np.cumsum(held)[:-1]))
        context = self.context + grown - steps * batch - gone
        base_s, slope_s = self.replica.decode_steps_s(batch)
        each_s = base_s + slope_s * (context + batch + batch * (steps - 1) / 2)
        self.end_s[indices] = self.now_s + np.cumsum(steps * each_s)


def follow(replica: Replica, there: list[Sequence], coming: list[Arrival], delay_s: float) -> Foreseen:
    """Everybody there, and those *coming*, who are ``delay_s`` on their way."""
    walk = _Walk(replica, there, coming)
    walk.prefill()
    walk.decode()
    walk.first_s[len(there) :] += delay_s
    walk.end_s[len(there) :] += delay_s
    tokens = [*(sequence.output_tokens for sequence in there), *(arrival.output_tokens for arrival in coming)]
    return Foreseen(walk.first_s, walk.end_s, np.array(tokens, dtype=np.float64))
