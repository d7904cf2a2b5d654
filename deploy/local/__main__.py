"""The command line: `python -m deploy.local install [NAME...]`, `python -m deploy.local up [NAME...]`."""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .catalog import ENGINES, GROUPS, EngineError, expand, home_folder
from .install import install
from .processes import Running, up


def main() -> int:
    """Do what the command line says; the exit status."""
    names = ", ".join([*GROUPS, *ENGINES])
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="Real engines, without a GPU.")
    parser.add_argument("verb", choices=["install", "up"], help="install: once; up: start them, end them with Ctrl-C")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {names}; none: all of them")
    arguments = parser.parse_args()
    for ending in (signal.SIGINT, signal.SIGTERM):  # a shell's background job would ignore Ctrl-C's signal
        signal.signal(ending, _interrupt)
    try:
        act = {"install": install, "up": run}[arguments.verb]
        act(expand(arguments.names), home_folder())
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def run(names: Sequence[str], home: Path) -> None:
    """Start the engines called *names*, print where they are, stay until interrupted."""
    print(f"Starting {', '.join(names)}; vLLM takes half a minute.", flush=True)
    with up(names, home) as started:
        print(table(started) + "\nCtrl-C ends all of them.", flush=True)
        watch(started)


def table(started: Sequence[Running]) -> str:
    """One line an engine: name, model, address, metrics, process, seconds to ready."""
    rows = [("engine", "model", "address", "metrics", "pid", "ready")]
    for each in started:
        engine, ready = each.engine, f"{each.ready_after_s:.1f} s"
        rows.append((engine.name, engine.model, engine.url, engine.metrics_url, str(each.process.pid), ready))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)) for row in rows)


def watch(started: Sequence[Running]) -> None:
    """Say it when an engine ends by itself; return when all have."""
    alive = list(started)
    while alive:
        for ended in [running for running in alive if not running.alive]:
            print(f"{ended.engine.name} ended with status {ended.process.returncode}; its log: {ended.log}", flush=True)
            alive.remove(ended)
        time.sleep(0.5)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
