"""A walk of the simulator's scheduler over a scheduler world: what it decides in each step, or only what came of it.

Must not depend on routers, policies or step times: every step takes one unit of time.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from router.core.physics import StepCoefficients
from simulator.replica.replica import Replica
from simulator.replica.sequence import Sequence
from simulator.replica.truth import EXACT, true_of
from simulator.run.kernel import Kernel
from simulator.run.scheduler_worlds import SchedulerWorld

STEPS_MAX: Final = 20_000
"""After the last arrival: a request that can never be served would be walked for ever."""

_UNIT: Final = true_of(StepCoefficients(1.0, 0.0, 0.0, 0.0, 0.0, 0.0), EXACT, 0, "unit")


@dataclass(slots=True)
class Step:
    """A step as it was decided: when it ends, and what it gives to whom."""

    ends: float
    tokens: dict[str, int]
    decoding: list[str]
    prefilling: list[str]  # id:tokens, and how many of its text were in KV before
    running: int
    waiting: int
    preempted: list[str]
    blocks: int


@dataclass(slots=True)
class Walk:
    """What happened in a world: by request ``first`` (of any choice), ``end`` (of all) and ``preemptions``, or when it
    was ``refused``; and the steps (stepwise walks), by sequence: of several choices ``0_ID``, ``1_ID``, ...
    """

    requests: dict[str, dict[str, float]]
    steps: list[Step] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """In the form in which a real engine's walk is written: without steps in which nobody has a token."""
        steps = [[step.ends, step.tokens] for step in self.steps if step.tokens]
        return {"requests": self.requests, "steps": steps}


class _Times:
    """The time of a world, a float to which each step adds 1, as a real engine's walk counts it.

    The replica runs on whole numbers, so that both walks decide alike at which step's end an arrival is seen.
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._after = [0.0]

    def start(self, at: float, clock: float) -> None:
        """A busy period begins *at* this time; the replica's clock shows *clock*."""
        self._started, self._after = clock, [at]

    def of(self, clock: float) -> float:
        """The time at *clock*."""
        steps = round(clock - self._started)
        while len(self._after) <= steps:
            self._after.append(self._after[-1] + 1.0)
        return self._after[steps]

    def seen(self, at: float) -> float:
        """The clock when an arrival *at* this time is seen."""
        clock = self._started
        while self.of(clock) < at:
            clock += 1.0
        return clock


class _Walker:
    """One world under way."""

    def __init__(self, world: SchedulerWorld, coalesce: bool) -> None:
        self.world, self.coalesce = world, coalesce
        self.times, self.kernel = _Times(), Kernel()
        self.result = Walk({})
        self.replica = Replica(
            "world", _UNIT, world.limits, self.kernel, self._first, self._finished, coalesce=coalesce
        )
        self._preemptions: dict[str, int] = {}
        self._sequences: list[Sequence] = []
        self._of: dict[str, str] = {}  # the request of each sequence

    def walk(self) -> Walk:
        """Every request, until the last has ended."""
        replica, times = self.replica, self.times
        for request in self.world.requests:
            seen = times.seen(request.at) if self._busy() else 0.0
            if self._busy():
                self._run(seen - 1.0)
            sequences = request.sequences()
            if replica.refuses(len(sequences)):
                self.result.requests[request.id] = {"refused": request.at}
                continue
            if not self._busy():
                seen = self.kernel.now_s + 2.0
                times.start(request.at, seen)
            self.result.requests[request.id] = {}
            self._sequences += sequences
            for sequence in sequences:
                self._of[sequence.id] = request.id
                replica.add(sequence, seen)
        self._run(self.kernel.now_s + STEPS_MAX)
        return self.result

    def _busy(self) -> bool:
        replica = self.replica
        return bool(replica.running or replica.waiting_max)

    def _run(self, until: float) -> None:
        """Run what is due up to and including *until*."""
        kernel = self.kernel
        if self.coalesce:
            kernel.run_until(until)
            return
        while kernel.next_s <= until and self._busy():
            kernel.run_until(kernel.next_s)
            self._note()
        if kernel.now_s < until and self._busy():
            kernel.run_until(until)

    def _note(self) -> None:
        """Write down the step that begins."""
        replica = self.replica
        scheduled = replica.scheduled()
        preempted = [s.id for s in self._sequences if s.preemptions > self._preemptions.get(s.id, 0)]
        for sequence in self._sequences:
            self._preemptions[sequence.id] = sequence.preemptions
        if not scheduled and not preempted:
            return
        chunks = {s.id: (n, s.computed - n) for s, n in scheduled if not s.decodes}
        self.result.steps.append(
            Step(
                self.times.of(self.kernel.now_s + 1.0),
                {s.id: n for s, n in scheduled},
                [s.id for s, _ in scheduled if s.decodes],
                [f"{name}:{n}@{before}" for name, (n, before) in chunks.items()],
                replica.running,
                replica.waiting,
                preempted,
                round(replica.kv_usage() * self.world.limits.kv_blocks),
            )
        )

    def _first(self, sequence: Sequence) -> None:
        self.result.requests[self._of[sequence.id]].setdefault("first", self.times.of(self.kernel.now_s))

    def _finished(self, sequence: Sequence) -> None:
        happened = self.result.requests[self._of[sequence.id]]
        before = happened.get("preemptions", 0)
        happened |= {"end": self.times.of(self.kernel.now_s), "preemptions": before + sequence.preemptions}


def walk_world(world: SchedulerWorld, coalesce: bool) -> Walk:
    """What our scheduler does in *world*: every step, or (*coalesce*) as a replay runs it, many steps at once."""
    return _Walker(world, coalesce).walk()


def step_line(step: Step) -> str:
    """One line for people."""
    parts = [f"{step.ends:10.3f}", f"blocks {step.blocks:<4} running {step.running:<3} waiting {step.waiting:<3}"]
    for name, who in (("decode", step.decoding), ("prefill", step.prefilling), ("preempted", step.preempted)):
        if who:
            parts.append(f"{name} {' '.join(who)}")
    return "  ".join(parts)
