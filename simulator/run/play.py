"""One run: arrivals, routers, engines, faults and clients, on one virtual clock.

The routers are the gateway's own core. This module only passes events to it.
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
from router.core.policy import Admission, Routing, Scaling
from router.core.signals import Value
from simulator.pool import Pool
from simulator.run.fleet import ReplicaFleet, SimulatedEngine
from simulator.run.kernel import Kernel
from simulator.run.result_table import ResultTable
from simulator.run.router import OpenRequest, SimulatedRouter
from simulator.run.scaling import Autoscaler
from simulator.run.sharing import Sharing
from simulator.run.timeline import Timeline
from simulator.workload.arrivals import Arrival, Workload
from simulator.world import Fault

Progress = Callable[[int], None]
Stop = Callable[[ResultTable], object]  # truthy or not: a numpy bool is no bool
RequestLookup = Callable[[str], tuple[Arrival, float] | None]
"""An open request by id, and the time of its first token (nan: none yet); None for a request that is over."""
_PROGRESS_EVERY = 500
_LEAVE_TOKEN_S = 0.015  # seconds a token: how far into the reply a client may hang up


class Decider(Routing, Admission, Protocol):
    """Routing and admission in one object, such as the clairvoyant router."""


MakeDecider = Callable[[Mapping[str, SimulatedEngine], RequestLookup, Admission], Decider]
MakeScaling = Callable[["Run"], Scaling]
"""A scaler that may read what no policy is passed: other autoscalers' metrics, or what is to come."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: its result table and its engines. ``strategy`` names the clairvoyant strategy that was played,
    ``faults_outside`` those that would have begun after the last end.
    """

    table: ResultTable
    engines: dict[str, SimulatedEngine]
    held: int
    retried: int
    usd: float
    log: list[tuple[float, str]]
    timeline: Timeline | None
    strategy: str = ""
    faults_outside: tuple[Fault, ...] = ()


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
    scaling: MakeScaling | None = None,
    stop: Stop | None = None,
) -> RunResult:
    """Run every arrival through the routers in front of *pool*; the same arguments give the same table.

    *sample_s*: sample a timeline of the engines at that period. *clairvoyant* makes routing and admission from the
    engines' truth and from *admission*, whose limits hold: a bound, not a policy. *scaling* makes what decides in place
    of the policy that the world names. *stop* is called with the table now and then; once it returns true, the run ends
    there.
    """
    run = Run(pool, seed)
    if clairvoyant is not None:
        routing = admission = clairvoyant(run.fleet.engines, run.lookup, admission)
    run.open_routers(routing, admission, limits or pool.limits, scaling)
    if sample_s:
        run.timeline = Timeline(run.kernel, run.fleet, sample_s)
    run.play(arrivals, progress, stop)
    return RunResult(
        run.table,
        run.fleet.engines,
        sum(router.held for router in run.routers),
        run.retried,
        run.fleet.cost(run.last_s),
        run.fleet.log,
        run.timeline,
        faults_outside=tuple(fault for fault in pool.world.faults if fault.at_s > run.last_s),
    )


class Run:
    """The parts of one run."""

    def __init__(self, pool: Pool, seed: int) -> None:
        """The fleet of the pool, without routers and engines yet."""
        world = pool.world
        self.pool, self.world, self.seed = pool, world, seed
        self.kernel, self.table = Kernel(), ResultTable()
        self.fleet = ReplicaFleet(pool, self.kernel, seed, world.health_s)
        self.routers: list[SimulatedRouter] = []
        self.scaler: Autoscaler | None = None
        self.timeline: Timeline | None = None
        self.retried = 0
        self.last_s = 0.0
        self._draw = Random(f"{seed}/clients")
        self._pick = Random(f"{seed}/routers").randrange
        self._workload: Workload | None = None
        self._retries_pending = 0  # clients that will retry
        self._patient = world.clients.patient
        self._active = True

    def lookup(self, request_id: str) -> tuple[Arrival, float] | None:
        """An open request and the time of its first token (nan: none yet); None for a request that is over."""
        for router in self.routers:
            if router.has(request_id):
                return router.arrival(request_id), router.core.first_token_s(request_id)
        return None

    def open_routers(
        self,
        routing: Routing,
        admission: Admission,
        limits: DispatchLimits | None,
        scaling: MakeScaling | None = None,
    ) -> None:
        """Add the routers, start the fleet, and schedule what repeats."""
        world, kernel = self.world, self.kernel
        for number in range(world.routers):
            draw = Random(f"{self.seed}/router/{number}")
            core = Dispatcher(routing, admission, draw, limits, explained=0, models=self.pool.models)
            self.routers.append(self.router(f"router-{number}", core))
        self.fleet.routers = list(self.routers)
        for site in self.pool.sites(self.seed):
            self.fleet.start(site)
        self.fleet.schedule(world.faults)
        if world.routers > 1:
            self.sharing()
        if world.scrape_s:
            for router in self.routers:
                Scraper(router, self.fleet, world.scrape_s, self)
        if world.scaling is not None:
            named = world.scaling.policy, world.scaling.parameters
            policy = policies.find("scaling", *named) if scaling is None else scaling(self)
            self.scaler = Autoscaler(kernel, self.fleet, self.routers, world.scaling, policy)

    def router(self, name: str, core: Dispatcher) -> SimulatedRouter:
        """A router of this run."""
        return SimulatedRouter(name, core, self.kernel, self.fleet.engines, self._on_end)

    def sharing(self) -> Sharing:
        """What the routers of this run share."""
        return Sharing(self.routers, self.kernel, self.world)

    @property
    def active(self) -> bool:
        """Whether requests are still to come or in flight."""
        return self._active

    # ---- arrivals ---------------------------------------------------------------------

    def play(self, arrivals: Iterable[Arrival], progress: Progress | None, stop: Stop | None = None) -> None:
        """Let every arrival happen in its time, then run until the last request is over, or until *stop*."""
        kernel = self.kernel
        if hasattr(arrivals, "after"):
            self._workload = cast("Workload", arrivals)
        for number, arrival in enumerate(arrivals):
            kernel.run_until(arrival.request.arrived_s)
            self._arrive(arrival)
            if not number % _PROGRESS_EVERY and self._report_progress(progress, stop):
                return
        if self._run_to_the_end(progress, stop):
            return
        self._active = False
        while any(engine.replica.running for engine in self.fleet.engines.values()):
            kernel.run_until(kernel.next_s)  # sequences whose clients have left end with their step
        if self.scaler is not None:
            self.scaler.stop()

    def _run_to_the_end(self, progress: Progress | None, stop: Stop | None) -> bool:
        """Until the last request is over: of loops, most of them. Whether *stop* ended the run before."""
        kernel, reported = self.kernel, len(self.table)
        while self._under_way():
            kernel.run_until(kernel.next_s)
            if len(self.table) - reported >= _PROGRESS_EVERY:
                reported = len(self.table)
                if self._report_progress(progress, stop):
                    return True
        if progress is not None:
            progress(len(self.table))
        return False

    def _report_progress(self, progress: Progress | None, stop: Stop | None) -> bool:
        """Call *progress*, and return whether *stop* ends the run."""
        if progress is not None:
            progress(len(self.table))
        return stop is not None and bool(stop(self.table))

    def _under_way(self) -> bool:
        pending = self._workload.pending if self._workload is not None else 0
        return self._retries_pending + pending > 0 or any(router.core.in_flight for router in self.routers)

    def _arrive(self, arrival: Arrival) -> None:
        """A request arrives at a router: the only one, or a random one."""
        routers = self.routers
        router = routers[0] if len(routers) == 1 else routers[self._pick(len(routers))]
        if self.scaler is not None:
            self.scaler.arrived(arrival.request)
        router.arrive(arrival)
        if not self._patient:
            self._watch(router, arrival)

    def _watch(self, router: SimulatedRouter, arrival: Arrival) -> None:
        """Schedule the client's timeout and disconnect."""
        clients, request = self.world.clients, arrival.request
        if clients.timeout_s < float("inf"):
            self.kernel.at(self.kernel.now_s + clients.timeout_s, self._time_out, (router, request.id))
        if clients.leave_share and self._draw.random() < clients.leave_share:
            after_s = self._draw.random() * (0.5 + _LEAVE_TOKEN_S * arrival.output_tokens)
            self.kernel.at(self.kernel.now_s + after_s, router.leave, request.id)

    def _time_out(self, watched: tuple[SimulatedRouter, str]) -> None:
        router, request_id = watched
        if router.awaits_first_token(request_id):
            router.leave(request_id)

    def _arrive_again(self, arrival: Arrival) -> None:
        self._retries_pending -= 1
        self._arrive(arrival)

    # ---- ends ---------------------------------------------------------------------------

    def _on_end(self, record: RequestRecord, closed: OpenRequest) -> None:
        """A request is over at its router; its client may retry."""
        arrival = closed.arrival
        if self.scaler is not None:
            self.scaler.ended(record)
        if _client_retries(record) and arrival.tries < self.world.clients.retries:
            self._retry(arrival, closed.retry_after_s)
            return
        ended_s = record.ended_s
        self.last_s = max(self.last_s, ended_s)
        self.table.add(record, arrival.first_arrived_s)
        if self._workload is not None:
            for later in self._workload.after(arrival, ended_s):
                self.kernel.at(later.request.arrived_s, self._later, later)

    def _later(self, arrival: Arrival) -> None:
        assert self._workload is not None
        self._workload.pending -= 1
        self._arrive(arrival)

    def _retry(self, arrival: Arrival, after_s: float) -> None:
        """Schedule the same request under another id. Its SLO counts from its first arrival."""
        self.retried += 1
        self._retries_pending += 1
        again_s = self.kernel.now_s + after_s * (1.0 + 0.1 * self._draw.random())
        request = replace(arrival.request, id=f"{arrival.request.id}~{arrival.tries + 1}", arrived_s=again_s)
        again = replace(arrival, request=request, tries=arrival.tries + 1, first_try_s=arrival.first_arrived_s)
        self.kernel.at(again_s, self._arrive_again, again)


