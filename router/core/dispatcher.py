"""The life of a request, events in and commands out: admit, hold, choose, retry, hedge, account.

The shell hands in facts with their times; the answer is what to do. Whatever the order of events: a reservation is
released exactly once, every request is answered exactly once and accounted exactly once, and events about what is
already over change nothing. Which events a request's state allows stands in ``lifecycle.py``, what happens to backends
in ``fleet_events.py``, what follows when no first byte comes in ``first_byte_watch.py``. Must not open anything, wait
for anything, or depend on any policy by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isnan, nan
from typing import Any, Final

import numpy as np

from router.core import border
from router.core.advances import shares
from router.core.arrays import Slots, frozen
from router.core.candidates import Candidates
from router.core.columns import TTFT
from router.core.decisions import (
    Abort,
    Break,
    Choice,
    Command,
    Dispatch,
    EndState,
    Hold,
    Refuse,
    RequestRecord,
    Send,
    Shed,
)
from router.core.errors import CLIENT_ERRORS, PolicyRejected, Reason
from router.core.explain import CHOICES_KEPT, Explanation
from router.core.fallback import Fallbacks, attainable
from router.core.first_byte_watch import FirstByteWatch
from router.core.fleet import Fleet
from router.core.fleet_events import FleetEvents
from router.core.flight import (
    CLIENTS_OWN,
    LACKING,
    NO_PREDICTION,
    UNSENT,
    Attempt,
    DispatchLimits,
    Failure,
    FailureKind,
    Flight,
)
from router.core.forecast import Forecast, Prediction
from router.core.held_lines import SETTLE_S, YIELD_S, HeldLine, settles
from router.core.held_queue import NO_LINE, HeldQueue
from router.core.holding import Holding
from router.core.learning import learn_answer, learn_context_exceeded, learn_first_token, learn_reply
from router.core.lifecycle import Event, State, allows
from router.core.load import Reservation
from router.core.model_rules import NO_RULES, UNSERVED, ModelRules
from router.core.policy import Admission, Memory, Routing, rank_times
from router.core.refusals import Refusal
from router.core.slo_bounds import e2e_tpot_bound_s, tpot_bound_s
from router.core.timers import Due, Timer, Timers
from router.core.types import Request, RequestId, Rng, Usage
from router.core.unroutable import nobody_takes

NO_USAGE: Final = Usage(0)
_OTHER_MODEL_AGAIN_S: Final = 0.25  # a request whose model has no backend is offered to other models so often
NO_ADVANCES: Final[Mapping[int, tuple[float, float]]] = {}


class Dispatcher(FleetEvents):
    """The state machine that the gateway and the simulator both drive."""

    def __init__(
        self,
        routing: Routing,
        admission: Admission,
        rng: Rng,
        limits: DispatchLimits | None = None,
        explained: int = CHOICES_KEPT,
        models: ModelRules = NO_RULES,
    ) -> None:
        """``explained``: the last so many choices are remembered for ``explain``; ``models``: which models serve
        others' requests.
        """
        super().__init__(explained)
        self.routing = routing
        self.admission = admission
        self.limits = limits or DispatchLimits()
        self.models = models
        self._rng = rng
        self._memory: Memory = None
        self._shares = shares(admission)
        self._flights: dict[RequestId, Flight] = {}
        self._timers = Timers(self._stands)
        roster, elsewhere = self.ledger.roster, self._held_elsewhere
        self._holding = Holding(
            self._flights, self._timers, self._ask_held, self._compete, roster.beside, roster.pool_digest, elsewhere
        )
        self._candidates = Candidates(self.ledger, self.belief, self._holding)
        self._fallbacks = Fallbacks(self._candidates, self._holding, self.belief)
        self._watch = FirstByteWatch(self._timers)
        self._offered: set[str] = set()  # models whose held requests this event has offered to other models

    # -- policies, and how many requests there are -------------------------------------------------------------

    def adopt(self, routing: Routing, admission: Admission) -> None:
        """Swap the policies between two requests; nothing in flight is touched."""
        if type(admission) is not type(self.admission):
            self._memory = None  # another kind of policy cannot read it
        self.routing, self.admission, self._shares = routing, admission, shares(admission)

    @property
    def in_flight(self) -> int:
        """Requests that are not over, held ones included."""
        return len(self._flights)

    @property
    def held(self) -> int:
        """Requests that wait at the gateway."""
        return len(self._holding)

    @property
    def held_anywhere(self) -> bool:
        """Whether requests wait here or at a peer: then peers decide by every change of this router's load."""
        return bool(self._holding) or bool(self._held_elsewhere)

    def held_of(self, model: str) -> int:
        """The same, of those for one model."""
        queue = self._holding.queue(model)
        return 0 if queue is None else len(queue)

    def first_token_s(self, request_id: RequestId) -> float:
        """When the first token of a request that is not over came (nan: not yet, or over)."""
        flight = self._flights.get(request_id)
        return flight.first_token_s if flight is not None else nan

    def so_far(
        self, request_id: RequestId, usage: Usage, now_s: float, last_token_s: float = nan
    ) -> RequestRecord | None:
        """The record that a request in flight would have if its client left now; None: it is none. Changes nothing."""
        flight = self._flights.get(request_id)
        if flight is None:
            return None
        last = flight.open[-1] if flight.open else None
        return flight.record(EndState.LEFT, last, usage, now_s, None, last_token_s)

    # -- one request -------------------------------------------------------------------------------------------

    def arrived(self, request: Request, now_s: float) -> Sequence[Command]:
        """A new request; its id must not be that of one in flight."""
        if request.id in self._flights:
            raise ValueError(f"request {request.id!r} is already in flight")
        now_s = self._time(now_s)
        flight = self._flights[request.id] = Flight(request)
        if self.models.rules:
            request = flight.request = self.models.resolved(request)
            flight.fallbacks = self.models.fallbacks(request)
        if request.slo.derived_s:
            request = flight.request = self._in_base(request)
        slots = self._candidates.taking(request)
        if not len(slots) and request.requested_model:
            slots = self._of_other_arms(flight, slots)
        if not len(slots):
            startable = self.models.startable(request.model)
            why = nobody_takes(self.ledger.roster, request, self.belief.prompts, startable)
            return self._refuse(flight, why, now_s)
        return self._enter(flight, slots, now_s)

    def _enter(self, flight: Flight, slots: Slots, now_s: float) -> Sequence[Command]:
        """Admit a request that these backends take, and decide about it."""
        request = flight.request
        queue = self._holding.queue(request.model)
        elsewhere = self._holding.held_elsewhere(request.model)
        if queue or elsewhere:
            flight.line = self._candidates.line(flight)
        fleet = self._candidates.fleet(flight, slots, queue, self.admission.hold_s_max, now_s)
        forecast = Forecast(request, fleet, self.belief)
        if not flight.admitted:
            answer, self._memory = self.admission.admit(request, fleet, forecast, self._memory)
            if isinstance(answer, Shed):
                return self._refuse(flight, answer, now_s)
            flight.rank, flight.admitted = answer.rank, True
        if self._holding:
            fleet.ahead = queue.ahead(flight.line, flight.rank) if queue else 0
            keeper = self._holding.keeper(queue, flight)
            if fleet.ahead or keeper is not None:
                until_s = inf if keeper is None else max(keeper.ask_again_s, now_s)
                fleet.ahead += self._holding.ahead_elsewhere(flight)
                return self._behind(flight, fleet, forecast, until_s, now_s)
        may_wait = self._may_wait(queue)
        if may_wait and elsewhere and not self._holding.is_first(flight):
            fleet.ahead = self._holding.ahead_elsewhere(flight)
            return self._behind(flight, fleet, forecast, now_s + YIELD_S, now_s)
        if may_wait and self.ledger.peers.sending and self._settles(flight, fleet, forecast):
            flight.settled_s = now_s + SETTLE_S
            return self._hold(flight, Hold(flight.settled_s, "routers decide one after another"), now_s)
        return self._route(flight, fleet, forecast, now_s)

    def _may_wait(self, queue: HeldQueue | None) -> bool:
        """Whether a request may be held for the sake of peers, rather than be refused for that."""
        admission = self.admission
        return admission.hold_s_max > YIELD_S and (len(queue) if queue is not None else 0) < admission.held_max

    def _settles(self, flight: Flight, fleet: Fleet, forecast: Forecast) -> bool:
        """Whether peers are to know of a new request before it is decided."""
        slo = flight.request.slo
        bound_s = min(slo.ttft_s, slo.e2e_s)
        if bound_s == inf or flight.attempts or flight.held_s or rank_times(self.admission) is None:
            return False
        if not settles(bound_s, inf):
            return False
        one = fleet.among(frozen(fleet.slots[:1]))  # where a prompt is short there, it takes no forecast of all others
        one_s = Forecast(flight.request, one, self.belief).rest.item(TTFT, 0)
        return settles(bound_s, one_s) and settles(bound_s, float(forecast.rest[TTFT].min()))

    def _with_model(self, request: Request, model: str) -> Request:
        """The request as the client sent it, for another model."""
        other = replace(request, model=model)
        return self._in_base(other) if other.slo.derived_s else other

    def _of_other_arms(self, flight: Flight, none: Slots) -> Slots:
        """The backends of another model of the same split, which is to serve the request; *none*: there is no such."""
        for model in self.models.other_arms(flight.request):
            request = self._with_model(self.models.resolved(flight.sent), model)
            slots = self._candidates.taking(request)
            if len(slots):
                flight.request, flight.fallbacks = request, self.models.fallbacks(request)
                return slots
        return none

    def _in_base(self, request: Request) -> Request:
        """The request with its SLO in bounds on TTFT, TPOT and E2E alone, for the reply length that is expected."""
        lengths, cap = self.belief.lengths, request.output_tokens_max
        reply = lengths.longest(request.model, request.slo_class, cap, request.sequences)
        return replace(request, slo=request.slo.in_base(self.belief.prompts.tokens(request), reply.tokens))

    def _behind(
        self, flight: Flight, fleet: Fleet, forecast: Forecast, until_s: float, now_s: float
    ) -> Sequence[Command]:
        """Others go first: the policy may refuse the request at once; where it would send it now, it waits.

        ``until_s``: when the policy decides anew about the one that keeps the next room (inf: none does).
        """
        choice = self._choose(flight.request, fleet, forecast)
        if isinstance(choice, Dispatch):
            choice = Hold(until_s, "others wait in front")
        return self._perform(flight, choice, fleet, forecast, now_s)

    def committed(self, request_id: RequestId, attempt: int, now_s: float) -> Sequence[Command]:
        """Status and first bytes of an attempt's reply go to the client; other open attempts of it are closed."""
        now_s = self._time(now_s)
        flight, won = self._find(request_id, attempt)
        if flight is None or won is None or not allows(flight.state, Event.COMMIT):
            return ()
        closed = self._commit(flight, won, now_s)
        return [*closed, *self._serve_held(now_s)] if closed else ()

    def first_token(self, request_id: RequestId, attempt: int, now_s: float) -> Sequence[Command]:
        """The first that an attempt generated has come: its prompt is done with. Commits its reply where that did not
        come before.
        """
        now_s = self._time(now_s)
        flight, won = self._find(request_id, attempt)
        if flight is None or won is None or flight.state is State.STREAMING:
            return ()
        closed = self._prefilled(flight, won, now_s)
        flight.move(Event.FIRST_TOKEN)
        flight.first_token_s = now_s
        if flight.request.streamed and not won.paused_s:
            learn_first_token(self.belief, self.ledger, won, now_s)
        held = self._serve_held(now_s, flight.request.model, won.reservation.slot)
        return [*closed, *held] if closed else held

    def _prefilled(self, flight: Flight, won: Attempt, now_s: float) -> Sequence[Command]:
        """The prompt of an attempt is done with, and its reply is committed if it was not."""
        closed = self._commit(flight, won, now_s) if allows(flight.state, Event.COMMIT) else ()
        self.ledger.load.prefilled(won.reservation, now_s)
        learn_answer(self.belief, self.ledger, won)
        self._ejection.answered(won.backend)
        self._refusals.served(won.backend, flight.request.model, flight.request.endpoint)
        return closed

    def _commit(self, flight: Flight, won: Attempt, now_s: float) -> Sequence[Command]:
        """From now on one attempt serves the request: close the others."""
        flight.move(Event.COMMIT)
        if len(flight.open) == 1:
            return ()
        closed = [self._close(flight, a, "another attempt answered first", now_s) for a in flight.open if a is not won]
        flight.open = [won]
        return closed

    def ended(
        self, request_id: RequestId, attempt: int, usage: Usage, now_s: float, last_token_s: float = nan
    ) -> Sequence[Command]:
        """The reply is complete. ``last_token_s``: when its last token came (nan: with the end)."""
        now_s = self._time(now_s)
        flight, done = self._find(request_id, attempt)
        if flight is None or done is None:
            return ()
        early: Sequence[Command] = () if flight.state is State.STREAMING else self._no_token(flight, done, now_s)
        commands = self._complete(flight, done, usage, now_s, last_token_s)
        return [*early, *commands] if early else commands

    def _no_token(self, flight: Flight, done: Attempt, now_s: float) -> Sequence[Command]:
        """A reply is complete whose first token was not seen. One that came whole had it by now; of a stream without
        one nothing is stamped and no TTFT is learnt.
        """
        closed = self._prefilled(flight, done, now_s)
        if not flight.request.streamed:
            flight.first_token_s = now_s
        return [*closed, *self._serve_held(now_s, flight.request.model, done.reservation.slot)]

    def _complete(
        self, flight: Flight, done: Attempt, usage: Usage, now_s: float, last_token_s: float
    ) -> Sequence[Command]:
        usage = self._plausible(flight, done, usage)
        last_s = flight.last_token(last_token_s, now_s)
        learn_reply(self.belief, self.ledger, flight.request, done, usage, now_s, now_s if isnan(last_s) else last_s)
        self.ledger.load.release(done.reservation, now_s)
        return self._over(flight, Event.COMPLETE, done, usage, now_s, None, last_token_s)

    def _plausible(self, flight: Flight, attempt: Attempt, usage: Usage) -> Usage:
        context_tokens_max = self.ledger.context_tokens_max(attempt.reservation)
        return border.usage(usage, flight.request, attempt.backend, context_tokens_max, self.dropped_numbers)

    def failed(
        self,
        request_id: RequestId,
        attempt: int,
        failure: Failure,
        now_s: float,
        usage: Usage = NO_USAGE,
        last_token_s: float = nan,
    ) -> Sequence[Command]:
        """An attempt is dead: before its reply is committed try another backend, after it the reply fails.

        ``usage``: what came of a committed reply, ``last_token_s``: when the last token of that did.
        """
        now_s = self._time(now_s)
        flight, dead = self._find(request_id, attempt)
        if flight is None or dead is None:
            return ()
        self.ledger.load.release(dead.reservation, now_s)
        if self.ledger.roster.slot(dead.backend) is not None:
            self._ejection.failed(dead.backend, failure, now_s)
        if failure.backend_fault:
            self._blame(dead.backend, now_s)
        self._refused(flight, dead.backend, failure, now_s)
        if failure.kind is FailureKind.CONTEXT_EXCEEDED:
            learn_context_exceeded(self.belief, self.ledger, flight, dead, failure, self.dropped_numbers)
        if flight.state is not State.SENT:
            usage = self._plausible(flight, dead, usage)
            over = self._over(flight, Event.FAIL, dead, usage, now_s, None, last_token_s)
            return [Break(request_id, failure.why), *over]
        flight.open.remove(dead)
        flight.why = failure.why
        if failure.kind not in LACKING:
            flight.fault = failure
        if flight.open:
            flight.move(Event.LOSE_ATTEMPT)
            return self._serve_held(now_s)
        flight.move(Event.FAIL)
        model, slot = flight.request.model, dead.reservation.slot  # before another model may take it
        return [*self._again(flight, failure, now_s), *self._serve_held(now_s, model, slot)]

    def client_left(
        self, request_id: RequestId, now_s: float, usage: Usage = NO_USAGE, last_token_s: float = nan
    ) -> Sequence[Command]:
        """The client went away; whatever is open for it is closed. ``usage``: what came of its reply, ``last_token_s``:
        when the last token of that did.
        """
        now_s = self._time(now_s)
        flight = self._flights.get(request_id)
        if flight is None:
            return ()
        commands: list[Command] = [self._close(flight, a, "the client left", now_s) for a in flight.open]
        last = flight.open[-1] if flight.open else None
        self._holding.remove(flight, now_s)
        came = self._plausible(flight, last, usage) if last is not None else NO_USAGE
        commands.extend(self._over(flight, Event.LEAVE, last, came, now_s, None, last_token_s))
        return commands

    def _find(self, request_id: RequestId, attempt: int) -> tuple[Flight | None, Attempt | None]:
        flight = self._flights.get(request_id)
        return flight, flight.attempt(attempt) if flight is not None else None

    # -- choosing ----------------------------------------------------------------------------------------------

    def _choose(self, request: Request, fleet: Fleet, forecast: Forecast) -> Choice:
        """The policy's choice: for an adapter among those that have it loaded, where that costs no SLO."""
        ready = forecast.adapter_ready(fleet.now_s - request.arrived_s)
        if ready is not None and ready.any() and not ready.all():
            near = fleet.among(frozen(fleet.slots[ready]))
            choice = self.routing.choose(request, near, Forecast(request, near, self.belief), self._rng)
            if isinstance(choice, Dispatch):
                return choice
        return self.routing.choose(request, fleet, forecast, self._rng)

    def _route(self, flight: Flight, fleet: Fleet, forecast: Forecast, now_s: float) -> Sequence[Command]:
        choice = self._choose(flight.request, fleet, forecast)
        return self._perform(flight, choice, fleet, forecast, now_s)

    def _perform(
        self, flight: Flight, choice: Choice, fleet: Fleet, forecast: Forecast, now_s: float
    ) -> Sequence[Command]:
        match choice:
            case Dispatch(slot=slot, why=why):
                if flight.fallbacks and not attainable(flight.request, forecast, now_s):
                    why_not = f"no backend of {flight.request.model!r} is expected to meet the SLO"
                    commands = self._fall_back(flight, why_not, now_s, in_time=True)
                    if commands is not None:
                        return commands
                return (self._send(flight, slot, why, fleet, forecast, now_s),)
            case Hold():
                return self._hold(flight, choice, now_s)
            case Shed():
                self._note(flight, "", choice.why, forecast, now_s)
                return self._refuse(flight, choice, now_s)

    def _send(self, flight: Flight, slot: int, why: str, fleet: Fleet, forecast: Forecast, now_s: float) -> Command:
        request = flight.request
        index = fleet.index(slot)
        if index < 0:
            raise PolicyRejected(f"{type(self.routing).__name__} chose slot {slot}, which is not among the candidates")
        backend = self.ledger.roster.name(slot)
        predicted = forecast.at(index) if forecast.made else NO_PREDICTION
        if flight.why:
            why = f"{why}, after {flight.why}"
        if flight.fallback_why:
            why = f"{why}; {request.model!r} serves it: {flight.fallback_why}"
        self._note(flight, backend, why, forecast, now_s, slot)
        held = self._reserve(request, slot, index, forecast, predicted, now_s)
        attempt = flight.send(backend, held, predicted, now_s)
        if request.prefix:
            attempt.resident_share = forecast.resident_share_at(index)
        self._remember(request, slot)
        due_s = self._watch.sent(request, attempt, self.limits, len(flight.open) == 1, now_s)
        model, fallback_why = flight.model, flight.fallback_why
        return Send(request.id, backend, attempt.number, why, predicted.ttft_s, due_s, model, fallback_why)

    def _reserve(
        self, request: Request, slot: int, index: int, forecast: Forecast, predicted: Prediction, now_s: float
    ) -> Reservation:
        """What a request takes of the backend in a slot, which is at that index of its forecast."""
        return self.ledger.load.reserve(
            slot,
            forecast.prefill_tokens_at(index),
            forecast.tokens,
            tpot_bound_s(request, predicted.tpot_s),
            now_s,
            e2e_tpot_bound_s(request, predicted.ttft_s, predicted.tpot_s, forecast.output_tokens),
            float(request.sequences),
        )

    def _remember(self, request: Request, slot: int) -> None:
        """A request runs in that slot: its adapter and the beginning of its prompt are there from now on."""
        if request.model in self.ledger.roster.adapters:
            self.ledger.adapters.use(slot, request.model)
        if request.prefix:
            self.ledger.remember_prefix(slot, request)
            self.outbox.prompt_sent(slot, request)

    def served_by(self, request_id: RequestId, attempt: int, backend: str, now_s: float) -> Sequence[Command]:
        """A proxy has the reply to an attempt from another backend than the one chosen, which it could not use. The
        attempt goes on there; when it was sent there nobody saw, so it teaches no times.
        """
        now_s = self._time(now_s)
        flight, moved = self._find(request_id, attempt)
        slot = self.ledger.roster.slot(backend)
        if (
            flight is None
            or moved is None
            or slot is None
            or flight.state is not State.SENT
            or moved.backend == backend
        ):
            return ()
        self.ledger.load.release(moved.reservation, now_s)
        if self.ledger.roster.slot(moved.backend) is not None:
            self._ejection.failed(moved.backend, Failure(f"a proxy had the reply from {backend} instead"), now_s)
        self._blame(moved.backend, now_s)
        request = flight.request
        fleet = Fleet(self.ledger, frozen(np.array([slot], dtype=np.intp)), now_s)
        held = self._reserve(request, slot, 0, Forecast(request, fleet, self.belief), NO_PREDICTION, now_s)
        flight.moved(moved, backend, held)
        self._remember(request, slot)
        return self._serve_held(now_s)

    def _note(self, flight: Flight, chosen: str, why: str, forecast: Forecast, now_s: float, slot: int = -1) -> None:
        request = flight.request
        backends, quantile = self.ledger.roster.backends, request.slo.quantile
        flight.note = self._explanations.note(
            request.id, chosen, why, quantile, forecast, backends, now_s, request.model, slot
        )

    def explain(self, request_id: RequestId) -> Explanation | None:
        """What was predicted for each backend, why this one, and what happened; None for what is forgotten."""
        return self._explanations.of(request_id)

    def _again(self, flight: Flight, failure: Failure, now_s: float) -> Sequence[Command]:
        """Before a reply is committed: the next best backend, if the failure and the limits allow one."""
        flight.line = NO_LINE
        fleet = self._candidates.untried(flight, self.admission.hold_s_max, now_s)
        spent = flight.attempts - flight.refusals >= self.limits.attempts_max and failure.kind not in UNSENT
        if not failure.retryable:
            flight.fallbacks = ()
        if not failure.retryable or spent or fleet is None:
            told = flight.fault or failure  # what some backends lack is no answer while one that has it only failed
            reason = Reason.FIRST_BYTE_LATE if told.late else Reason.BACKEND_FAILED
            if told.kind in CLIENTS_OWN:
                reason = Reason.CLIENT_ERROR
            elif told.kind is FailureKind.EXHAUSTED:
                reason = Reason.ROUTER_EXHAUSTED
            elif told.kind is FailureKind.UNRESOLVED:
                reason = Reason.NO_BACKEND
            return self._unserved(flight, Shed(reason, told.why), told.kind, now_s)
        flight.line = self._candidates.line(flight)
        return self._route(flight, fleet, Forecast(flight.request, fleet, self.belief), now_s)

    def _unserved(self, flight: Flight, shed: Shed, kind: FailureKind, now_s: float) -> Sequence[Command]:
        """No backend of its model is left. What these lack, those of another model may have; what another model's lack,
        or take for the client's own error, says nothing of its own, which then gets it after all.
        """
        if kind not in CLIENTS_OWN or (kind is FailureKind.CLIENT_ERROR and flight.own is None):
            return self._refuse(flight, shed, now_s)
        if flight.own is None:
            flight.unserved = shed
        commands = self._fall_back(flight, shed.why, now_s) if flight.fallbacks else None
        if commands is not None:
            return commands
        if not flight.return_to_own():
            return self._refuse(flight, shed, now_s)
        fleet = self._candidates.untried(flight, self.admission.hold_s_max, now_s)
        if fleet is None:
            request, roster = flight.request, self.ledger.roster
            away = nobody_takes(roster, request, self.belief.prompts, self.models.startable(request.model))
            return self._refuse(flight, flight.unserved or away, now_s)
        flight.line = self._candidates.line(flight)
        return self._route(flight, fleet, Forecast(flight.request, fleet, self.belief), now_s)

    def _fall_back(self, flight: Flight, why: str, now_s: float, *, in_time: bool = False) -> Sequence[Command] | None:
        """Have another model serve a request, *why* its own does not; None: none can. *in_time*: only one that is
        expected to meet its SLO, else one that it has to wait for, if need be.
        """
        models = flight.fallbacks
        requests = [self._with_model(flight.sent, model) for model in models]
        for place, request in enumerate(requests):
            offer = self._fallbacks.offer(flight, request, self.admission, self._memory, self._choose, now_s, in_time)
            if offer is not None:
                self._memory, flight.rank, flight.admitted = offer.memory, offer.rank, True
                flight.fall_back(request, why, models[place + 1 :])
                return (self._send(flight, offer.choice.slot, offer.choice.why, offer.fleet, offer.forecast, now_s),)
        if in_time or flight.state is not State.DECIDING:
            return None
        for place, request in enumerate(requests):
            slots = self._fallbacks.taking(flight, request)
            if len(slots):
                flight.fall_back(request, why, models[place + 1 :])
                return self._enter(flight, slots, now_s)
        return None

    # -- holding -----------------------------------------------------------------------------------------------

    def _hold(self, flight: Flight, choice: Hold, now_s: float) -> Sequence[Command]:
        queue = self._holding.queue(flight.request.model)
        count, evicted = len(queue) if queue is not None else 0, None
        if count >= self.admission.held_max:
            if not queue or queue.last_rank <= flight.rank:
                return self._refuse(flight, Shed(Reason.QUEUE_FULL, f"{count} requests already wait"), now_s)
            evicted = self._evict(queue, now_s)
        flight.hold(now_s)
        if flight.hold_until_s == inf:
            flight.hold_until_s = now_s + self.admission.hold_s_max
        if not flight.line[1]:
            flight.line = self._candidates.line(flight)
        self._holding.add(flight, flight.line, choice.until_s, choice.alone)
        return evicted or ()

    def _evict(self, queue: HeldQueue, now_s: float) -> Sequence[Command]:
        """Make room in a full queue for a lower rank: the one that would be served last has to go."""
        last = self._flights[queue.last]
        self._holding.remove(last, now_s)
        return self._refuse(last, Shed(Reason.EVICTED, "the queue is full and a more urgent request came"), now_s)

    def _compete(self, one: Flight, other: Flight) -> bool:
        return self._candidates.compete(one, other)

    def _serve_held(self, now_s: float, model: str | None = None, slot: int = -1) -> Sequence[Command]:
        """Room may have appeared: for one model and others of the backend in *slot*, or (None) for any."""
        if not self._holding:
            return ()
        commands: list[Command] = []
        self._offered.clear()
        backend = self.ledger.roster.backends[slot] if slot >= 0 else None
        self._holding.serve(now_s, model, commands, backend.models if backend is not None else ())
        return commands

    def _ask_held(self, flight: Flight, queue: HeldQueue, now_s: float, commands: list[Command]) -> bool:
        """Decide anew about one of those held; whether it is no longer held (see ``holding.Decide``)."""
        fleet = self._candidates.untried(flight, self.admission.hold_s_max, now_s)
        if fleet is None:
            return self._no_untried(flight, queue, now_s, commands)
        forecast = Forecast(flight.request, fleet, self.belief)
        choice = self._choose(flight.request, fleet, forecast)
        if isinstance(choice, Hold):
            self._holding.reserve(flight, choice.alone)
            flight.yields_until_s = inf
            self._holding.ask_again(flight, choice.until_s)
            return False
        if isinstance(choice, Dispatch) and self._holding.gives_way(flight, now_s):
            return False
        queue.discard(flight.request.id)
        commands.extend(self._perform(flight, choice, fleet, forecast, now_s))
        return True

    def _no_untried(self, flight: Flight, queue: HeldQueue, now_s: float, commands: list[Command]) -> bool:
        """With no backend up another model serves it, or it goes on waiting; when all have failed it already, it must
        not block the others.
        """
        if not self._candidates.up(flight.request):
            return self._served_by_another(flight, queue, now_s, commands)
        queue.discard(flight.request.id)
        why = flight.why or "no backend that is up takes a prompt so long"
        commands.extend(self._refuse(flight, Shed(Reason.BACKEND_FAILED, why), now_s))
        return True

    def _served_by_another(self, flight: Flight, queue: HeldQueue, now_s: float, commands: list[Command]) -> bool:
        """A held request's model has no backend up: others serve those of its queue that allow it, as far as they have
        room, once in an event, whichever of its lines comes first. Whether that one is no longer held.
        """
        model = flight.request.model
        if model in self._offered:
            return False
        self._offered.add(model)
        why = f"no backend of {model!r} is up"
        for request_id in queue:
            waiting = self._flights[request_id]
            if not waiting.fallbacks or self._candidates.up(waiting.request):
                continue
            sends = self._fall_back(waiting, why, now_s)
            if sends is None:
                self._holding.ask_again(flight, now_s + _OTHER_MODEL_AGAIN_S)
                break
            queue.discard(request_id)
            commands.extend(sends)
        return flight.state is not State.HELD

    # -- time --------------------------------------------------------------------------------------------------

    @property
    def wake_s(self) -> float:
        """When ``ticked`` is to be called next (inf: never)."""
        return self._timers.next_s

    @property
    def soonest_s(self) -> float:
        """No later than ``wake_s``, and always at hand."""
        return self._timers.soonest_s

    def _stands(self, timer: Timer) -> bool:
        """Whether what a timer was set for can still come about."""
        if timer.due is Due.READMIT or timer.due is Due.REOFFER:
            return True
        flight = self._flights.get(timer.subject)
        if flight is None:
            return False
        if timer.due is Due.ASK_HELD:
            return flight.state is State.HELD
        if timer.due is Due.PREFILLED:
            return flight.state is not State.STREAMING and flight.attempt(timer.attempt) is not None
        return flight.state is State.SENT and flight.attempt(timer.attempt) is not None

    def paused(self, paused_s: float, now_s: float) -> Sequence[Command]:
        """The shell stood still for so long, or will not have read until then what came meanwhile: silence was its own.
        The deadlines of open attempts move on, and they teach no times.
        """
        self._time(now_s)
        if not 0.0 < paused_s < border.FAR_S:
            return ()
        for flight in self._flights.values():
            for attempt in flight.open:
                attempt.pause(paused_s)
        self._watch.postpone(paused_s)
        return ()

    def ticked(self, now_s: float) -> Sequence[Command]:
        """Act on every timer that is due."""
        now_s = self._time(now_s)
        commands: list[Command] = []
        self.ledger.reports.forget_stale(now_s)
        while timer := self._timers.pop(now_s):
            commands.extend(self._act(timer, now_s))
        return commands

    def _act(self, timer: Timer, now_s: float) -> Sequence[Command]:
        match timer.due:
            case Due.REOFFER:
                self._refusals.over(timer.subject)
                return self._serve_held(now_s)
            case Due.READMIT:
                self._ejection.readmit(timer.subject)
                return self._mark(timer.subject, now_s, ejected=False)
            case Due.ASK_HELD:
                return self._hold_over(self._flights[timer.subject], now_s)
            case Due.FIRST_BYTE:
                return self._late(self._flights[timer.subject], timer.attempt, now_s)
            case Due.PREFILLED:
                return self._presumed_prefilled(self._flights[timer.subject], timer.attempt, now_s)
            case Due.HEDGE:
                return self._hedge(self._flights[timer.subject], now_s)

    def _hold_over(self, flight: Flight, now_s: float) -> Sequence[Command]:
        """A held request's time is up, or its policy is to decide anew by now."""
        commands: list[Command] = []
        model, line = flight.request.model, flight.line  # before another model may take it
        queue = self._holding.queue(model)
        assert queue is not None  # _stands has just looked
        if now_s >= flight.hold_until_s:
            queue.discard(flight.request.id)
            waited = Shed(Reason.HOLD_EXPIRED, f"held {now_s - flight.request.arrived_s:.2f} s without room")
            commands.extend(self._refuse(flight, waited, now_s))
        self._offered.clear()
        self._holding.serve_due(flight, model, line, now_s, commands)
        return commands

    def _late(self, flight: Flight, number: int, now_s: float) -> Sequence[Command]:
        """Close the silent attempt, then go on as with any failure."""
        attempt = flight.attempt(number)
        assert attempt is not None  # _stands has just looked
        failure = self._watch.late(flight.request, attempt, self.limits, now_s)
        if failure is None:
            return ()
        abort = Abort(flight.request.id, attempt.backend, number, failure.why)
        return [abort, *self.failed(flight.request.id, number, failure, now_s)]

    def _presumed_prefilled(self, flight: Flight, number: int, now_s: float) -> Sequence[Command]:
        """Of a whole reply only the forecast tells when its prompt is done with: prefill load must not outlive that."""
        attempt = flight.attempt(number)
        assert attempt is not None  # _stands has just looked
        self.ledger.load.prefilled(attempt.reservation, now_s)
        return self._serve_held(now_s, flight.request.model, attempt.reservation.slot)

    def _hedge(self, flight: Flight, now_s: float) -> Sequence[Command]:
        """A second attempt while the first is silent, if the budget and the fleet have room for it."""
        fleet = self._candidates.untried(flight, self.admission.hold_s_max, now_s)
        if self._watch.spent(self.limits) or fleet is None or flight.attempts >= self.limits.attempts_max:
            return ()
        forecast = Forecast(flight.request, fleet, self.belief)
        choice = self._choose(flight.request, fleet, forecast)
        if not isinstance(choice, Dispatch):
            return ()
        self._watch.hedged()
        return (self._send(flight, choice.slot, f"hedge: {choice.why}", fleet, forecast, now_s),)

    # -- blame -------------------------------------------------------------------------------------------------

    def _blame(self, backend: str, now_s: float) -> None:
        slot, limits = self.ledger.roster.slot(backend), self.limits
        if slot is None:
            return
        ejected_s = self._ejection.fault(backend, limits.failures_max, limits.eject_s, limits.eject_s_max, now_s)
        if ejected_s:
            self.ledger.mark_state(slot, ejected=True)
            self._timers.set(now_s + ejected_s, backend, 0, Due.READMIT)
            self.outbox.ejected(backend)

    def _held_lines(self) -> tuple[HeldLine, ...]:
        times = rank_times(self.admission)
        return self._holding.lines(times) if times is not None and self._holding else ()

    def _advances_here(self) -> Mapping[int, tuple[float, float]]:
        if not self._shares:
            return NO_ADVANCES
        policy: Any = self.admission
        here: Mapping[int, tuple[float, float]] = policy.advances(self._memory)
        return here

    def _on_advances(self, grown: Mapping[int, tuple[float, float]], now_s: float) -> None:
        if self._shares:
            policy: Any = self.admission
            self._memory = policy.advanced(self._memory, grown, now_s)

    def _on_ejection_elsewhere(self, backend: str) -> None:
        self._ejection.hinted(backend, self.limits.failures_max)

    def _refused(self, flight: Flight, backend: str, failure: Failure, now_s: float) -> None:
        """Where the failure says that the backend does not serve this model or this endpoint, remember that."""
        if failure.kind in UNSENT:
            flight.refusals += 1
        if failure.kind is FailureKind.ENDPOINT_MISSING or failure.kind is FailureKind.REDIRECT:
            what = flight.request.endpoint
        elif failure.kind is FailureKind.MODEL_MISSING or failure.kind is FailureKind.KEY_REFUSED:
            what = flight.request.model
        else:
            return
        until_s = now_s + self.limits.refused_s
        if what and (subject := self._refusals.add(Refusal(backend, what, failure.why, now_s, until_s))):
            flight.refusals += 1
            self._timers.set(until_s, subject, 0, Due.REOFFER)

    # -- ends --------------------------------------------------------------------------------------------------

    def _close(self, flight: Flight, attempt: Attempt, why: str, now_s: float) -> Abort:
        self.ledger.load.release(attempt.reservation, now_s)
        return Abort(flight.request.id, attempt.backend, attempt.number, why)

    def _refuse(self, flight: Flight, shed: Shed, now_s: float) -> Sequence[Command]:
        if flight.fallbacks and shed.reason in UNSERVED:
            if flight.own is None:
                flight.unserved = shed
            commands = self._fall_back(flight, shed.why, now_s)
            if commands is not None:
                return commands
        refuse = Refuse(flight.request.id, shed.reason, shed.why, shed.retry_after_s)
        event = Event.REJECT if shed.reason in CLIENT_ERRORS else Event.REFUSE
        return [refuse, *self._over(flight, event, None, NO_USAGE, now_s, shed.reason)]

    def _over(
        self,
        flight: Flight,
        event: Event,
        last: Attempt | None,
        usage: Usage,
        now_s: float,
        reason: Reason | None = None,
        last_token_s: float = nan,
    ) -> Sequence[Command]:
        """The request is over: account for it, and see whether someone who waits has room now."""
        outcome = flight.end(event)
        del self._flights[flight.request.id]
        account = flight.account(outcome, last, usage, now_s, reason, last_token_s)
        if not self._holding or outcome is EndState.REFUSED or outcome is EndState.CLIENT_ERROR:
            return (account,)
        slot = last.reservation.slot if last is not None else -1
        return [account, *self._serve_held(now_s, flight.request.model, slot)]
