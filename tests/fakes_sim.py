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


@dataclass
class PlainEngine:
    """vLLM V1's scheduler over explicit steps; no prefix cache."""

    truth: Truth
    limits: EngineLimits

    def run(self, jobs: list[Job]) -> list[Job]:
        """Fill in ``first_s`` and ``end_s`` of every job that is served."""
        self.roof = self.truth.roof_s(self.limits.chunk_tokens)
        self.base = self.truth.decode_base_s(self.limits.seqs_max)
        self.drift = Drift(self.truth)
        self.free = list(range(self.limits.kv_blocks))
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
        self.free += job.blocks
        job.blocks = []

    def _grow(self, job: Job, tokens: int) -> bool:
        need = -(-(job.done + tokens) // self.limits.block_tokens) - len(job.blocks)
        if need > len(self.free):
            return False
        job.blocks += [self.free.pop() for _ in range(need)]
        return True

    def _step(self, now_s: float) -> float:
        """vLLM's schedule: running, then waiting; then the time it takes."""
        self.chosen: dict[str, tuple[Job, int]] = {}
        self.budget, self.squeezed = self.limits.chunk_tokens, False
        for job in list(self.running):
            if job in self.running and self.budget > 0:
                self._serve(job)
        self._admit()
        took_s = self._seconds(now_s, list(self.chosen.values()))
        for job, tokens in self.chosen.values():
            self._advance(job, tokens, now_s + took_s)
        return took_s

    def _serve(self, job: Job) -> None:
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
                return
        self.chosen[job.name] = (job, tokens)
        self.budget -= tokens

    def _admit(self) -> None:
        while self.waiting and self.budget > 0 and len(self.running) < self.limits.seqs_max and not self.squeezed:
            job = self.waiting[0]
            tokens = min(job.prompt + job.made - job.done, self.budget)
            if not self._grow(job, tokens):
                return
            self.running.append(self.waiting.pop(0))
            self.chosen[job.name] = (job, tokens)
            self.budget -= tokens

    def _seconds(self, now_s: float, work: list[tuple[Job, int]]) -> float:
        if not work:
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
