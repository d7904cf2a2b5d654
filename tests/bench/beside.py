"""This build beside another one, in turn, in one run: ``python -m tests.bench.beside OTHER [--rounds 3] [FIGURE ...]``.

OTHER: a tree with an environment of its own in ``.venv``, compiled. Prints for each figure of ``figures.py`` the least
of both over the rounds, and what this build takes of the other's CPU time.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parents[2]
SCRIPT: Final = Path(__file__).with_name("figures.py")


def figures(tree: Path, wanted: Sequence[str]) -> dict[str, float]:
    """The figures of the build in one tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [tree / ".venv" / "bin" / "python", "-P", SCRIPT, *wanted]
    told = subprocess.run(command, env=environment, cwd=tree, check=True, stdout=subprocess.PIPE).stdout
    return {name: float(value) for name, value in json.loads(told.splitlines()[-1]).items()}


def table(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]) -> str:
    """One line a figure."""
    lines = [f"{'CPU us':22s}{'this':>9s}{'other':>9s}{'this/other':>12s}"]
    for name in ours[0]:
        this, other = (min(each[name] for each in rounds) for rounds in (ours, theirs))
        lines.append(f"{name:22s}{this:9.2f}{other:9.2f}{this / other:12.2f}")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("figure", nargs="*", help="words of those wanted; all without")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ours, theirs = [], []
    for _ in range(options.rounds):
        theirs.append(figures(options.other.resolve(), options.figure))
        ours.append(figures(HERE, options.figure))
    print(table(ours, theirs))


if __name__ == "__main__":
    main()
