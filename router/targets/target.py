"""What a scaling target is: its options as a config gives them, how it applies advice, what it can observe.

Must not depend on any one target.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Advice:
    """How many replicas of a variant the SLO of one model needs; ``replicas`` is already within the config's bounds.

    ``running``: how many there are now, those that are starting included; ``why``: the reason, for people; ``drain``:
    which of them to end first where there are fewer, by the names of their backends: those that have least to do.
    """

    model: str
    variant: str
    replicas: int
    running: int
    why: str
    drain: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Replicas:
    """The replicas of a variant that there really are: ``ready`` ones serve, ``starting`` ones are ordered and do not
    serve yet. ``ready_stated``: False where it is not known which of them serve, and all count as ready.
    """

    ready: int
    starting: int = 0
    ready_stated: bool = True


class Outcome(Enum):
    """What became of one piece of advice."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"  # nothing to do since the last time
    FAILED = "failed"
    WAITING = "waiting"  # the last attempt failed, and the next one is not due yet


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

    async def tend(self) -> None:
        """Go on with what was begun, also by an earlier autoscaler. Called each round, before any advice, where this
        autoscaler is the one that applies; it never raises.
        """
        return

    async def stand_by(self, decided: Sequence[Advice] | None, age_s: float) -> None:
        """Another autoscaler applies advice, or has applied some since the last call here: nothing that was applied
        here before is known to stand. Called each round where another applies; it never raises.

        *decided*: what that one advised ``age_s`` ago (None: this one has no way to read it).
        """
        return

    async def observe(self, model: str, variant: str) -> Replicas | None:
        """The replicas of a variant that serve a model; None: this target cannot observe them, or has none by that
        name. In bounded time. Raises NotObserved when they could not be read this time.
        """
        return None

    async def close(self) -> None:
        """Release what the target holds; nothing is applied afterwards."""
        return


class TargetSpec(BaseModel, ABC):
    """A target's options: the keys of ``autoscale.target`` beside ``name``. An unknown key is an error.

    ``acts``: whether replicas are started and ended by what it does, now or when somebody calls it.
    """

    acts: ClassVar[bool] = True

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def make(self, environment: Mapping[str, str]) -> Target:
        """The target. *environment*: for secrets. Raises ValueError saying what is missing there."""
