"""Performs the core's commands on sockets, and reports what happens there to the core.

Must not depend on policies, or on how bytes are framed. Every method is synchronous; one loop timer serves all of the
core's deadlines, and one sweep a second finds streams that have gone silent. Neither judges after a pause of this
process until the loop has read what came meanwhile. Commands are performed in the order of the core's answers: one that
arises while another is performed joins the end of the queue.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan
from time import monotonic
from typing import Final
from uuid import uuid4

from router.core.decisions import Abort, Break, Command, Refuse, RequestRecord, Send
from router.core.dispatcher import NO_USAGE, Dispatcher
from router.core.errors import Reason, UnsupportedFeature
from router.core.flight import LACKING, Failure, FailureKind
from router.core.quota import Quotas
from router.core.record import Recording
from router.core.types import Request, RequestId, Usage
from router.engines import Translation
from router.gateway.pauses import CATCH_UP_S, paused_s
from router.gateway.protocols.answers import Problem
from router.gateway.protocols.ingress import Ingress
from router.gateway.protocols.target import Target
from router.gateway.traffic.attempt import UpstreamAttempt
from router.gateway.traffic.buffers import Buffers
from router.gateway.traffic.call import Call
from router.gateway.traffic.fast_path import BUILT, FastPath
from router.gateway.traffic.faults import EngineError
from router.gateway.traffic.http import Head
from router.gateway.traffic.ports import Client, Frame, ReplySink, RequestDriver, TokenObserver
from router.gateway.traffic.request_log import RequestLog
from router.gateway.traffic.request_trace import TraceSource
from router.gateway.traffic.upstream import Dialler, PoolLimits, Upstream

_log = logging.getLogger("headroom")

_AGAIN_S: Final = 60.0  # what goes on is logged so often
_COUNTED: Final = 12  # digits of a UUID's last group, which counts: a tenth of the cost of a random one

_UNANSWERED: Final = "the proxy has no answer yet, so it can be given no other one"
_TIMER_STEP_S: Final = 0.001  # the loop's own resolution: sooner would spin


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """``stall_s``: silence inside a reply that means a frozen engine; ``reader_s``: how long a client may not read."""

    stall_s: float = 60.0
    reader_s: float = 60.0
    sweep_s: float = 1.0


class _InFlight(ReplySink):
    """A request from its arrival to its record.

    ``attempts``: all that were started, each ``over`` or open; ``winner``: the one whose reply the client gets;
    ``engine_error``: the last attempt's, where its engine answered with one; of the last engine that could have served
    the request where there was such (``faulted``). ``own_error``: of the last engine of its own model, and why the
    attempt failed: another model's says nothing of that.
    """

    __slots__ = (
        "attempts", "call", "client", "decisions", "driver", "engine_error", "fault_error", "faulted", "own_error",
        "winner",
    )  # fmt: skip

    def __init__(self, driver: "Driver", call: Call, client: Client) -> None:
        self.driver = driver
        self.call = call
        self.client = client
        self.attempts: list[UpstreamAttempt] = []
        self.winner: UpstreamAttempt | None = None
        self.engine_error: EngineError | None = None
        self.fault_error: EngineError | None = None
        self.own_error: tuple[str, EngineError | None] = ("", None)
        self.faulted = False
        self.decisions: list[Send | Refuse] = []

    def find(self, number: int) -> UpstreamAttempt | None:
        """The attempt of this number."""
        for attempt in self.attempts:
            if attempt.number == number:
                return attempt
        return None

    @property
    def held_bytes(self) -> int:
        """Bytes of its replies that may not go to the client yet."""
        return sum([attempt.held_bytes for attempt in self.attempts])

    def open(self, attempt: int, head: Head, body: bytes, translation: Translation | None) -> Frame | None:
        winner = self.winner = self.find(attempt)
        assert winner is not None
        if winner.model != self.call.body.model:
            self.client.serves(winner.model, winner.fallback_why)
        frame = self.client.open(head, body, translation, winner.upstream.wire_name, winner.predicted_ttft_s)
        self.driver.committed(self.call.request.id, attempt)
        self.call.let_go()  # no other engine is tried: a stream may take minutes, and a prompt megabytes
        self.client.release()
        return frame

    def first_token(self, attempt: int) -> None:
        self.driver.first_token(self.call.request.id, attempt)

    def writer(self) -> Callable[[bytes], object]:
        return self.client.writer()

    def socket(self) -> int:
        return self.client.socket()

    def ended(self, attempt: int, usage: Usage, last_token_s: float) -> None:
        self.driver.ended(self.call.request.id, attempt, usage, last_token_s)
        self.client.finish()

    def failed(self, attempt: int, failure: Failure, engine_error: EngineError | None) -> None:
        shown = engine_error if engine_error is None or engine_error.for_client else None
        if failure.kind not in LACKING:
            self.faulted, self.fault_error = True, shown
        self.engine_error = self.fault_error if self.faulted else shown
        sent = self.find(attempt)
        if sent is not None and not sent.fallback_why:
            self.own_error = failure.why, self.engine_error
        if self.call.trace is not None:
            self.call.trace.failed(attempt, failure, self.driver.clock())
        self.driver.failed(self.call.request.id, attempt, failure, self.usage_so_far(), self.last_token_s())

    def refusal_error(self, why: str) -> EngineError | None:
        """The engine's error that stands for a refusal with this reason."""
        own, error = self.own_error
        return error if why and why == own else self.engine_error

    def late_tokens(self, backend: str, tokens: int, *, estimated: bool) -> None:
        self.driver.late_tokens(self.call.request, backend, tokens, estimated=estimated)

    def usage_so_far(self) -> Usage:
        """Token counts of what came of the reply that the client gets."""
        return self.winner.usage_so_far() if self.winner is not None else NO_USAGE

    def last_token_s(self) -> float:
        """When the last token came of the reply that the client gets (nan: none came)."""
        return self.winner.last_token_s() if self.winner is not None else nan


