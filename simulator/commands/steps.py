"""The command ``steps``: the simulator's scheduler over scheduler worlds, step by step."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from router.engines import Scheduler, find
from simulator.commands.shared import plain_errors
from simulator.replica.sequence import EngineLimits
from simulator.run.scheduler_worlds import read_worlds
from simulator.run.stepping import step_line, walk_world


def run(options: Namespace) -> None:
    """Walk every world; print its steps, or write what happened."""
    with plain_errors():
        worlds = read_worlds(options.worlds, _started_as(options.engine))
        chosen = range(len(worlds)) if options.world is None else [options.world]
        if options.world is not None and options.world >= len(worlds):
            raise ValueError(f"{options.worlds}: there are worlds 0 to {len(worlds) - 1}, no world {options.world}")
        documents = []
        for number in chosen:
            walk = walk_world(worlds[number], options.coalesced)
            documents.append(walk.document())
            if not options.quiet and options.json is None:
                _print(number, walk.document()["requests"], [step_line(step) for step in walk.steps])
        if options.json is not None:
            _write(options.json, documents)


def _started_as(engine: str) -> EngineLimits:
    """What an engine of that kind and version does where a world does not state it."""
    kind = find(engine)
    return EngineLimits(no_evict=kind.scheduler is Scheduler.NO_EVICT, reserve_prompt=kind.reserves_prompt)


def _print(number: int, requests: dict[str, Any], lines: list[str]) -> None:
    sys.stdout.write(f"world {number}\n")
    sys.stdout.writelines(f"{line}\n" for line in lines)
    for name, happened in requests.items():
        sys.stdout.write(f"  {name}: " + ", ".join(f"{what} {value:g}" for what, value in happened.items()) + "\n")


def _write(path: Path, documents: list[dict[str, Any]]) -> None:
    text = json.dumps(documents, allow_nan=False)
    if str(path) == "-":
        sys.stdout.write(text + "\n")
    else:
        path.write_text(text, encoding="utf-8")
