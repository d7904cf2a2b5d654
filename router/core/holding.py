"""The requests held at the gateway: when each is decided again, and in which order.

A held request is decided again when room may have appeared and at the time that its policy set, at the end of its hold
at the latest. The order is that of ``HeldQueue``: ranks, in lines that do not block each other. The decision itself is
the dispatcher's, which passes in ``decide``. A request for which the next room is reserved stands in the way of those
alone that some backend of its own could serve. What peers hold is part of the same order (``held_lines.py``). Must not
depend on policies, forecasts or backends.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from math import inf, log
from typing import Final

from router.core.decisions import Command
from router.core.flight import Flight
from router.core.held_lines import LOOK_S, YIELD_S, HeldLine, PeersHeld, first_lines, ticket_of
from router.core.held_queue import HeldQueue, LineKey, Place, Rank
from router.core.lifecycle import State
from router.core.timers import Due, Timers
from router.core.types import RequestId, Slo

BOUND_STEP: Final = 0.05  # of the log of a bound: requests whose bounds are as near as that are served in one line
BOUND_S_MIN: Final = 1e-9
SHARED_PLACE: Final = 2  # values in the place of a request that any backend of its model may serve
LOOK_AHEAD: Final = 16  # lines of held requests, and other models, looked at whenever room may have appeared
Decide = Callable[[Flight, HeldQueue, float, list[Command]], bool]
"""Decide one held request again, add the commands, and return whether it is no longer held."""
Competes = Callable[[Flight, Flight], bool]
"""Whether there is a backend that may be sent either of two requests."""
Beside = Callable[[str], Collection[str]]
"""The models that some backend of this one serves too."""
PoolDigest = Callable[[str], int]
"""A number by which routers see whether they may send a model's requests to the same backends; 0: to none."""


