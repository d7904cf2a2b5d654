"""A scaling target in one file, as ``router/targets`` wants it: a line in a file for each piece of advice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from router.targets.target import Advice, Applied, Outcome, Target, TargetSpec


class ToySpec(TargetSpec):
    """``file``: where the lines go."""

    file: Path

    def make(self, environment: Mapping[str, str]) -> Target:
        return Toy(self.file)


class Toy(Target):
    """Appends."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def apply(self, advice: Advice) -> Applied:
        with self._file.open("a") as file:
            file.write(f"{advice.variant}={advice.replicas}\n")
        return Applied(Outcome.APPLIED, "written")


SPEC: Final = ToySpec
