"""Which backends a request may be sent to, as one decision sees them, and the line in which it waits for them.

Must not depend on policies, nor on what is decided.
"""

from math import inf

import numpy as np

from router.core.arrays import Slots, frozen
from router.core.belief import Belief
from router.core.columns import DECODING, PREFILLING
from router.core.fleet import Fleet
from router.core.flight import Flight
from router.core.held_queue import HeldQueue, LineKey, Place
from router.core.holding import Holding, line_of
from router.core.ledger import Ledger
from router.core.types import Request


class Candidates:
    """Reads the ledger, the belief, how long prompts are and who waits; changes none of them.

    ``hold_s_max``: the admission policy's, which may be swapped.
    """

    __slots__ = ("_belief", "_holding", "_ledger", "_prompts")

    def __init__(self, ledger: Ledger, belief: Belief, holding: Holding) -> None:
        self._ledger = ledger
        self._belief = belief
        self._prompts = belief.prompts
        self._holding = holding

    def taking(self, request: Request) -> Slots:
        """Those whose context should hold the request; empty where none can. See ``Roster.taking``.

        Of them, a backend that is new and of an assumed kind gets no more than ``Belief.requests_max``, as long as
        another one is there.
        """
        slots = self._holding_it(request)
        return self._open(slots) if self._belief.assumed else slots

    def _holding_it(self, request: Request) -> Slots:
        least, most = self._prompts.bounds(request)
        slots = self._ledger.roster.taking(request, least, most)
        return self._allowed(request, slots) if request.among else slots

    def up(self, request: Request) -> bool:
        """Whether any backend that may be sent it is up, whatever its context."""
        pool = self._ledger.roster.pool(request.model)
        return len(self._allowed(request, pool) if request.among else pool) > 0

    def _allowed(self, request: Request, slots: Slots) -> Slots:
        """Those of the slots whose backends are among the only ones that the request may be sent to."""
        roster = self._ledger.roster
        found = [slot for slot in map(roster.slot, request.among) if slot is not None]
        return frozen(slots[np.isin(slots, found)])

    def _open(self, slots: Slots) -> Slots:
        """Those that may have one request more; all where none may."""
        there = slots.tolist()
        left = [slot for slot in there if self._in_flight(slot) < self._belief.requests_max(slot)]
        return frozen(np.array(left, dtype=np.intp)) if 0 < len(left) < len(there) else slots

    def _in_flight(self, slot: int) -> float:
        cells = self._ledger.table.cells
        return cells[PREFILLING][slot] + cells[DECODING][slot]

    def fleet(self, flight: Flight, slots: Slots, queue: HeldQueue | None, hold_s_max: float, now_s: float) -> Fleet:
        """These backends for this request; ``queue``: the requests for its model that wait, if any do."""
        hold_s = hold_s_max if flight.hold_until_s == inf else flight.hold_until_s - now_s
        if not self._holding and not self._holding.elsewhere:
            return Fleet(self._ledger, slots, now_s, hold_s=hold_s)
        others, first_rank = self._holding.competitors(queue, flight)
        if self._holding.elsewhere:
            model = flight.request.model
            others += self._holding.held_elsewhere(model)
            first_rank = min(filter(None, (first_rank, self._holding.first_elsewhere(model))), default=())
        return Fleet(self._ledger, slots, now_s, others, first_rank, hold_s)

    def untried(self, flight: Flight, hold_s_max: float, now_s: float) -> Fleet | None:
        """Those that take the request and that no attempt of it was sent to; None where there is none."""
        left = self._left(flight)
        left = self._open(left) if self._belief.assumed else left
        queue = self._holding.queue(flight.request.model)
        return self.fleet(flight, left, queue, hold_s_max, now_s) if len(left) else None

    def _left(self, flight: Flight) -> Slots:
        """Those that take a request and that no attempt of it was sent to."""
        slots = self._holding_it(flight.request)
        left = frozen(slots[~np.isin(slots, flight.tried)]) if flight.tried else slots
        return self.holding_more(left, flight.context_exceeded_tokens)

    def holding_more(self, slots: Slots, tokens: float) -> Slots:
        """Those of the slots whose context is longer than so many tokens; all for 0."""
        return self._ledger.roster.longer(slots, tokens) if tokens else slots

    def compete(self, one: Flight, other: Flight) -> bool:
        """Whether there is a backend that may be sent either of two requests."""
        if one.line[0] == other.line[0] and one.request.model == other.request.model:
            return True
        return self._room(one) & self._room(other) != 0

    def _room(self, flight: Flight) -> int:
        """The backends that a request may be sent to, a bit for each slot. Kept with the request: each decision about
        one that waits compares it with those of all other places.
        """
        of = (self._ledger.roster.version, flight.tried, flight.context_exceeded_tokens, flight.request.model)
        if flight.room_of != of:
            flight.room_of = of
            flight.room = sum([1 << slot for slot in self._left(flight).tolist()])
        return flight.room

    def line(self, flight: Flight) -> LineKey:
        """The line in which a request waits."""
        return line_of(flight.request.slo, self._place(flight))

    def _place(self, flight: Flight) -> Place:
        """What is equal of requests that the same backends may take, whichever of these are up or have a slow start:
        how many hold the prompt where not all do, an endpoint that some lack, the names of those allowed, and what has
        been tried.
        """
        request, roster = flight.request, self._ledger.roster
        pool = roster.pool(request.model)
        whole = self._allowed(request, pool) if request.among else pool
        left = len(self._left(flight))
        place: list[float | str] = [0.0 if left == len(whole) else float(left)]
        place.append(request.endpoint if roster.lacks(request.endpoint) else "")
        if request.among:
            place += sorted(set(request.among))
        place += [float(slot) for slot in sorted(set(flight.tried))]
        return tuple(place)
