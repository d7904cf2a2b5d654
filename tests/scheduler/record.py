"""Writes tests/golden/scheduler_worlds.json: ``python -m tests.scheduler.record WORLDS.json WALKS.json ENGINE``.

WALKS is what the engine's own scheduler did in WORLDS (``vllm_walk.py``). As many of the worlds are taken as keep the
file small, those with preemption before the others; of a walk, each request's first token, end and preemptions.
"""

import json
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent.parent / "golden" / "scheduler_worlds.json"
BYTES_MAX = 190_000


def record(worlds: list[dict[str, Any]], walks: list[dict[str, Any]], engine: str) -> None:
    """Choose, and write one world a line."""
    lines: dict[bool, list[str]] = {True: [], False: []}
    for world, walk in zip(worlds, walks, strict=True):
        happened = {name: [r["first"], r["end"], r["preemptions"]] for name, r in walk["requests"].items()}
        entry = {"world": world, "happened": happened}
        squeezed = any(preemptions for _, _, preemptions in happened.values())
        lines[squeezed].append(json.dumps(entry, separators=(",", ":")))
    chosen: list[str] = []
    for line in (line for pair in zip_longest(lines[True], lines[False]) for line in pair if line):
        if sum(map(len, chosen)) + len(line) > BYTES_MAX:
            break
        chosen.append(line)
    RECORD.write_text(f'{{"engine":{json.dumps(engine)},"worlds":[\n' + ",\n".join(chosen) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    record(*(json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3]), sys.argv[3])
