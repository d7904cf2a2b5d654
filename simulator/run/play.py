"""One run: arrivals, routers, engines and what befalls them, on one virtual clock.

The routers are the gateway's own core; everything here only carries events to it and performs what it answers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol, cast

import policies
from router.core.decisions import EndState, RequestRecord
from router.core.dispatcher import Dispatcher
from router.core.errors import Reason
from router.core.flight import DispatchLimits
from router.core.policy import Admission, Routing
from simulator.pool import Pool
from simulator.run.fleet import ReplicaFleet, SimulatedEngine
from simulator.run.kernel import Kernel
from simulator.run.result_table import ResultTable
from simulator.run.router import Flight, Shell
from simulator.run.scaling import Autoscaler
from simulator.run.timeline import Timeline
from simulator.workload.arrivals import Arrival, Workload

Progress = Callable[[int], None]
Stop = Callable[[ResultTable], object]  # true or not; numpy has a truth of its own
RequestLookup = Callable[[str], tuple[Arrival, float] | None]
"""An open request by id, and the time of its first token (nan: none yet); None for a request that is over."""
_PROGRESS_EVERY = 500
_READING_S = 0.015  # a token, at a typical pace: where in its reply a client hangs up; a reply that is over stays so


class Decider(Routing, Admission, Protocol):
    """Routing and admission in one object, such as the clairvoyant router."""


MakeDecider = Callable[[Mapping[str, SimulatedEngine], RequestLookup, Admission], Decider]


@dataclass(frozen=True, slots=True)
class Played:
    """One run, over: its books and its engines as they ended. ``strategy``: of the clairvoyant, how it was played."""

    books: ResultTable
    engines: dict[str, SimulatedEngine]
    held: int
    retried: int
    usd: float
    log: list[tuple[float, str]]
    timeline: Timeline | None
    strategy: str = ""


def play(
    arrivals: Iterable[Arrival],
    pool: Pool,
    routing: Routing,
    admission: Admission,
    seed: int,
    progress: Progress | None = None,
    limits: DispatchLimits | None = None,
    *,
    sample_s: float = 0.0,
    clairvoyant: MakeDecider | None = None,
    stop: Stop | None = None,
) -> Played:
    """Run every arrival through the routers in front of *pool*; the same arguments give the same books.

    *sample_s*: keep a timeline of the engines at that period. *clairvoyant* makes routing and admission instead,
    from the engines' truth and from the *admission* whose limits hold: a bound, not a policy. *stop* looks at the books
    now and then: once it says so the run ends where it is, for whoever needs no more than that.
    """
    run = Run(pool, seed)
    if clairvoyant is not None:
        routing = admission = clairvoyant(run.fleet.engines, run.known, admission)
    run.open_routers(routing, admission, limits)
    if sample_s:
        run.timeline = Timeline(run.kernel, run.fleet, sample_s)
    run.play(arrivals, progress, stop)
    return Played(
        run.books,
        run.fleet.engines,
        sum(router.held for router in run.routers),
        run.retried,
        run.fleet.cost(run.last_s),
        run.fleet.log,
        run.timeline,
    )


class Run:
    """The parts of one run, put together."""

    def __init__(self, pool: Pool, seed: int) -> None:
        """A fleet as the pool says, nobody in front of it yet."""
        world = pool.world
        self.pool, self.world, self.seed = pool, world, seed
        self.kernel, self.books = Kernel(), ResultTable()
        self.fleet = ReplicaFleet(pool, self.kernel, seed, world.health_s)
        self.routers: list[Shell] = []
        self.scaler: Autoscaler | None = None
        self.timeline: Timeline | None = None
        self.retried = 0
        self.last_s = 0.0
        self._draw = Random(f"{seed}/clients")
        self._pick = Random(f"{seed}/routers").randrange
        self._workload: Workload | None = None
        self._coming = 0  # clients that will come again
        self._patient = world.clients.patient
        self._going = True

    def known(self, request_id: str) -> tuple[Arrival, float] | None:
        """A request that is not over, and when its first token came (nan: not yet); None for one that is over."""
        for router in self.routers:
            if router.has(request_id):
                return router.arrival(request_id), router.core.first_byte_s(request_id)
        return None

    def open_routers(self, routing: Routing, admission: Admission, limits: DispatchLimits | None) -> None:
        """Put the routers there, start the fleet, and set in motion what repeats."""
        world, kernel = self.world, self.kernel
        for number in range(world.routers):
            core = Dispatcher(routing, admission, Random(f"{self.seed}/router/{number}"), limits, explained=0)
            self.routers.append(Shell(f"router-{number}", core, kernel, self.fleet.engines, self._accounted))
        self.fleet.routers = list(self.routers)
        for site in self.pool.sites(self.seed):
            self.fleet.start(site)
        self.fleet.plan(world.faults)
        if world.routers > 1:
            kernel.at(world.sync_s, self._sync)
        if world.scrape_s:
            for router in self.routers:
                Scraper(router, self.fleet, world.scrape_s, self)
        if world.scaling is not None:
            policy = policies.find("scaling", world.scaling.policy)
            self.scaler = Autoscaler(kernel, self.fleet, world.scaling, policy)

    @property
    def going(self) -> bool:
        """Whether anything is still to come or under way."""
        return self._going

    # ---- arrivals ---------------------------------------------------------------------

    def play(self, arrivals: Iterable[Arrival], progress: Progress | None, stop: Stop | None = None) -> None:
        """Bring every arrival in its time, then wait for the last to be over; unless told to stop before."""
        kernel = self.kernel
        if hasattr(arrivals, "after"):
            self._workload = cast("Workload", arrivals)
        for number, arrival in enumerate(arrivals):
            kernel.run_until(arrival.request.arrived_s)
            self._come(arrival)
            if not number % _PROGRESS_EVERY and self._told(progress, stop):
                return
        while self._under_way():
            kernel.run_until(kernel.next_s)
            if progress is not None:
                progress(len(self.books))
        self._going = False
        while any(engine.replica.running for engine in self.fleet.engines.values()):
            kernel.run_until(kernel.next_s)  # those whose clients have left go with their step
        if self.scaler is not None:
            self.scaler.stop()

    def _told(self, progress: Progress | None, stop: Stop | None) -> bool:
        """Say how far it is; whether that is far enough."""
        if progress is not None:
            progress(len(self.books))
        return stop is not None and bool(stop(self.books))

    def _under_way(self) -> bool:
        pending = self._workload.pending if self._workload is not None else 0
        return self._coming + pending > 0 or any(router.core.in_flight for router in self.routers)

    def _come(self, arrival: Arrival) -> None:
        """A request at a router: the only one, or any of them."""
        routers = self.routers
        router = routers[0] if len(routers) == 1 else routers[self._pick(len(routers))]
        if self.scaler is not None:
            self.scaler.arrived(arrival)
        router.arrive(arrival)
        if not self._patient:
            self._watch(router, arrival)

    def _watch(self, router: Shell, arrival: Arrival) -> None:
        """A client that may lose patience, or interest."""
        clients, request = self.world.clients, arrival.request
        if clients.timeout_s < float("inf"):
            self.kernel.at(self.kernel.now_s + clients.timeout_s, self._time_out, (router, request.id))
        if clients.leave_share and self._draw.random() < clients.leave_share:
            after_s = self._draw.random() * (0.5 + _READING_S * arrival.output_tokens)
            self.kernel.at(self.kernel.now_s + after_s, router.leave, request.id)

    def _time_out(self, watched: tuple[Shell, str]) -> None:
        router, request_id = watched
        if router.waits(request_id):
            router.leave(request_id)

    def _again(self, arrival: Arrival) -> None:
        self._coming -= 1
        self._come(arrival)

    # ---- ends ---------------------------------------------------------------------------

    def _accounted(self, account: RequestRecord, flight: Flight) -> None:
        """A request is over at its router; its client may come again."""
        arrival = flight.arrival
        if _may_come_again(account) and arrival.tries < self.world.clients.retries:
            self._retry(arrival, flight.retry_after_s)
            return
        ended_s = account.ended_s
        self.last_s = max(self.last_s, ended_s)
        self.books.write(account, arrival.came_s)
        if self.scaler is not None:
            self.scaler.ended(account.request.model, account.usage.output_tokens, account.slo_met)
        if self._workload is not None:
            for later in self._workload.after(arrival, ended_s):
                self.kernel.at(later.request.arrived_s, self._later, later)

    def _later(self, arrival: Arrival) -> None:
        assert self._workload is not None
        self._workload.pending -= 1
        self._come(arrival)

    def _retry(self, arrival: Arrival, after_s: float) -> None:
        """The same request under another id; what it was promised counts from its first coming."""
        self.retried += 1
        self._coming += 1
        again_s = self.kernel.now_s + after_s * (1.0 + 0.1 * self._draw.random())
        request = replace(arrival.request, id=f"{arrival.request.id}~{arrival.tries + 1}", arrived_s=again_s)
        again = replace(arrival, request=request, tries=arrival.tries + 1, since_s=arrival.came_s)
        self.kernel.at(again_s, self._again, again)

    # ---- routers among themselves ----------------------------------------------------------

    def _sync(self, _: object) -> None:
        """Every router hears what the others have in flight."""
        loads = {router.name: router.core.loads() for router in self.routers}
        for router in self.routers:
            for name, load in loads.items():
                if name != router.name:
                    router.tell(router.core.on_peer_load(name, load, self.kernel.now_s))
        if self._going:
            self.kernel.at(self.kernel.now_s + self.world.sync_s, self._sync)


class Scraper:
    """One router asks every engine for its queue each *period_s*, spread over it; answers take the network's time."""

    def __init__(self, router: Shell, fleet: ReplicaFleet, period_s: float, run: Run) -> None:
        """Start at once."""
        self._router, self._fleet, self._period_s, self._run = router, fleet, period_s, run
        self._seen: dict[str, tuple[int, int]] = {}
        self._turn = 0
        router.kernel.at(period_s / max(1, len(fleet.engines)), self._ask)

    def _ask(self, _: object) -> None:
        """The next engine's turn."""
        kernel = self._router.kernel
        if not self._run.going:
            return
        engines = [engine for engine in self._fleet.engines.values() if engine.alive]
        if engines:
            engine = engines[self._turn % len(engines)]
            self._turn += 1
            self._router.core.probe_started(engine.name, kernel.now_s)
            kernel.at(kernel.now_s + engine.delay_s, self._answered, (engine, kernel.now_s))
        kernel.at(kernel.now_s + self._period_s / max(1, len(engines)), self._ask)

    def _answered(self, asked: tuple[SimulatedEngine, float]) -> None:
        engine, asked_s = asked
        if not engine.alive:
            return
        replica = engine.replica
        report = replica.report(asked_s, self._seen.get(engine.name))
        self._seen[engine.name] = replica.prompt_tokens, replica.cached_tokens
        router = self._router
        router.tell(router.core.reported(engine.name, report, router.kernel.now_s))


def _may_come_again(account: RequestRecord) -> bool:
    """Whether its client was refused and not told that to come again is of no use (``x-should-retry: false``)."""
    return account.outcome is EndState.REFUSED and account.reason is not Reason.INFEASIBLE
