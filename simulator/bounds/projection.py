"""The projection of one engine to its last token, event by event, if no further request comes.

It uses the engine's true step at its present speed and the present content of its prefix cache. Not modelled:
preemption (a prompt waits until the cache has room), priorities among waiting sequences, and prefixes that are computed
or evicted later.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf, isnan, nan

from simulator.replica.replica import Replica
from simulator.replica.sequence import DECODE, ENDED, Sequence


@dataclass(frozen=True, slots=True)
class Projection:
    """Seconds from now to the first and to the last token, and the reply length, for each sequence in the given order.

    ``first_s`` is 0 for a sequence that has its first token. ``fits``: whether the KV cache has room for all of them to
    the end; if not, a sequence will be preempted, and the times are too early.
    """

    first_s: list[float]
    end_s: list[float]
    output_tokens: list[int]
    fits: bool


class SloState:
    """The SLO of one request and the times its bounds count from; ``first_token_s`` is nan before the first token."""

    __slots__ = ("e2e_s", "first_arrived_s", "first_token_s", "tpot_s", "ttft_s")

    def __init__(
        self, first_arrived_s: float, ttft_s: float, tpot_s: float, e2e_s: float, first_token_s: float
    ) -> None:
        self.first_arrived_s = first_arrived_s
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.e2e_s = e2e_s
        self.first_token_s = first_token_s

    def slo_use(self, now_s: float, first_s: float, end_s: float, output_tokens: int) -> float:
        """The largest used share of a bound at the last token. *first_s* and *end_s* are seconds from *now_s*."""
        first_arrived_s, end_s = self.first_arrived_s, now_s + end_s
        first_s = now_s + first_s if isnan(self.first_token_s) else self.first_token_s
        share = (first_s - first_arrived_s) / self.ttft_s
        if self.tpot_s != inf and output_tokens > 1:
            share = max(share, (end_s - first_s) / (output_tokens - 1) / self.tpot_s)
        return max(share, (end_s - first_arrived_s) / self.e2e_s)


def slo_uses(slos: Many[SloState], projection: Projection, now_s: float, stretch: float) -> list[float]:
    """``SloState.slo_use`` of each request if decoding takes *stretch* times as long as projected."""
    shares: list[float] = []
    for index, slo in enumerate(slos):
        first_s = projection.first_s[index]
        end_s = first_s + (projection.end_s[index] - first_s) * stretch
        shares.append(slo.slo_use(now_s, first_s, end_s, projection.output_tokens[index]))
    return shares


class _Walk:
    """The engine from the end of the present step on. ``ends`` is a heap of decoding sequences by their last step."""

    def __init__(self, replica: Replica, sequences: Many[Sequence], enters_s: Many[float]) -> None:
        """*enters_s*: seconds until the last ``len(enters_s)`` of the *sequences* reach the engine."""
        self.replica, self.now_s, self.step = replica, replica.step_left_s(), 0
        gone = replica.steps_under_way()
        count = len(sequences)
        self.first_s: list[float] = [0.0] * count
        self.end_s: list[float] = [nan] * count
        self.batch, self.context = replica.decoding, replica.context_tokens + replica.decoding * gone
        self.ends: list[tuple[int, int, int]] = []
        self.queue: list[tuple[int, int, int]] = []  # index, prompt tokens, prompt tokens not computed yet
        self.later: list[tuple[float, int, int, int]] = []  # not in the engine yet: arrival time, and the same
        self.reply: list[int] = [0] * count
        self.ended_before = replica.steps + gone
        limits = replica.limits
        self.room, self.block_tokens = (
            limits.kv_blocks * limits.block_tokens + replica.shared_tokens(),
            limits.block_tokens,
        )
        self.fits = True
        for index, sequence in enumerate(sequences):
            outside = index - (count - len(enters_s))
            self._place(index, sequence, enters_s[outside] if outside >= 0 else 0.0)
        heapify(self.ends)
        self._ended()

    def _place(self, index: int, sequence: Sequence, enters_s: float) -> None:
        if sequence.state == DECODE:
            left = sequence.finish_step - self.ended_before
            self.ends.append((left, index, sequence.prompt_tokens + sequence.output_tokens - 1))
            return
        whole = sequence.prompt_tokens + sequence.generated
        self.reply[index] = sequence.output_tokens - sequence.generated
        computed = sequence.computed or self.replica.cached_tokens_of(sequence)
        if computed >= whole:
            self._first_token(index, whole)
        elif enters_s > self.now_s:
            self.later.append((enters_s, index, whole, whole - computed))
        else:
            self.queue.append((index, whole, whole - computed))

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
        """Walk the steps until every prompt is computed."""
        while self.queue or self.later:
            self._enter()
            done, tokens, pairs = self._chunks()
            if tokens or not self.queue:
                self.now_s += self.replica.step_s(self.batch, self.context, tokens, pairs)
                self._passed(1)
            else:  # the cache is full: until a sequence ends
                self._leap()
            for index, whole in done:
                self._first_token(index, whole)

    def _enter(self) -> None:
        """Move arrived sequences into the queue; an idle engine waits for the next arrival."""
        later = self.later
        if later and not self.queue and not self.batch:
            self.now_s = max(self.now_s, later[0][0])
        while later and later[0][0] <= self.now_s:
            _, index, whole, left = later.pop(0)
            self.queue.append((index, whole, left))

    def _chunks(self) -> tuple[list[tuple[int, int]], int, float]:
        """The prompt chunks of the next step: (prompts completed by it, tokens, attention pairs)."""
        limits = self.replica.limits
        done: list[tuple[int, int]] = []
        tokens, pairs, held = 0, 0.0, self.context
        budget = limits.chunk_tokens - self.batch
        running = self.batch
        while self.queue and budget > 0:
            index, whole, left = self.queue[0]
            if running >= limits.seqs_max:
                break
            if held + whole > self.room and running:
                self.fits = False
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
        if self.context + self.batch * self.block_tokens > self.room:
            self.fits = False
        self._ended()

    def _leap(self) -> None:
        """Jump to the next end of a reply; without prompts the time of several steps has a closed form."""
        steps = self.ends[0][0] - self.step
        self.now_s += steps * self.replica.step_s(self.batch, self.context + self.batch * (steps - 1) / 2, 0, 0.0)
        self._passed(steps)

    def decode(self) -> None:
        """Once every prompt is computed: jump from end to end, as ``_leap`` does."""
        replica, room, block_tokens = self.replica, self.room, self.block_tokens
        step, now_s, batch, context = self.step, self.now_s, self.batch, self.context
        self.ends.sort()
        for end, index, tokens in self.ends:
            steps = end - step
            if steps > 0:
                now_s += steps * replica.step_s(batch, context + batch * (steps - 1) / 2, 0, 0.0)
                step = end
                context += batch * steps
                if context + batch * block_tokens > room:
                    self.fits = False
            self.end_s[index] = now_s
            batch -= 1
            context -= tokens


def project(replica: Replica, sequences: Many[Sequence], enters_s: Many[float] = ()) -> Projection:
    """Project *sequences* to their last tokens: those in the engine, in the order of ``Replica.sequences``, then those
    that reach it in *enters_s* seconds (ascending).
    """
    walk = _Walk(replica, sequences, enters_s)
    walk.prefill()
    walk.decode()
    return Projection(walk.first_s, walk.end_s, [sequence.output_tokens for sequence in sequences], walk.fits)


def project_alone(replica: Replica, sequence: Sequence, enters_s: float) -> tuple[float, float]:
    """Seconds to the first and to the last token of *sequence* on an otherwise empty engine: lower bounds of both."""
    whole = sequence.prompt_tokens
    done, now_s = replica.cached_tokens_of(sequence), enters_s
    while done < whole:
        chunk = min(replica.limits.chunk_tokens, whole - done)
        now_s += replica.step_s(0, 0, chunk, chunk * (done + chunk / 2))
        done += chunk
    steps = sequence.output_tokens - 1
    return now_s, now_s + steps * replica.step_s(1, whole + (steps - 1) / 2, 0, 0.0)


def in_engine(replica: Replica) -> tuple[list[Sequence], list[float]]:
    """The live sequences of the engine, and the seconds until the last of them, still in transit, reach it."""
    there, enters_s = replica.sequences(), replica.arrives_in_s()
    inside = len(there) - len(enters_s)
    on_their_way = [(s, at_s) for s, at_s in zip(there[inside:], enters_s, strict=True) if s.state != ENDED]
    sequences = [s for s in there[:inside] if s.state != ENDED]
    return [*sequences, *(s for s, _ in on_their_way)], [at_s for _, at_s in on_their_way]