class Driver(RequestDriver):
    """The shell around one core: its requests in flight, its backends' connections, its clock."""

    def __init__(
        self,
        core: Dispatcher | Recording,
        upstreams: Iterable[Target],
        observer: TokenObserver,
        clock: Callable[[], float] = monotonic,
        *,
        ingress: Ingress | None = None,
        pool: PoolLimits | None = None,
        limits: StreamLimits | None = None,
        buffers: Buffers | None = None,
        traces: TraceSource | None = None,
        dialler: Dialler | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        """``dialler``: what opens connections to engines; None: the sockets of this process."""
        self.core = core
        self.clock = clock
        self.ingress = ingress or Ingress()
        self.buffers = buffers or Buffers()
        self.quotas = quotas or Quotas()
        self.draining = False
        self.traces = traces
        self.on_sweep: list[Callable[[float], None]] = []
        self._observer = observer
        self._pool = pool or PoolLimits()
        self._dialler = dialler
        self._fast_path = FastPath(clock) if BUILT else None
        self._limits = limits or StreamLimits()
        self._upstreams: dict[str, Upstream] = {}
        self._in_flight: dict[RequestId, _InFlight] = {}
        self._commands: deque[Command] = deque()
        self._performing = False
        self.on_event: Callable[[Sequence[Command]], None] | None = None  # called after each event of the core
        self._prefix = str(uuid4())[:-_COUNTED]  # of every id made here: random, but for the version
        self._exhausted_s = -inf  # when it was last logged
        self._count = secrets.randbits(4 * _COUNTED - 1)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = inf
        self._tick_due_s = inf
        self._sweep_due_s = inf
        self.awake_s = -inf
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None
        for target in upstreams:
            self.join(target)

    # -- backends ----------------------------------------------------------------------------------------------

    @property
    def upstreams(self) -> Mapping[str, Upstream]:
        """The connections to each backend, by name; ``gaps`` of each is a histogram to export."""
        return self._upstreams

    def join(self, target: Target) -> None:
        """Add a backend or change its address; ``core.backend_joined`` is the caller's next step."""
        known = self._upstreams.get(target.name)
        if known is not None and known.target == target:
            return
        new = self._upstreams[target.name] = Upstream(
            target, self.clock, self._pool, known, self._dialler, self._fast_path
        )
        if known is not None:
            known.close()
            for _, attempt in self._attempts_on(known):
                if attempt.connection is None:  # it was connecting, and that has just been cancelled
                    attempt.moved(new)

    def leave(self, name: str) -> None:
        """Remove a backend, after ``core.backend_left``: its open attempts fail, one by one."""
        upstream = self._upstreams.pop(name, None)
        if upstream is None:
            return
        upstream.close()
        for request, attempt in self._attempts_on(upstream):
            attempt.abort()
            request.failed(attempt.number, _withdrawn(f"{name} was removed"), None)

    def last_read_s(self, name: str) -> float:
        """When bytes of a reply last came from a backend, on the driver's clock (-inf: never)."""
        upstream = self._upstreams.get(name)
        if upstream is None:
            return -inf
        readers = (connection.reader for connection in upstream.open)
        reading = (reader.heard_s for reader in readers if isinstance(reader, UpstreamAttempt))
        return max(upstream.last_read_s, *reading, -inf)

    def _attempts_on(self, upstream: Upstream) -> list[tuple[_InFlight, UpstreamAttempt]]:
        return [
            (request, attempt)
            for request in self._in_flight.values()
            for attempt in request.attempts
            if attempt.upstream is upstream and not attempt.over
        ]

    # -- a request's events ------------------------------------------------------------------------------------

    def next_id(self) -> RequestId:
        """A new, unique request id: a UUID, since some engines refuse others in ``x-request-id``."""
        self._count += 1
        return self._prefix + f"{self._count:012x}"

    def begin(self, call: Call, client: Client) -> None:
        """Route a call; its answer goes to *client*."""
        request = call.request
        self._in_flight[request.id] = _InFlight(self, call, client)
        self._observer.arrived(request, call.class_slo)
        self.perform(self.core.arrived(request, self.clock()))

    def committed(self, request_id: RequestId, attempt: int) -> None:
        """The status has been sent."""
        self.perform(self.core.committed(request_id, attempt, self.clock()))

    def first_token(self, request_id: RequestId, attempt: int) -> None:
        """The first token of a reply has come."""
        self.perform(self.core.first_token(request_id, attempt, self.clock()))

    def served_by(self, request_id: RequestId, attempt: int, backend: str) -> None:
        """A proxy has the reply to an attempt from another backend than the one that it was sent to."""
        request, upstream = self._in_flight.get(request_id), self._upstreams.get(backend)
        moved = request.find(attempt) if request is not None else None
        if moved is not None and upstream is not None and not moved.over and moved.upstream is not upstream:
            moved.served_by(upstream)
            self.perform(self.core.served_by(request_id, attempt, backend, self.clock()))

    def ended(self, request_id: RequestId, attempt: int, usage: Usage, last_token_s: float) -> None:
        """The reply is complete."""
        self.perform(self.core.ended(request_id, attempt, usage, self.clock(), last_token_s))

    def failed(self, request_id: RequestId, attempt: int, failure: Failure, usage: Usage, last_token_s: float) -> None:
        """An attempt has failed; ``usage``, ``last_token_s``: of what the client got."""
        if failure.kind is FailureKind.EXHAUSTED:
            self._log_exhausted(failure.why)
        self.perform(self.core.failed(request_id, attempt, failure, self.clock(), usage, last_token_s))

    def late_tokens(self, request: Request, backend: str, tokens: int, *, estimated: bool) -> None:
        """A backend generated so many more for a request that has ended, before it noticed."""
        self._observer.late_tokens(request, backend, tokens, estimated=estimated)

    def _log_exhausted(self, why: str) -> None:
        now_s = self.clock()
        if now_s - self._exhausted_s > _AGAIN_S:
            self._exhausted_s = now_s
            _log.error("this router has no file descriptor or port left for connections to engines: %s", why)

    def left(self, request_id: RequestId) -> None:
        """The client has closed its connection."""
        request = self._in_flight.get(request_id)
        if request is not None:
            usage, last_s = request.usage_so_far(), request.last_token_s()
            self.perform(self.core.client_left(request_id, self.clock(), usage, last_s))

    def pause(self, request_id: RequestId) -> None:
        """The client reads more slowly than the engine writes."""
        request = self._in_flight.get(request_id)
        if request is not None and request.winner is not None:
            request.winner.pause()

    def resume(self, request_id: RequestId) -> None:
        """The client has caught up."""
        request = self._in_flight.get(request_id)
        if request is not None and request.winner is not None:
            request.winner.resume()

    def rejected(self, path: str, status: int, peer: tuple[str, int] | None) -> None:
        """A request of that client was answered with an error before it reached the core."""
        self._observer.rejected(path, status, peer)

    # -- commands ----------------------------------------------------------------------------------------------

    def perform(self, commands: Sequence[Command]) -> None:
        """Perform the core's answer to an event, here or reported by scrapers and reloads.

        Called while a command is performed, it appends to the queue: nothing is performed inside of another command.
        """
        if self._performing or self._commands or len(commands) != 1:
            self._commands.extend(commands)
        if self._performing:
            return
        self._performing = True
        try:
            if not self._commands and commands:  # one alone, as most are, need not pass through the queue
                self._perform_one(commands[0])
            while self._commands:
                self._perform_one(self._commands.popleft())
        finally:
            self._performing = False
        self._arm()
        if self.on_event is not None:
            self.on_event(commands)

    def _perform_one(self, command: Command) -> None:
        if isinstance(command, RequestRecord):
            self._log_request(command)
            return
        request = self._in_flight.get(command.request_id)
        if request is None:
            return
        if isinstance(command, Send):
            self._send(command, request)
        elif isinstance(command, Refuse):
            request.decisions.append(command)
            request.client.refuse(command, request.refusal_error(command.why))
        elif isinstance(command, Abort):
            attempt = request.find(command.attempt)
            if attempt is not None:
                attempt.abort()
                if request.call.trace is not None:
                    request.call.trace.aborted(command.attempt, self.clock())
        else:
            _break_off(command, request)

    def _send(self, command: Send, request: _InFlight) -> None:
        request.decisions.append(command)
        upstream = self._upstreams.get(command.backend)
        if upstream is None:
            gone = _withdrawn(f"{command.backend} is not configured here")
            request.failed(command.attempt, gone, request.engine_error)
            return
        again = request.client.sent()
        if again and not request.client.replaceable():
            request.failed(command.attempt, _withdrawn(_UNANSWERED, retryable=False), request.engine_error)
            return
        try:
            attempt = UpstreamAttempt(
                request.call,
                upstream,
                request,
                command.attempt,
                command.predicted_ttft_s,
                command.model,
                command.fallback_why,
                again,
            )
        except UnsupportedFeature as unsupported:
            error = EngineError(unsupported.status, str(unsupported), kind=FailureKind.UNSUPPORTED)
            failure = Failure(error.message, backend_fault=False, kind=error.kind)
            request.failed(command.attempt, failure, error)
            return
        if request.call.trace is not None:
            request.call.trace.sent(command.attempt, upstream.target, self.clock())
        request.engine_error = None
        request.attempts.append(attempt)
        attempt.start()

    def _log_request(self, record: RequestRecord) -> None:
        request = self._in_flight.pop(record.request.id, None)
        if request is None:
            return
        if self._emptied is not None and not self._in_flight:
            self._emptied.set()
        last = request.attempts[-1] if request.attempts else None
        if last is not None and last.meter.heard_s > 0.0:
            last.upstream.last_read_s = last.meter.heard_s
        if self.quotas.in_flight:
            self._settle(record)
        self._observer.ended(_log_of(request, record))
        request.attempts.clear()  # they refer to the request: no cycle is left to the garbage collector
        request.winner = None

    def _settle(self, record: RequestRecord) -> None:
        """Charge what the request used in place of what it was expected to: nothing where no engine got it."""
        usage = record.usage
        prompt = 0 if isnan(record.sent_s) else usage.prompt_tokens or record.request.prompt_tokens
        cached, model = usage.cached_tokens, record.served_model
        self.quotas.settle(record.request.id, prompt, cached, usage.output_tokens, self.clock(), model)

    def running(self, request_id: str) -> list[RequestLog]:
        """The request in flight whose own id this is, else all to which clients gave it, newest first: each as if its
        client left now.
        """
        own = self._in_flight.get(request_id)
        wire_id = request_id.encode("latin-1", "replace")
        given = [each for each in reversed(self._in_flight.values()) if each.call.wire_id == wire_id]
        found = []
        for request in [own] if own is not None else given:
            usage, last_s = request.usage_so_far(), request.last_token_s()
            record = self.core.so_far(request.call.request.id, usage, self.clock(), last_s)
            if record is not None:
                found.append(_log_of(request, record))
        return found

    # -- time --------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Keep one timer at the core's next deadline. One that fires too early does no harm: it sets the next."""
        if self.core.soonest_s >= self._timer_s:
            return
        wake_s = max(self.core.wake_s, self.awake_s + CATCH_UP_S)
        if wake_s >= self._timer_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        now_s = self.clock()
        delay_s = max(wake_s - now_s, _TIMER_STEP_S)
        self._timer_s, self._tick_due_s = wake_s, now_s + delay_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_s = None, inf
        if self._stood_still(self._tick_due_s):
            self._arm()
        else:
            self.perform(self.core.ticked(self.clock()))

    def start(self) -> None:
        """Start the periodic sweep."""
        self._sweep_due_s = self.clock() + self._limits.sweep_s
        self._sweeper = asyncio.get_running_loop().call_later(self._limits.sweep_s, self._swept)

    def _swept(self) -> None:
        due_s = self._sweep_due_s
        self.start()
        if not self._stood_still(due_s):  # else the next sweep judges, by what has been read until then
            self.sweep(self.clock())

    def _stood_still(self, due_s: float) -> bool:
        """Whether a timer that was due then shows a pause of this process: silence during it is no engine's fault."""
        now_s = self.clock()
        still_s = paused_s(max(due_s, self.awake_s), now_s)
        if not still_s:
            return False
        self.awake_s = now_s
        _log.warning("this process stood still for %.1f s: deadlines of engines move on by as much", still_s)
        for request in self._in_flight.values():
            if request.winner is not None:
                meter = request.winner.current_meter()
                meter.last_s = min(meter.last_s + still_s, now_s)
                meter.heard_s = min(meter.heard_s + still_s, now_s)
        self.perform(self.core.paused(still_s + CATCH_UP_S, now_s))
        return True

    def sweep(self, now_s: float) -> None:
        """End replies whose engine has been silent, drop clients that do not read, close old idle connections."""
        held_back = 0
        for request in list(self._in_flight.values()):
            held_back += request.held_bytes
            winner = request.winner
            if winner is None or winner.over:
                continue
            silent_s = now_s - winner.heard_s
            if winner.paused:
                if silent_s > self._limits.reader_s:
                    request.client.drop()
            elif silent_s > self._limits.stall_s:
                winner.stalled(silent_s)
        self.buffers.held_back = held_back
        for upstream in self._upstreams.values():
            upstream.sweep()
        for callback in self.on_sweep:
            callback(now_s)

    def stop(self) -> None:
        """Stop all timers and close idle connections; nothing is in flight any more."""
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        self._timer_s = -inf  # none is set again
        for upstream in self._upstreams.values():
            upstream.close()
        if self._fast_path is not None:
            self._fast_path.close()

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests and wait for those in flight; after *timeout_s* the rest are ended honestly."""
        self.draining = True
        if self._in_flight:
            self._emptied = asyncio.Event()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._emptied.wait()
            except TimeoutError:
                self._end_all()
        self.stop()

    def _end_all(self) -> None:
        why = _withdrawn("this router is shutting down", retryable=False)
        for request in list(self._in_flight.values()):
            for attempt in tuple(request.attempts):
                if not attempt.over:
                    attempt.abort()
                    request.failed(attempt.number, why, None)
            if not request.client.response_complete:
                self.left(request.call.request.id)
                request.client.reject(Problem(503, why.why, code=Reason.NO_BACKEND.value))


def _withdrawn(why: str, *, retryable: bool = True) -> Failure:
    """An attempt ends by the gateway's own will."""
    return Failure(why, backend_fault=False, retryable=retryable, kind=FailureKind.WITHDRAWN)


def _log_of(request: _InFlight, record: RequestRecord) -> RequestLog:
    call, client, winner = request.call, request.client, request.winner
    last = request.attempts[-1] if request.attempts else None
    return RequestLog(
        record,
        call.endpoint.path,
        call.wire_id.decode("latin-1"),
        call.body.stream,
        client.status,
        last.meter.events if last else 0,
        last.meter.gap_max_s if last else 0.0,
        last.connect_s if last else 0.0,
        request.decisions,
        call.class_slo,
        client.peer,
        call.body.size_bytes,
        winner.meter.reply_bytes if winner is not None else client.answer_bytes,
        call.trace,
    )


def _break_off(command: Break, request: _InFlight) -> None:
    """End the client's stream; the error event, where one may follow, has the engine's own message if there is one."""
    winner, error = request.winner, request.engine_error
    assert winner is not None
    request.client.break_off(error.message if error else command.why, winner.ending if winner.takes_event() else None)
