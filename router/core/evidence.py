"""What an outcome says of an engine's pace and of reply lengths, as routers send it to each other.

Peers get what was measured, not what was concluded from it: each router folds every outcome in once, its own when it
comes and a peer's when it arrives, and none is passed on. So beliefs merge by evidence: an outcome weighs the same
wherever it was seen, nothing comes back as news, and what is lost is an outcome less. Where there is much traffic every
router sees enough itself: a budget for each period keeps what is sent from growing with it. Must not depend on how a
belief is formed, nor on how messages travel.
"""

from dataclasses import dataclass
from typing import Final

from router.core.types import Fact

OUTCOMES_A_PERIOD: Final = 256  # that a router gets from all its peers together
OUTCOMES_A_BACKEND: Final = 8  # of one backend, that a router sends in a period
REPLIES_A_PERIOD: Final = 128  # lengths, likewise of all peers together
OUTCOMES_A_MESSAGE: Final = 64
REPLIES_A_MESSAGE: Final = 64


@dataclass(frozen=True, slots=True)
class Outcome(Fact):
    """What a first token, or the tokens of a reply after it, took on a backend: ``terms``, what they should take term
    by term at factor 1 by the data sheet whose digest is ``sheet``, then ``constant_s``, and ``log_variance`` of that
    by chance; see ``Regression.update``. ``metric`` and ``band`` are those of ``columns.py``.
    """

    backend: str
    sheet: int
    metric: int
    band: int
    actual_s: float
    constant_s: float
    log_variance: float
    terms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ReplyLength(Fact):
    """How long a reply was, and the cap that it ran under (0: none)."""

    model: str
    slo_class: str
    tokens: int
    cap: int


class SharedEvidence:
    """Outcomes that peers have not been sent, within the budget of a period; nothing until there is a first one."""

    __slots__ = ("_by_slot", "_outcomes", "_replies", "outcomes_left", "replies_left")

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []
        self._replies: list[ReplyLength] = []
        self._by_slot: dict[int, int] = {}
        self.outcomes_left = self.replies_left = 0

    def renew(self, peers: int) -> None:
        """A period begins, with so many peers: together they send no more than one alone would."""
        self._by_slot.clear()
        self.outcomes_left = OUTCOMES_A_PERIOD // peers if peers else 0
        self.replies_left = REPLIES_A_PERIOD // peers if peers else 0

    def has_room(self, slot: int) -> bool:
        """Whether an outcome of the backend in a slot would be sent."""
        return self.outcomes_left > 0 and self._by_slot.get(slot, 0) < OUTCOMES_A_BACKEND

    def add(self, slot: int, outcome: Outcome) -> None:
        """Peers are to have it."""
        self._by_slot[slot] = self._by_slot.get(slot, 0) + 1
        self.outcomes_left -= 1
        self._outcomes.append(outcome)

    def add_reply(self, reply: ReplyLength) -> None:
        """Peers are to have it, if there is a budget for it."""
        if self.replies_left > 0:
            self.replies_left -= 1
            self._replies.append(reply)

    def __bool__(self) -> bool:
        return bool(self._outcomes or self._replies)

    def take(self) -> tuple[tuple[Outcome, ...], tuple[ReplyLength, ...]]:
        """As much as one message may have; the rest comes with the next."""
        outcomes, replies = self._outcomes[:OUTCOMES_A_MESSAGE], self._replies[:REPLIES_A_MESSAGE]
        del self._outcomes[:OUTCOMES_A_MESSAGE], self._replies[:REPLIES_A_MESSAGE]
        return tuple(outcomes), tuple(replies)
