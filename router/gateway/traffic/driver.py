"""Performs the core's commands and feeds it what happens: the one place where decisions meet sockets.

Believes: the core's answers, in order. Must not know policies, or how bytes are framed. Every method is synchronous;
one loop timer serves all of the core's deadlines, and one sweep a second looks for streams that have gone silent.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Final, Protocol

from router.core.decisions import Abort, Break, Command, Refuse, RequestRecord, Send
from router.core.dispatcher import Dispatcher
from router.core.errors import Reason, UnsupportedFeature
from router.core.flight import Failure
from router.core.record import Recording
from router.core.types import Request, RequestId, Slo, Usage
from router.gateway.protocols.ingress import Ingress
from router.gateway.traffic.answers import Problem
from router.gateway.traffic.attempt import UpstreamAttempt
from router.gateway.traffic.faults import EngineError
from router.gateway.traffic.http_exchange import HttpExchange
from router.gateway.traffic.upstream import PoolLimits, Target, Upstream

_log = logging.getLogger("headroom")

_TIMER_STEP_S: Final = 0.001  # the loop's own resolution: sooner would spin


class RequestLog:
    """What one request's way through the gateway showed, beside the core's account of it. Never changed.

    ``decisions``: what the core said of it, in order;
    ``status``: the HTTP status sent (0: the client left before any); ``events``: data lines of the stream;
    ``gap_max_s``: the longest silence between two reads with tokens; ``connect_s``: opening a connection, 0 when one
    was idle; ``wire_id``: the client's ``x-request-id`` or ours; ``class_slo``: what the request's SLO class promises,
    whatever its headers asked for (None: the same as the request's SLO).
    No dataclass: one is made for every request, and a dataclass's own constructor is never compiled.
    """

    __slots__ = (
        "account", "class_slo", "connect_s", "decisions", "events", "gap_max_s", "path", "status", "stream", "wire_id",
    )  # fmt: skip

    def __init__(
        self,
        account: RequestRecord,
        path: str,
        wire_id: str,
        stream: bool,
        status: int,
        events: int,
        gap_max_s: float,
        connect_s: float,
        decisions: Sequence[Send | Refuse] = (),
        class_slo: Slo | None = None,
    ) -> None:
        self.account = account
        self.path = path
        self.wire_id = wire_id
        self.stream = stream
        self.status = status
        self.events = events
        self.gap_max_s = gap_max_s
        self.connect_s = connect_s
        self.decisions = decisions
        self.class_slo = account.request.slo if class_slo is None else class_slo

    @property
    def slo_source(self) -> str:
        """``class``: the request's SLO is that of its class; ``header``: its headers asked for another."""
        slo = self.account.request.slo
        return "class" if slo is self.class_slo or slo == self.class_slo else "header"


class Observer(Protocol):
    """Who is told how requests ended (metrics.py)."""

    def ended(self, outcome: RequestLog) -> None:
        """A request that the core knew is over."""

    def rejected(self, path: str, status: int) -> None:
        """A request was answered with an error before the core heard of it."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """``stall_s``: silence inside a reply that means a frozen engine; ``reader_s``: how long a client may not read."""

    stall_s: float = 60.0
    reader_s: float = 60.0
    sweep_s: float = 1.0


class _Entry:
    """A request that the core has not accounted for yet."""

    __slots__ = ("decisions", "exchange", "last", "open")

    def __init__(self, exchange: HttpExchange) -> None:
        self.exchange = exchange
        self.last: UpstreamAttempt | None = None
        self.open: dict[int, UpstreamAttempt] = {}
        self.decisions: list[Send | Refuse] = []


class Driver:
    """The shell around one core: its requests in flight, its backends' connections, its clock."""

    def __init__(
        self,
        core: Dispatcher | Recording,
        upstreams: Iterable[Target],
        observer: Observer,
        clock: Callable[[], float] = monotonic,
        *,
        ingress: Ingress | None = None,
        pool: PoolLimits | None = None,
        limits: StreamLimits | None = None,
    ) -> None:
        self.core = core
        self.observer = observer
        self.clock = clock
        self.ingress = ingress or Ingress()
        self.draining = False
        self.on_sweep: list[Callable[[float], None]] = []
        self._pool = pool or PoolLimits()
        self._limits = limits or StreamLimits()
        self._upstreams: dict[str, Upstream] = {}
        self._table: dict[RequestId, _Entry] = {}
        self._prefix = secrets.token_hex(6)
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = inf
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
        """Know where a backend is (or is now); telling the core that it joined is the caller's next step."""
        known = self._upstreams.get(target.name)
        if known is not None and known.target == target:
            return
        new = self._upstreams[target.name] = Upstream(target, self.clock, self._pool, known.gaps if known else None)
        if known is not None:
            known.close()
            for attempt in self._attempts_on(known):
                if attempt.connection is None:  # it was dialling, and that has just been given up
                    attempt.moved(new)

    def leave(self, name: str) -> None:
        """Forget a backend that the core was told has left: what is open there fails, one by one."""
        upstream = self._upstreams.pop(name, None)
        if upstream is None:
            return
        upstream.close()
        for attempt in self._attempts_on(upstream):
            attempt.abort()
            attempt.exchange.failed(attempt, Failure(f"{name} was removed", backend_fault=False))

    def _attempts_on(self, upstream: Upstream) -> list[UpstreamAttempt]:
        return [each for entry in self._table.values() for each in entry.open.values() if each.upstream is upstream]

    # -- a request's events ------------------------------------------------------------------------------------

    def next_id(self) -> RequestId:
        """A name for a request that no other has."""
        self._count += 1
        return self._prefix + str(self._count)

    def begin(self, exchange: HttpExchange, request: Request) -> None:
        """A request has been read."""
        if self.draining:
            exchange.keep_alive = False
            exchange.reject(Problem(503, "this router is shutting down", code=Reason.NO_BACKEND.value))
            return
        exchange.request = request
        self._table[request.id] = _Entry(exchange)
        self.perform(self.core.arrived(request, self.clock()))

    def first_byte(self, exchange: HttpExchange, attempt: UpstreamAttempt) -> None:
        """The status has gone out."""
        self.perform(self.core.first_byte(exchange.id, attempt.number, self.clock()))

    def ended(self, exchange: HttpExchange, attempt: UpstreamAttempt, usage: Usage) -> None:
        """The reply is complete."""
        request_id = exchange.id
        self._close(request_id, attempt.number)
        self.perform(self.core.ended(request_id, attempt.number, usage, self.clock()))

    def failed(self, exchange: HttpExchange, attempt: int, failure: Failure) -> None:
        """An attempt is dead."""
        if failure.backend_fault:
            _log.warning("%s", failure.why)
        self._close(exchange.id, attempt)
        self.perform(self.core.failed(exchange.id, attempt, failure, self.clock()))

    def left(self, exchange: HttpExchange) -> None:
        """The client is gone."""
        if exchange.request is not None:
            self.perform(self.core.client_left(exchange.id, self.clock()))

    def _close(self, request_id: RequestId, attempt: int) -> None:
        entry = self._table.get(request_id)
        if entry is not None:
            entry.open.pop(attempt, None)

    # -- commands ----------------------------------------------------------------------------------------------

    def perform(self, commands: Sequence[Command]) -> None:
        """Do what the core answered to any event; scrapers and reloads hand theirs here too."""
        for command in commands:
            if isinstance(command, Send):
                self._send(command)
            elif isinstance(command, RequestRecord):
                self._account(command)
            elif isinstance(command, Refuse):
                self._refuse(command)
            elif isinstance(command, Abort):
                self._abort(command)
            else:
                self._break(command)
        self._arm()

    def _send(self, command: Send) -> None:
        entry = self._table.get(command.request_id)
        if entry is None:
            return
        entry.decisions.append(command)
        exchange = entry.exchange
        upstream = self._upstreams.get(command.backend)
        if upstream is None:
            gone = Failure(f"{command.backend} is not configured here", backend_fault=False)
            self.failed(exchange, command.attempt, gone)
            return
        try:
            attempt = UpstreamAttempt(exchange, upstream, command.attempt, command.predicted_ttft_s)
        except UnsupportedFeature as unspoken:
            exchange.engine_said = EngineError(unspoken.status, str(unspoken))
            self.failed(exchange, command.attempt, Failure(str(unspoken), backend_fault=False))
            return
        exchange.engine_said = None
        entry.open[command.attempt] = entry.last = attempt
        attempt.start()

    def _refuse(self, command: Refuse) -> None:
        entry = self._table.get(command.request_id)
        if entry is not None:
            entry.decisions.append(command)
            entry.exchange.refuse(command)

    def _abort(self, command: Abort) -> None:
        entry = self._table.get(command.request_id)
        if entry is not None:
            attempt = entry.open.pop(command.attempt, None)
            if attempt is not None:
                attempt.abort()

    def _break(self, command: Break) -> None:
        entry = self._table.get(command.request_id)
        if entry is not None:
            entry.exchange.break_off(command.why)

    def _account(self, account: RequestRecord) -> None:
        entry = self._table.pop(account.request.id, None)
        if entry is None:
            return
        if self._emptied is not None and not self._table:
            self._emptied.set()
        exchange, last = entry.exchange, entry.last
        assert exchange.call is not None
        self.observer.ended(
            RequestLog(
                account,
                exchange.endpoint.path,
                exchange.wire_id.decode("latin-1"),
                exchange.call.stream,
                exchange.status,
                last.meter.events if last else 0,
                last.meter.gap_max_s if last else 0.0,
                last.connect_s if last else 0.0,
                entry.decisions,
                exchange.class_slo,
            )
        )

    # -- time --------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Keep one timer at the core's next deadline. One that is set too early does no harm: it sets the next."""
        if self.core.soonest_s >= self._timer_s:
            return
        wake_s = self.core.wake_s
        if wake_s >= self._timer_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(wake_s - self.clock(), _TIMER_STEP_S)
        self._timer_s = wake_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_s = None, inf
        self.perform(self.core.ticked(self.clock()))

    def start(self) -> None:
        """Begin to look for silent streams, once a sweep."""
        self._sweeper = asyncio.get_running_loop().call_later(self._limits.sweep_s, self._swept)

    def _swept(self) -> None:
        self.start()
        self.sweep(self.clock())

    def sweep(self, now_s: float) -> None:
        """End replies whose engine has been silent, drop clients that do not read, close old idle connections."""
        for entry in list(self._table.values()):
            winner = entry.exchange.winner
            if winner is None or winner.over:
                continue
            silent_s = now_s - winner.meter.last_s
            if winner.paused:
                if silent_s > self._limits.reader_s:
                    entry.exchange.front.transport.abort()
            elif silent_s > self._limits.stall_s:
                winner.stalled(silent_s)
        for upstream in self._upstreams.values():
            upstream.sweep()
        for look in self.on_sweep:
            look(now_s)

    def stop(self) -> None:
        """Stop all timers and close idle connections; nothing is in flight any more."""
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        self._timer_s = -inf  # none is set again
        for upstream in self._upstreams.values():
            upstream.close()

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests and wait for those in flight; after *timeout_s* the rest are ended honestly."""
        self.draining = True
        if self._table:
            self._emptied = asyncio.Event()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._emptied.wait()
            except TimeoutError:
                self._end_all()
        self.stop()

    def _end_all(self) -> None:
        why = Failure("this router is shutting down", backend_fault=False, retryable=False)
        for entry in list(self._table.values()):
            for attempt in list(entry.open.values()):
                attempt.abort()
                entry.exchange.failed(attempt, why)
            if not entry.exchange.response_complete:
                problem = Problem(503, why.why, code=Reason.NO_BACKEND.value)
                self.left(entry.exchange)
                entry.exchange.reject(problem)
