"""Everyone may come in; who has to wait is served in the order of priority, then of deadline, up to a bound."""

from dataclasses import dataclass

from router.core import Admit, Fleet, Forecast, Memory, Request, Shed


@dataclass(frozen=True, slots=True)
class Deadline:
    """``held_max``: requests of one model that may wait at the gateway; ``hold_s_max``: how long one may wait;
    ``patience_s``: the deadline of a request that has none, or a later one, so that it is not overtaken for ever.
    """

    held_max: int = 2_048
    hold_s_max: float = 30.0
    patience_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse bounds that mean nothing."""
        if self.held_max < 0 or self.hold_s_max < 0 or self.patience_s < 0:
            raise ValueError("deadline: held_max, hold_s_max and patience_s must not be negative")

    @property
    def rank_times(self) -> tuple[int, ...]:
        """The moments in a rank. No class variable: to a compiled dataclass it would be a field."""
        return (1, 2)

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit | Shed, Memory]:
        """Let everyone in, ranked by priority, then by when the first token is due, then by arrival."""
        due_s = min(request.first_token_due_s, request.arrived_s + self.patience_s)
        return Admit((request.priority, due_s, request.arrived_s)), memory


policy = Deadline
