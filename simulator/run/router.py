"""One simulated router: the dispatcher of the core on the kernel's time, and the execution of its commands.

The gateway's driver does the same for a live router. Must not depend on how the dispatcher decides. The length of a
reply passes from the arrival to the replica and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf

from router.core.decisions import Abort, Command, Refuse, RequestRecord, Send
from router.core.dispatcher import Dispatcher
from router.core.flight import Failure
from router.core.types import Usage
from simulator.replica.sequence import Sequence as EngineSequence
from simulator.run.choices import usage_of_all
from simulator.run.fleet import SimulatedEngine
from simulator.run.kernel import Kernel
from simulator.workload.arrivals import Arrival

Commands = Sequence[Command]


class OpenRequest:
    """A request that is not over: its arrival, and the attempts that were sent."""

    __slots__ = ("arrival", "attempts", "retry_after_s")

    def __init__(self, arrival: Arrival) -> None:
        """No attempt has been sent."""
        self.arrival = arrival
        self.attempts: list[EngineSequence] = []
        self.retry_after_s = 0.0  # of the refusal


OnEnd = Callable[[RequestRecord, OpenRequest], None]


class SimulatedRouter:
    """One router. *engines* by backend name; *on_end* is called for every request that is over."""

    def __init__(
        self, name: str, core: Dispatcher, kernel: Kernel, engines: Mapping[str, SimulatedEngine], on_end: OnEnd
    ) -> None:
        """The dispatcher has no backends yet; the fleet adds them by ``backend_joined``."""
        self.name, self.core, self.kernel, self.engines = name, core, kernel, engines
        self._on_end = on_end
        self._open: dict[str, OpenRequest] = {}
        self._wake_s = inf
        self._hedges = core.limits.hedge_slo_share != inf
        self._holding: set[str] = set()
        self.held = 0
        self.on_change: Callable[[SimulatedRouter], None] | None = (
            None  # called when what is in flight may have changed
        )

    # ---- events ----------------------------------------------------------------

    def arrive(self, arrival: Arrival) -> None:
        """A request arrives at this router now."""
        request = arrival.request
        self._open[request.id] = OpenRequest(arrival)
        commands = self.core.arrived(request, self.kernel.now_s)
        if commands:
            self.perform(commands)
        else:
            self.held += 1
            self._holding.add(request.id)
            self._schedule_tick()
            if self.on_change is not None:
                self.on_change(self)

    def on_first_token(self, sequence: EngineSequence) -> None:
        """The first token of an attempt has arrived, which commits its reply too: nothing comes before it here.

        A reply that is not streamed has no visible first token.
        """
        open_request = self._open.get(sequence.id)
        if open_request is not None and not open_request.arrival.request.streamed:
            return
        commands = self.core.first_token(sequence.id, sequence.attempt, self.kernel.now_s)
        if commands or self._holding:
            self.perform(commands)
        elif self.on_change is not None:
            self.on_change(self)

    def on_finished(self, sequence: EngineSequence) -> None:
        """The reply of an attempt is complete."""
        usage = Usage(sequence.generated, sequence.prompt_tokens, max(0, sequence.cached_tokens), True)
        if sequence.siblings:
            usage = usage_of_all(sequence, self._open[sequence.id].arrival.request)
        self.perform(self.core.ended(sequence.id, sequence.attempt, usage, self.kernel.now_s))

    def on_failed(self, lost: tuple[EngineSequence, Failure]) -> None:
        """An attempt has failed."""
        sequence, failure = lost
        self.perform(self.core.failed(sequence.id, sequence.attempt, failure, self.kernel.now_s))

    def leave(self, request_id: str) -> None:
        """The client disconnects, unless its request is over."""
        if request_id in self._open:
            self.perform(self.core.client_left(request_id, self.kernel.now_s))

    def has(self, request_id: str) -> bool:
        """Whether the request is here and not over."""
        return request_id in self._open

    def arrival(self, request_id: str) -> Arrival:
        """The arrival of an open request."""
        return self._open[request_id].arrival

    def awaits_first_token(self, request_id: str) -> bool:
        """Whether the request is open and no attempt has a token."""
        open_request = self._open.get(request_id)
        return open_request is not None and not any(attempt.generated for attempt in open_request.attempts)

    def on_commands(self, commands: Commands) -> None:
        """Execute the commands that the dispatcher returned for an event of the fleet."""
        if commands or self._holding:
            self.perform(commands)

    # ---- commands ----------------------------------------------------------------

    def perform(self, commands: Commands) -> None:
        """Execute commands, and schedule the next tick if it may have changed."""
        for command in commands:
            kind = type(command)
            if kind is Send:
                self._send(command)  # type: ignore[arg-type]
            elif kind is RequestRecord:
                self._end(command)  # type: ignore[arg-type]
            elif kind is Abort:
                self._abort(command)  # type: ignore[arg-type]
            elif kind is Refuse:
                self._open[command.request_id].retry_after_s = command.retry_after_s  # type: ignore[union-attr]
        if self._holding:
            self._schedule_tick()
        if self.on_change is not None:
            self.on_change(self)

    def _schedule_tick(self) -> None:
        wake_s = self.core.wake_s
        if wake_s < self._wake_s:
            self._wake_s = wake_s
            self.kernel.at(wake_s, self._tick, wake_s)

    def _tick(self, due_s: float) -> None:
        if due_s == self._wake_s:
            self._wake_s = inf
            self.perform(self.core.ticked(self.kernel.now_s))
            self._schedule_tick()

    def _send(self, send: Send) -> None:
        open_request = self._open[send.request_id]
        engine = self.engines[send.backend]
        sequence = engine.sequence(open_request.arrival, send.attempt, self)
        open_request.attempts.append(sequence)
        if self._holding:
            self._holding.discard(send.request_id)
        now_s = self.kernel.now_s
        failure = engine.accept(sequence, now_s)
        if failure is not None:
            self.kernel.at(now_s + engine.delay_s, self.on_failed, (sequence, failure))
        if self._hedges or send.first_byte_due_s < self._wake_s or not open_request.arrival.request.streamed:
            self._schedule_tick()

    def _abort(self, abort: Abort) -> None:
        engine = self.engines.get(abort.backend)
        for sequence in self._open[abort.request_id].attempts:
            if sequence.attempt == abort.attempt and engine is not None:
                for each in (sequence, *sequence.siblings):
                    self.kernel.at(self.kernel.now_s + engine.delay_s, engine.replica.drop, each)

    def _end(self, record: RequestRecord) -> None:
        request_id = record.request.id
        if self._holding:
            self._holding.discard(request_id)
        self._on_end(record, self._open.pop(request_id))
