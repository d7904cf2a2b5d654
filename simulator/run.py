"""The router's own core on the kernel: arrivals, networks, engines, scrapes and timers, as a gateway has them.

Believes: the dispatcher decides; this shell only performs its commands and tells it what happened, as the gateway
does with sockets. Must not know: why anything was decided. Output lengths pass from the arrival to the replica and
nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Any

from router.core.decisions import Abort, Account, Command, Send
from router.core.dispatcher import Dispatcher, Failure, Limits
from router.core.policy import Admission, Routing
from router.core.types import EngineReport, Request, Usage
from simulator.books import Books
from simulator.kernel import Kernel
from simulator.pool import Pool, Site
from simulator.replica import Replica
from simulator.sequence import Sequence as EngineSequence
from simulator.workload import Arrival

Progress = Callable[[int], None]
_PROGRESS_EVERY = 500


@dataclass(frozen=True, slots=True)
class Played:
    """One run, over: its books, its engines as they ended, and how long it lasted on the virtual clock."""

    books: Books
    replicas: dict[str, Replica]
    sites: list[Site]
    horizon_s: float
    held: int


class Engine:
    """A replica as a router sees it: behind an API server and a network, with constant delays but for jitter."""

    __slots__ = ("_api_jitter", "_api_s", "_api_token_s", "_draw", "delay_s", "name", "replica")

    def __init__(self, site: Site, replica: Replica) -> None:
        """The overheads are the truth's."""
        hidden = site.truth.hidden
        self.name, self.replica = site.name, replica
        self.delay_s = site.member.network_s
        self._api_s, self._api_token_s, self._api_jitter = hidden.api_s, hidden.api_token_s, hidden.api_jitter
        self._draw = Random(f"{site.truth.seed}/api").random

    def accept(self, sequence: EngineSequence, now_s: float) -> bool:
        """Send it: it is in the engine's queue after the network and the API server. False: refused at the door."""
        replica = self.replica
        if not replica.fits(sequence.prompt_tokens) or replica.waiting_at_most >= replica.limits.queue_max:
            return False
        api_s = self._api_s * (1.0 + self._api_jitter * (2.0 * self._draw() - 1.0))
        replica.add(sequence, now_s + self.delay_s + api_s + self._api_token_s * sequence.prompt_tokens)
        return True


class Shell:
    """One router: a dispatcher, and the hands that perform its commands."""

    def __init__(self, core: Dispatcher, kernel: Kernel, engines: dict[str, Engine], books: Books) -> None:
        """*engines* by backend name; the core hears of them through ``backend_joined``, as in life."""
        self.core, self.kernel, self.engines, self.books = core, kernel, engines, books
        self.lengths: dict[str, int] = {}
        self.requests: dict[str, Request] = {}
        self._open: dict[tuple[str, int], EngineSequence] = {}
        self._wake_s = inf
        self.held = 0

    # ---- what happens ----------------------------------------------------------

    def arrive(self, arrival: Arrival) -> None:
        """A request comes to this router, now."""
        request = arrival.request
        self.lengths[request.id] = arrival.output_tokens
        self.requests[request.id] = request
        before = self.core.held
        self.perform(self.core.arrived(request, self.kernel.now_s))
        self.held += self.core.held > before

    def first_token(self, sequence: EngineSequence) -> None:
        """An engine's first token of an attempt has come."""
        commands = self.core.first_byte(sequence.id, sequence.attempt, self.kernel.now_s)
        if commands:
            self.perform(commands)

    def finished(self, sequence: EngineSequence) -> None:
        """An attempt's reply is complete."""
        self._open.pop((sequence.id, sequence.attempt), None)
        usage = Usage(sequence.generated, sequence.prompt_tokens, max(0, sequence.cached_tokens))
        self.perform(self.core.ended(sequence.id, sequence.attempt, usage, self.kernel.now_s))

    def fail(self, sequence: EngineSequence, why: str, *, fault: bool, retryable: bool) -> None:
        """An attempt is dead."""
        self._open.pop((sequence.id, sequence.attempt), None)
        failure = Failure(why, backend_fault=fault, retryable=retryable)
        self.perform(self.core.failed(sequence.id, sequence.attempt, failure, self.kernel.now_s))

    def _tick(self, due_s: float) -> None:
        if due_s != self._wake_s:
            return
        self._wake_s = inf
        self.perform(self.core.ticked(self.kernel.now_s))

    # ---- what is commanded -------------------------------------------------------

    def perform(self, commands: Sequence[Command]) -> None:
        """Do what the core says, then see when it wants to be woken."""
        for command in commands:
            kind = type(command)
            if kind is Send:
                self._send(command)  # type: ignore[arg-type]
            elif kind is Account:
                self._account(command)  # type: ignore[arg-type]
            elif kind is Abort:
                self._abort(command)  # type: ignore[arg-type]
        wake_s = self.core.wake_s
        if wake_s < self._wake_s:
            self._wake_s = wake_s
            self.kernel.at(wake_s, self._tick, wake_s)

    def _send(self, send: Send) -> None:
        request = self.requests[send.request_id]
        engine = self.engines[send.backend]
        length = self.lengths[request.id]
        if request.output_tokens_max and length > request.output_tokens_max:
            length = request.output_tokens_max
        room = engine.replica.limits.prompt_tokens_max + 1 - request.prompt_tokens
        sequence = EngineSequence(
            request.id,
            request.prompt_tokens,
            length if length < room else max(1, room),
            send.attempt,
            request.priority,
            request.prefix,
            request.prefix_block_tokens,
        )
        self._open[request.id, send.attempt] = sequence
        now_s = self.kernel.now_s
        if not engine.accept(sequence, now_s):
            self.kernel.at(now_s + engine.delay_s, self._refused, (sequence, engine))

    def _refused(self, refusal: tuple[EngineSequence, Engine]) -> None:
        sequence, engine = refusal
        if engine.replica.fits(sequence.prompt_tokens):
            self.fail(sequence, f"{engine.name} refused: its queue is full", fault=False, retryable=True)
        else:
            self.fail(sequence, f"{engine.name} refused: prompt too long", fault=False, retryable=False)

    def _abort(self, abort: Abort) -> None:
        sequence = self._open.pop((abort.request_id, abort.attempt), None)
        engine = self.engines.get(abort.backend)
        if sequence is not None and engine is not None:
            self.kernel.at(self.kernel.now_s + engine.delay_s, engine.replica.drop, sequence)

    def _account(self, account: Account) -> None:
        self.books.write(account)
        del self.lengths[account.request.id], self.requests[account.request.id]


