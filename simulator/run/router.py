"""One router on the kernel: the core's dispatcher and the hands that perform its commands, as a gateway's driver does.

Believes: the dispatcher decides. Must not know: why. Output lengths pass from the arrival to the replica and nowhere
else.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf

from router.core.decisions import Abort, Command, Refuse, RequestRecord, Send
from router.core.dispatcher import Dispatcher
from router.core.flight import Failure
from router.core.types import Usage
from simulator.replica.sequence import Sequence as EngineSequence
from simulator.run.fleet import SimulatedEngine
from simulator.run.kernel import Kernel
from simulator.workload.arrivals import Arrival

Commands = Sequence[Command]


class Flight:
    """One request that is not over: its arrival, and the attempts that were sent."""

    __slots__ = ("arrival", "attempts", "retry_after_s")

    def __init__(self, arrival: Arrival) -> None:
        """Nothing sent yet."""
        self.arrival = arrival
        self.attempts: list[EngineSequence] = []
        self.retry_after_s = 0.0  # what it was told when it was refused


Accounted = Callable[[RequestRecord, Flight], None]


class Shell:
    """One router. *engines* by backend name; *accounted* is told of every request that is over."""

    def __init__(
        self, name: str, core: Dispatcher, kernel: Kernel, engines: Mapping[str, SimulatedEngine], accounted: Accounted
    ) -> None:
        """The core hears of backends through ``backend_joined``, as in life."""
        self.name, self.core, self.kernel, self.engines = name, core, kernel, engines
        self._accounted = accounted
        self._flights: dict[str, Flight] = {}
        self._wake_s = inf
        self._hedges = core.limits.hedge_slo_share != inf
        self._holding: set[str] = set()
        self.held = 0

    # ---- what happens ----------------------------------------------------------

    def arrive(self, arrival: Arrival) -> None:
        """A request comes to this router, now."""
        request = arrival.request
        self._flights[request.id] = Flight(arrival)
        commands = self.core.arrived(request, self.kernel.now_s)
        if commands:
            self.perform(commands)
        else:
            self.held += 1
            self._holding.add(request.id)
            self._look_at_clock()

    def first_token(self, sequence: EngineSequence) -> None:
        """An engine's first token of an attempt has come; of a whole reply nobody sees it."""
        flight = self._flights.get(sequence.id)
        if flight is not None and not flight.arrival.request.streamed:
            return
        commands = self.core.first_byte(sequence.id, sequence.attempt, self.kernel.now_s)
        if commands or self._holding:
            self.perform(commands)

    def finished(self, sequence: EngineSequence) -> None:
        """An attempt's reply is complete."""
        usage = Usage(sequence.generated, sequence.prompt_tokens, max(0, sequence.cached_tokens), True)
        self.perform(self.core.ended(sequence.id, sequence.attempt, usage, self.kernel.now_s))

    def fail(self, lost: tuple[EngineSequence, Failure]) -> None:
        """An attempt is dead."""
        sequence, failure = lost
        self.perform(self.core.failed(sequence.id, sequence.attempt, failure, self.kernel.now_s))

    def leave(self, request_id: str) -> None:
        """The client hangs up, if its request is not over."""
        if request_id in self._flights:
            self.perform(self.core.client_left(request_id, self.kernel.now_s))

    def has(self, request_id: str) -> bool:
        """Whether the request is here and not over."""
        return request_id in self._flights

    def arrival(self, request_id: str) -> Arrival:
        """The arrival of a request that is not over."""
        return self._flights[request_id].arrival

    def waits(self, request_id: str) -> bool:
        """Whether the request is not over and has no first token."""
        flight = self._flights.get(request_id)
        return flight is not None and not any(attempt.generated for attempt in flight.attempts)

    def tell(self, commands: Commands) -> None:
        """The core was told of something else, and answered."""
        if commands or self._holding:
            self.perform(commands)

    # ---- what is commanded -------------------------------------------------------

    def perform(self, commands: Commands) -> None:
        """Do what the core says; look when it wants to be woken if that may have changed."""
        for command in commands:
            kind = type(command)
            if kind is Send:
                self._send(command)  # type: ignore[arg-type]
            elif kind is RequestRecord:
                self._account(command)  # type: ignore[arg-type]
            elif kind is Abort:
                self._abort(command)  # type: ignore[arg-type]
            elif kind is Refuse:
                self._flights[command.request_id].retry_after_s = command.retry_after_s  # type: ignore[union-attr]
        if self._holding:
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        wake_s = self.core.wake_s
        if wake_s < self._wake_s:
            self._wake_s = wake_s
            self.kernel.at(wake_s, self._tick, wake_s)

    def _tick(self, due_s: float) -> None:
        if due_s == self._wake_s:
            self._wake_s = inf
            self.perform(self.core.ticked(self.kernel.now_s))
            self._look_at_clock()

    def _send(self, send: Send) -> None:
        flight = self._flights[send.request_id]
        engine = self.engines[send.backend]
        sequence = engine.sequence(flight.arrival, send.attempt, self)
        flight.attempts.append(sequence)
        if self._holding:
            self._holding.discard(send.request_id)
        now_s = self.kernel.now_s
        failure = engine.accept(sequence, now_s)
        if failure is not None:
            self.kernel.at(now_s + engine.delay_s, self.fail, (sequence, failure))
        if self._hedges or send.first_byte_due_s < self._wake_s or not flight.arrival.request.streamed:
            self._look_at_clock()

    def _abort(self, abort: Abort) -> None:
        engine = self.engines.get(abort.backend)
        for sequence in self._flights[abort.request_id].attempts:
            if sequence.attempt == abort.attempt and engine is not None:
                self.kernel.at(self.kernel.now_s + engine.delay_s, engine.replica.drop, sequence)

    def _account(self, account: RequestRecord) -> None:
        request_id = account.request.id
        if self._holding:
            self._holding.discard(request_id)
        self._accounted(account, self._flights.pop(request_id))
