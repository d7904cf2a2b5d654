"""What a scaling target is: its options as a config gives them, and the one method by which advice is applied.

Must not depend on any one target.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Advice:
    """How many replicas of a variant the SLO of one model needs; ``replicas`` is already within the config's bounds.

    ``running``: how many the config has now; ``why``: the reason, for people.
    """

    model: str
    variant: str
    replicas: int
    running: int
    why: str


class Outcome(Enum):
    """What became of one piece of advice."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"  # nothing to do since the last time
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of ``Target.apply``; ``reason`` is what the log says."""

    outcome: Outcome
    reason: str


class Target(ABC):
    """Where advice goes."""

    @abstractmethod
    async def apply(self, advice: Advice) -> Applied:
        """Apply the advice for one model and variant, in bounded time. It is called each round, changed or not; a
        failure is returned as ``Outcome.FAILED`` and not raised.
        """

    async def close(self) -> None:
        """Release what the target holds; nothing is applied afterwards."""
        return


class TargetSpec(BaseModel, ABC):
    """A target's options: the keys of ``autoscale.target`` beside ``name``. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def make(self, environment: Mapping[str, str]) -> Target:
        """The target. *environment*: for secrets. Raises ValueError saying what is missing there."""