def play(
    arrivals: Sequence[Arrival],
    pool: Pool,
    routing: Routing,
    admission: Admission,
    seed: int,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Played:
    """Run every arrival through one router in front of *pool*; the same arguments give the same books."""
    kernel, books = Kernel(), Books()
    engines: dict[str, Engine] = {}
    shell = Shell(Dispatcher(routing, admission, Random(f"{seed}/router"), limits), kernel, engines, books)
    sites = pool.sites(seed)
    for site in sites:
        replica = Replica(site.name, site.truth, site.limits, kernel, shell.first_token, shell.finished)
        engines[site.name] = Engine(site, replica)
        shell.perform(shell.core.backend_joined(site.backend, 0.0))
    scraper = Scraper(shell, pool.scrape_s)
    run_until, arrive = kernel.run_until, shell.arrive
    for number, arrival in enumerate(arrivals):
        run_until(arrival.request.arrived_s)
        arrive(arrival)
        if progress is not None and not number % _PROGRESS_EVERY:
            progress(len(books))
    while shell.core.in_flight:
        run_until(kernel.next_s)
    scraper.stop()
    if progress is not None:
        progress(len(books))
    return Played(books, {name: engine.replica for name, engine in engines.items()}, sites, kernel.now_s, shell.held)


class Scraper:
    """Asks every engine for its queue each *period_s*, spread over the period; the answer takes the network's time."""

    def __init__(self, shell: Shell, period_s: float) -> None:
        """Start at once; 0 for *period_s*: never ask."""
        self._shell, self._period_s = shell, period_s
        self._seen: dict[str, tuple[int, int]] = {}
        for number, engine in enumerate(shell.engines.values() if period_s > 0 else ()):
            shell.kernel.at(period_s * (number + 1) / len(shell.engines), self._ask, engine)

    def stop(self) -> None:
        """Ask no more."""
        self._period_s = 0.0

    def _ask(self, engine: Engine) -> None:
        kernel, now_s = self._shell.kernel, self._shell.kernel.now_s
        if not self._period_s:
            return
        self._shell.core.asking(engine.name, now_s)
        kernel.at(now_s + engine.delay_s, self._answered, (engine, now_s))
        kernel.at(now_s + self._period_s, self._ask, engine)

    def _answered(self, asked: tuple[Any, float]) -> None:
        engine, asked_s = asked
        replica: Replica = engine.replica
        prompts, cached = self._seen.get(engine.name, (0, 0))
        self._seen[engine.name] = (replica.prompt_tokens, replica.cached_tokens)
        new = replica.prompt_tokens - prompts
        report = EngineReport(
            asked_s,
            float(replica.running),
            float(replica.waiting),
            replica.kv_usage(),
            (replica.cached_tokens - cached) / new if new else float("nan"),
            float(replica.limits.kv_blocks * replica.limits.block_tokens),
        )
        shell = self._shell
        shell.perform(shell.core.reported(engine.name, report, shell.kernel.now_s))
