"""This build beside another one, in turn, in one run: ``python -m tests.bench.beside OTHER [FIGURE ...]``.

OTHER: a tree with an environment of its own in ``.venv``, compiled. Prints for each figure of ``figures.py`` the least
of each build, and what this build takes of the other's CPU time: of the least, and the median over pairs of rounds.
"""

import argparse
import os
import subprocess
from pathlib import Path
from statistics import median
from typing import Final

from tests.bench.figures import FIGURES

HERE: Final = Path(__file__).parents[2]
SCRIPT: Final = Path(__file__).with_name("figures.py")


class Build:
    """A process that measures the build in one tree."""

    def __init__(self, tree: Path) -> None:
        command = [str(tree / ".venv" / "bin" / "python"), "-P", str(SCRIPT)]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        pipe = subprocess.PIPE
        self.tree = tree
        self.process = subprocess.Popen(command, env=environment, cwd=tree, stdin=pipe, stdout=pipe, text=True)

    def measure(self, figure: str) -> float:
        """One round. EOFError: the build cannot be measured."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(figure, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise EOFError(f"{self.tree} has no {figure}")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("figure", nargs="*", help="words of those wanted; all without")
    options = parser.parse_args()
    this, other = Build(HERE), Build(options.other.resolve())
    print(f"{'CPU us':22s}{'this':>9s}{'other':>9s}{'this/other':>12s}{'in pairs':>10s}")
    for name, (rounds, _) in FIGURES.items():
        if not options.figure or any(word in name for word in options.figure):
            pairs = [(this.measure(name), other.measure(name)) for _ in range(rounds)]
            least, least_other = (min(side) for side in zip(*pairs, strict=True))
            ratio = median(one / two for one, two in pairs)
            print(f"{name:22s}{least:9.2f}{least_other:9.2f}{least / least_other:12.2f}{ratio:10.2f}", flush=True)
    this.close()
    other.close()


if __name__ == "__main__":
    main()
