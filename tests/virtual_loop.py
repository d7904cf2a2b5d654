"""An emulated engine on the simulator's clock: the parts of an event loop that it uses, and a client of its tokens."""

from collections.abc import Callable
from typing import Any

from simulator.replica.sequence import Sequence
from simulator.run.kernel import Kernel


class Silent:
    """Receives an emulated engine's tokens and ignores them."""

    def first(self) -> None: ...

    def token(self) -> None: ...

    def last(self, sequence: Sequence) -> None: ...


class VirtualLoop:
    """What an emulated engine needs of an event loop, on the simulator's clock."""

    def __init__(self) -> None:
        self.kernel = Kernel()

    def time(self) -> float:
        return self.kernel.now_s

    def call_at(self, when_s: float, act: Callable[[Any], None], argument: Any) -> None:
        self.kernel.at(when_s, act, argument)
