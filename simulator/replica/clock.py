"""The clock a replica runs on: the simulator's virtual time (``run/kernel.py``) or an event loop (``emulator/``)."""

from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """The time, and calls at a later time."""

    @property
    def now_s(self) -> float:
        """The time, in seconds."""
        ...

    def at(self, when_s: float, act: Callable[[Any], None], argument: Any) -> None:
        """Call ``act(argument)`` at ``when_s``."""
        ...
