"""One engine's morning, event by event: what the scheduler did is what it did when this was written and looked at."""

from pathlib import Path

from router.core.physics import StepCoefficients
from simulator.replica.replica import Replica
from simulator.replica.sequence import EngineLimits, Sequence
from simulator.replica.truth import EXACT, true_of
from simulator.run.kernel import Kernel

GOLDEN = Path(__file__).parent.parent / "golden" / "one_engine.txt"
STEP = StepCoefficients(0.010, 0.0001, 1e-6, 0.0002, 0.0, 0.0)


def morning() -> str:
    """Eight requests, 12 blocks of 16 tokens: chunks, a shared prefix, a preemption, a client who leaves."""
    kernel, lines = Kernel(), []

    def heard(what: str, sequence: Sequence) -> None:
        state = f"running {replica.running} waiting {replica.waiting} kv {replica.kv_usage():.0%}"
        lines.append(f"{kernel.now_s:8.4f} {sequence.id:<7} {what:<11} {state}")

    limits = EngineLimits(seqs_max=3, chunk_tokens=48, block_tokens=16, kv_blocks=12)
    replica = Replica(
        "r",
        true_of(STEP, EXACT, 0, "r"),
        limits,
        kernel,
        lambda s: heard("first token", s),
        lambda s: heard("finished", s),
    )
    shared = ("system", "tools")
    asked = [
        (0.00, Sequence("long", 100, 40)),
        (0.00, Sequence("short", 10, 3)),
        (0.01, Sequence("first", 40, 30, prefix=shared, unit_tokens=16)),
        (0.40, Sequence("second", 40, 5, prefix=shared, unit_tokens=16)),
        (0.41, Sequence("quick", 5, 1)),
        (0.42, Sequence("grows", 20, 60)),
        (0.43, Sequence("leaves", 30, 60)),
        (1.50, Sequence("third", 48, 2, prefix=shared, unit_tokens=16)),
    ]
    for at_s, sequence in asked:
        kernel.at(at_s, lambda pair: replica.add(*pair), (sequence, at_s))
    kernel.at(0.9, replica.drop, asked[6][1])
    kernel.run()
    lines.append(f"preemptions {replica.preemptions}, cached {replica.cached_tokens}, steps {replica.steps}")
    return "\n".join(lines) + "\n"


def test_one_engines_morning_reads_as_it_did() -> None:
    """Rewrite tests/golden/one_engine.txt only after reading what changed and why."""
    assert morning() == GOLDEN.read_text()
