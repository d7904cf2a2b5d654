"""A second engine, written the slow way, to hold the simulator's against: a list of requests, a loop over steps.

Every step visits every request, every block is an object, time is a running sum. It shares nothing with
`simulator.replica.replica` but the truth's numbers.
"""

from dataclasses import dataclass, field

from simulator.replica.sequence import EngineLimits
from simulator.replica.truth import Drift, Truth


@dataclass(eq=False)
class Job:
    """One request: what it asks, and what became of it."""

    name: str
    at_s: float
    prompt: int
    output: int
    priority: int = 0
    leaves_s: float = float("inf")
    done: int = 0  # tokens in KV
    made: int = 0  # tokens generated
    caught_up: bool = False  # whether all it has said is in KV but the last token: it decodes
    blocks: list[int] = field(default_factory=list)
    first_s: float = float("nan")
    end_s: float = float("nan")


class PlainBlocks:
    """vLLM's block pool, one block at a time: what is in it by key, and the free ones in the order of their use."""

    def __init__(self, total: int, caching: bool) -> None:
        self.caching = caching
        self.free: list[int] = list(range(total))
        self.keys: dict[int, object] = {}
        self.holding: dict[object, list[int]] = {}

    def take(self) -> int:
        """The next free block, which forgets what was in it."""
        block = self.free.pop(0)
        if block in self.keys:
            key = self.keys.pop(block)
            self.holding[key].remove(block)
        return block

    def fill(self, block: int, key: object) -> None:
        """It is full, of this."""
        if self.caching and block not in self.keys:
            self.keys[block] = key
            self.holding.setdefault(key, []).append(block)

    def give(self, blocks: list[int]) -> None:
        """Back, the last of them first; full ones are used after all that were free before."""
        for block in reversed(blocks):
            if block in self.keys:
                self.free.append(block)
        self.free[:0] = [block for block in reversed(blocks) if block not in self.keys]

    def find(self, keys: list[object]) -> list[int]:
        """Blocks that hold the first of these keys, as far as there are any."""
        found = []
        for key in keys:
            if not self.holding.get(key):
                break
            found.append(self.holding[key][0])
        return found


@dataclass
class PlainEngine:
    """vLLM V1's scheduler over explicit steps; no text is shared, but a preempted job finds its own blocks."""

    truth: Truth
    limits: EngineLimits

    def run(self, jobs: list[Job]) -> list[Job]:
        """Fill in ``first_s`` and ``end_s`` of every job that is served."""
        self.roof = self.truth.roof_s(self.limits.chunk_tokens)
        self.base = self.truth.decode_base_s(self.limits.seqs_max)
        self.drift = Drift(self.truth)
        self.blocks = PlainBlocks(self.limits.kv_blocks, self.limits.prefix_caching)
        self.coming = sorted(jobs, key=lambda job: job.at_s)
        self.order = {id(job): n for n, job in enumerate(self.coming)}
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        now_s = 0.0
        while self.coming or self.waiting or self.running:
            if not self.waiting and not self.running:
                now_s = max(now_s, self.coming[0].at_s)
            self._arrive(now_s)
            now_s += self._step(now_s)
        return jobs

    def _arrive(self, now_s: float) -> None:
        while self.coming and self.coming[0].at_s <= now_s:
            self.waiting.append(self.coming.pop(0))
        for job in [*self.running, *self.waiting]:
            if job.leaves_s <= now_s:
                self._free(job)
        self.running = [job for job in self.running if job.leaves_s > now_s]
        self.waiting = sorted((job for job in self.waiting if job.leaves_s > now_s), key=self._rank)

    def _rank(self, job: Job) -> tuple[int, int]:
        return (job.priority if self.limits.priority else 0, self.order[id(job)])

    def _free(self, job: Job) -> None:
        self.blocks.give(job.blocks)
        job.blocks = []

    def _grow(self, job: Job, tokens: int) -> bool:
        size = self.limits.block_tokens
        need = -(-(job.done + tokens) // size) - len(job.blocks)
        if need > len(self.blocks.free):
            return False
        job.blocks += [self.blocks.take() for _ in range(need)]
        for n in range((job.done + tokens) // size):
            self.blocks.fill(job.blocks[n], (job.name, n))
        return True

    def _step(self, now_s: float) -> float:
        """vLLM's schedule: running, then waiting; then the time it takes."""
        self.chosen: dict[str, tuple[Job, int]] = {}
        self.budget, self.squeezed = self.limits.chunk_tokens, False
        for job in list(self.running):
            if job in self.running and self.budget > 0 and not self._serve(job):
                break
        self._admit()
        took_s = self._seconds(now_s, list(self.chosen.values()))
        for job, tokens in self.chosen.values():
            self._advance(job, tokens, now_s + took_s)
        return took_s

    def _serve(self, job: Job) -> bool:
        """False: it had to preempt itself, and those after it wait for the next step."""
        tokens = min(job.prompt + job.made - job.done, self.budget)
        while not self._grow(job, tokens):
            self.squeezed = True
            victim = max(self.running, key=self._rank) if self.limits.priority else self.running[-1]
            self.running.remove(victim)
            self._free(victim)
            victim.done, victim.caught_up = 0, False
            self.budget += self.chosen.pop(victim.name, (victim, 0))[1]
            self.waiting = sorted([victim, *self.waiting], key=self._rank)
            if victim is job:
                return False
        self.chosen[job.name] = (job, tokens)
        self.budget -= tokens
        return True

    def _admit(self) -> None:
        size = self.limits.block_tokens
        while self.waiting and self.budget > 0 and len(self.running) < self.limits.seqs_max and not self.squeezed:
            job = self.waiting[0]
            whole = job.prompt + job.made
            found = self.blocks.find([(job.name, n) for n in range((whole - 1) // size)])
            if -(-whole // size) > len(self.blocks.free):
                return
            self.blocks.free = [block for block in self.blocks.free if block not in found]
            job.blocks, job.done = found, len(found) * size
            tokens = min(whole - job.done, self.budget)
            self._grow(job, tokens)
            self.running.append(self.waiting.pop(0))
            self.chosen[job.name] = (job, tokens)
            self.budget -= tokens

    def _seconds(self, now_s: float, work: list[tuple[Job, int]]) -> float:
        if not work and not self.squeezed:
            return 0.0
        decoding = [job for job, _ in work if job.caught_up]
        chunks = [(job.done, tokens) for job, tokens in work if job not in decoding]
        stages = self.truth.coefficients.stages
        spread = -(-len(decoding) // stages)
        n = sum(tokens for _, tokens in chunks)
        seconds = self.base[len(decoding)] + self.roof[spread + n] - self.roof[spread]
        seconds += self.truth.context_s * sum(job.done + 1 for job in decoding)
        seconds += self.truth.prompt_token_s() * n
        seconds += self.truth.pair_s * sum(tokens * (before + tokens / 2) for before, tokens in chunks)
        self.drift.move(now_s)
        return seconds * self.drift.factor

    def _advance(self, job: Job, tokens: int, end_s: float) -> None:
        job.done += tokens
        if job.done < job.prompt + job.made:
            return
        job.made, job.caught_up = job.made + 1, True
        if job.made == 1:
            job.first_s = end_s
        if job.made == job.output:
            job.end_s = end_s
            self._free(job)
            self.running.remove(job)