class Scraper:
    """Requests the load report of every engine once in *period_s*, one after another; reports take
    the network's time.
    """

    def __init__(self, router: SimulatedRouter, fleet: ReplicaFleet, period_s: float, run: Run) -> None:
        """Start at once."""
        self._router, self._fleet, self._period_s, self._run = router, fleet, period_s, run
        self._seen: dict[str, tuple[Value, ...]] = {}  # signals of the last report, by engine
        self._turn = 0
        router.kernel.at(period_s / max(1, len(fleet.engines)), self._scrape_next)

    def _scrape_next(self, _: object) -> None:
        """Request the report of the next engine."""
        kernel = self._router.kernel
        if not self._run.active:
            return
        engines = [engine for engine in self._fleet.engines.values() if engine.alive]
        if engines:
            engine = engines[self._turn % len(engines)]
            self._turn += 1
            self._router.core.probe_started(engine.name, kernel.now_s)
            kernel.at(kernel.now_s + engine.delay_s, self._on_report, (engine, kernel.now_s))
        kernel.at(kernel.now_s + self._period_s / max(1, len(engines)), self._scrape_next)

    def _on_report(self, scrape: tuple[SimulatedEngine, float]) -> None:
        engine, requested_s = scrape
        if not engine.alive:
            return
        replica = engine.replica
        signals = replica.signals()
        report = replica.report(requested_s, signals, self._seen.get(engine.name))
        self._seen[engine.name] = signals
        router = self._router
        router.on_commands(router.core.reported(engine.name, report, router.kernel.now_s))


def _client_retries(record: RequestRecord) -> bool:
    """Whether the client was refused, and not with ``x-should-retry: false``."""
    return record.outcome is EndState.REFUSED and record.reason is not Reason.INFEASIBLE