class Holding:
    """One queue per model. ``flights`` has every held request among others; ``timers`` wake it; ``elsewhere``: what
    peers hold.
    """

    def __init__(
        self,
        flights: Mapping[RequestId, Flight],
        timers: Timers,
        decide: Decide,
        competes: Competes,
        beside: Beside,
        pool: PoolDigest,
        elsewhere: PeersHeld,
    ) -> None:
        self._flights = flights
        self._timers = timers
        self._decide = decide
        self._competes = competes
        self._beside = beside
        self._pool = pool
        self._queues: dict[str, HeldQueue] = {}
        self._reserving: set[RequestId] = set()  # for which the next room is, and some that are held no longer
        self._freed = 0  # how many of them were decided, and are held no longer
        self.elsewhere = elsewhere

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __bool__(self) -> bool:
        return bool(self._queues)

    def queue(self, model: str) -> HeldQueue | None:
        """The held requests for a model; None where there are none."""
        return self._queues.get(model)

    # -- add, remove ---------------------------------------------------------------------------------------------

    def add(self, flight: Flight, line: LineKey, until_s: float, alone: bool) -> None:
        """Hold a request in a line until its ``hold_until_s``, to be decided again at *until_s* at the latest."""
        request = flight.request
        queue = self._queues.setdefault(request.model, HeldQueue())
        flight.line = queue.push(flight.rank, request.id, line)
        flight.ask_again_s = flight.yields_until_s = inf
        self.reserve(flight, alone)
        self._timers.set(flight.hold_until_s, request.id, 0, Due.ASK_HELD)
        self.ask_again(flight, until_s)

    def reserve(self, flight: Flight, alone: bool) -> None:
        """Whether the next room belongs to a held request (see ``Hold.alone``)."""
        flight.alone = alone
        if alone:
            self._reserving.add(flight.request.id)
        elif self._reserving:
            self._reserving.discard(flight.request.id)

    def ask_again(self, flight: Flight, until_s: float) -> None:
        """Set the held request's timer, unless an earlier one is set."""
        when_s = min(until_s, flight.hold_until_s)
        if when_s < flight.ask_again_s and when_s < flight.hold_until_s:
            flight.ask_again_s = when_s
            self._timers.set(when_s, flight.request.id, 0, Due.ASK_HELD)

    def remove(self, flight: Flight, now_s: float) -> None:
        """Take a request out of its queue, if it is there; the new head of its line gets a timer of its own."""
        queue = self._queues.get(flight.request.model)
        if queue is None or flight.request.id not in queue:
            return
        queue.discard(flight.request.id)
        if not queue:
            del self._queues[flight.request.model]
            return
        first = queue.first_of(flight.line)
        if first is not None:
            self.ask_again(self._flights[first], now_s)

    def keeper(self, queue: HeldQueue | None, flight: Flight) -> Flight | None:
        """The held request before this one in rank to which the next room belongs (see ``Hold.alone``), where that
        could be this one's too; *queue*: that of its model.
        """
        if not self._reserving:
            return None
        for request_id in queue.heads(LOOK_AHEAD) if queue is not None else ():
            held = self._flights[request_id]
            if held is flight or held.rank > flight.rank:
                break
            if held.alone and self._competes(held, flight):
                return held
        return self._keeper_beside(flight)

    def _keeper_beside(self, flight: Flight) -> Flight | None:
        """The same among those for other models, which the same backends may serve."""
        found: Flight | None = None
        for request_id in tuple(self._reserving):
            held = self._flights.get(request_id)
            if held is None or held.state is not State.HELD:
                self._reserving.discard(request_id)
            elif (
                held.request.model != flight.request.model
                and _is_before(held, flight)
                and (found is None or _is_before(held, found))
                and self._competes(held, flight)
            ):
                found = held
        return found

    # -- what peers hold ---------------------------------------------------------------------------------------

    def lines(self, times: tuple[int, ...]) -> tuple[HeldLine, ...]:
        """What is held here, for peers. Lines of requests that some backends have failed, or that a client sends to
        backends that it names, are this router's own affair, and so is what it may send nowhere now.
        """
        return first_lines(
            [
                HeldLine(
                    model, line[0], line[1], count, ranks, times, self._flights[first].alone, ticket_of(first), pool
                )
                for model, queue in self._queues.items()
                if (pool := self._pool(model))
                for line, count, ranks, first in queue.summaries()
                if len(line[0]) == SHARED_PLACE and len(ranks[0]) == len(ranks[-1])
            ]
        )

    def held_elsewhere(self, model: str) -> int:
        """How many requests for a model peers hold for the backends that this router may send them to."""
        return self.elsewhere.count(model, self._pool(model)) if self.elsewhere else 0

    def first_elsewhere(self, model: str) -> Rank:
        """The rank of the first of those; () where there is none."""
        return self.elsewhere.first_rank(model, self._pool(model)) if self.elsewhere else ()

    def ahead_elsewhere(self, flight: Flight) -> int:
        """How many of those are in the line of a request and before it."""
        model = flight.request.model
        return self.elsewhere.ahead(model, flight.line, flight.rank, self._pool(model)) if self.elsewhere else 0

    def is_first(self, flight: Flight) -> bool:
        """Whether no peer's request goes before this one."""
        request, elsewhere = flight.request, self.elsewhere
        if not elsewhere:
            return True
        pool = self._pool(request.model)
        return elsewhere.is_first(request.model, flight.line, flight.rank, ticket_of(request.id), pool)

    def _is_behind_peers(self, flight: Flight, now_s: float) -> bool:
        """Whether a held request is behind a peer's. Not where its hold ends before it would have given way."""
        return flight.hold_until_s > now_s + YIELD_S and not self.is_first(flight)

    def gives_way(self, flight: Flight, now_s: float) -> bool:
        """Whether the room that a request has is for one that a peer holds; if so it is decided again shortly."""
        if not self._is_behind_peers(flight, now_s):
            return False
        if flight.yields_until_s == inf:
            flight.yields_until_s = now_s + YIELD_S
        if now_s >= flight.yields_until_s:
            return False  # it was there all the time, and nobody took it
        self.ask_again(flight, flight.yields_until_s)
        return True

    def competitors(self, queue: HeldQueue | None, flight: Flight) -> tuple[int, Rank]:
        """How many others wait for a backend that this request could go to, and the rank of the first of those that
        wait, itself included; () where none does. *queue*: that of its model; of those of others a bounded number
        counts.
        """
        count, first = self._competitors_in(queue, flight) if queue is not None else (0, ())
        if len(self._queues) == (queue is not None):
            return count, first
        beside = self._beside(flight.request.model)
        if not beside:
            return count, first
        for name in islice(filter(beside.__contains__, self._queues), LOOK_AHEAD):
            for _, waiting, rank, request_id in self._queues[name].places():
                if self._competes(self._flights[request_id], flight):
                    count += waiting
                    first = rank if not first else min(first, rank)
        return count, first

    def _competitors_in(self, queue: HeldQueue, flight: Flight) -> tuple[int, Rank]:
        """The same among those for its model."""
        own = 1 if flight.request.id in queue else 0
        if queue.is_only(flight.line[0]):
            return len(queue) - own, queue.first_rank
        count = -own
        first: Rank = ()
        for place, waiting, rank, request_id in queue.places():
            if place == flight.line[0] or self._competes(self._flights[request_id], flight):
                count += waiting
                first = rank if not first else min(first, rank)
        return count, first

    # -- decide again ----------------------------------------------------------------------------------------

    def serve(self, now_s: float, model: str | None, commands: list[Command], beside: Collection[str] = ()) -> None:
        """Room may have appeared, for one model or (None) for any: decide the heads of its queue again, until one stays
        held. ``beside``: the models that the backend serves which may have room; of the queue of each but *model* the
        first line alone is decided again, for there may be many. Queues come in the order of their first ranks.
        """
        freed = -1
        while freed != self._freed:  # what was reserved for one that is held no longer may be others' now
            freed = self._freed
            for name in self._in_order([*self._queues] if model is None else self._sharing(model, beside)):
                queue = self._queues[name]
                if model is None or name == model:
                    self._serve_queue(queue, now_s, commands)
                elif not self._is_kept_beside(self._flights[queue.first]):
                    self._serve_line(self._flights[queue.first].line, queue, now_s, commands)
                if not queue:
                    del self._queues[name]

    def _sharing(self, model: str, beside: Collection[str]) -> list[str]:
        """The model, and those of the others for which requests are held, a bounded number of them."""
        others = [name for name in self._queues if name != model and name in beside]
        return [model, *self._in_order(others)[:LOOK_AHEAD]]

    def _in_order(self, models: Sequence[str]) -> list[str]:
        """Those for which requests are held, by the rank of the first of them."""
        held = [name for name in models if name in self._queues]
        return sorted(held, key=lambda name: (self._queues[name].first_rank, name))

    def serve_due(self, due: Flight, model: str, line: LineKey, now_s: float, commands: list[Command]) -> None:
        """The timer of one request, held or just decided, is due: decide its line in the queue of *model*, unless the
        next room is reserved for another request; and decide all lines once a reservation (``Hold.alone``) has ended.
        """
        queue = self._queues[model]
        due.ask_again_s = inf
        first = queue.first_of(line)
        head = self._flights[first] if first is not None else due
        keeper = self.keeper(queue, head)
        if keeper is not None:
            self.ask_again(head, keeper.ask_again_s)
        else:
            reserved = due.alone or head.alone
            self._serve_line(line, queue, now_s, commands, due=True)
            over = reserved and not (head.alone and head.request.id in queue)
            if not queue:
                del self._queues[model]
            if over:
                self.serve(now_s, model, commands, self._beside(model))
            return
        if not queue:
            del self._queues[model]

    def _serve_queue(self, queue: HeldQueue, now_s: float, commands: list[Command]) -> None:
        """Decide the first of each line, in order of rank: a backend that does not suit one may suit another."""
        keepers: list[Flight] = []
        for request_id in queue.heads(LOOK_AHEAD):
            flight = self._flights.get(request_id)
            if flight is None or self._is_kept(flight, keepers) or self._is_kept_beside(flight):
                continue
            keeper = self._serve_line(flight.line, queue, now_s, commands)
            if keeper is not None:
                keepers.append(keeper)

    def _is_kept(self, flight: Flight, keepers: list[Flight]) -> bool:
        """Whether the next room that could be this request's is reserved for another."""
        return any(self._competes(keeper, flight) for keeper in keepers)

    def _is_kept_beside(self, flight: Flight) -> bool:
        """The same, where that one is for another model."""
        return bool(self._reserving) and self._keeper_beside(flight) is not None

    def _serve_line(
        self, line: LineKey, queue: HeldQueue, now_s: float, commands: list[Command], due: bool = False
    ) -> Flight | None:
        """Decide the requests of one line, whose first has no keeper, until one stays held; that one where the next
        room is reserved for it. ``due``: the timer of that line is, so its first is decided whatever peers hold.
        """
        served = False
        while (request_id := queue.first_of(line)) is not None:
            flight = self._flights[request_id]
            if now_s < flight.settled_s:
                self.ask_again(flight, flight.settled_s)
                return None
            if not due and self._is_behind_peers(flight, now_s):
                self.ask_again(flight, min(now_s + LOOK_S, flight.hold_until_s - YIELD_S))
                return None
            keeper = self.keeper(queue, flight) if served else None
            if keeper is not None:  # of a rank between the one that was served and this one
                self.ask_again(flight, keeper.ask_again_s)
                return None
            alone = flight.alone
            if not self._decide(flight, queue, now_s, commands):
                return flight if flight.alone else None
            served, due = True, False
            self._freed += alone
        return None


def _is_before(held: Flight, flight: Flight) -> bool:
    """Whether a held request is before another, for another model; of equal ranks one that comes is behind those that
    wait, and these have the order of their models' names, as their queues have.
    """
    if held.rank != flight.rank:
        return held.rank < flight.rank
    return flight.state is not State.HELD or held.request.model < flight.request.model


def line_of(slo: Slo, place: Place) -> LineKey:
    """What requests of one line have in common: their place, and their bounds. Clients set any bounds, so near ones
    share a line.
    """
    return place, (_step(slo.ttft_s), _step(slo.tpot_s), _step(slo.e2e_s), slo.quantile)


def _step(bound_s: float) -> float:
    """A bound as a number that those within some percent of it share."""
    return round(log(max(bound_s, BOUND_S_MIN)) / BOUND_STEP) if bound_s < inf else inf
