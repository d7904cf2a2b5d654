"""One router, put together: plan -> core -> driver -> server, with what runs beside the traffic.

Believes: a plan that was made is whole. Must not know protocols or policies. The running config is one reference, and
what it says of backends, policies, keys and SLOs changes between two requests, streams in flight untouched.
"""

import asyncio
import logging
import secrets
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from router.core.border import asked_in_time
from router.core.dispatcher import Dispatcher
from router.core.errors import ConfigError
from router.core.policy import Routing
from router.core.record import Recording
from router.core.score import Score
from router.core.types import Backend, EngineReport, Load
from router.gateway.config import settings
from router.gateway.config.plan import Plan
from router.gateway.control.api import control_app
from router.gateway.control.journal import Journal
from router.gateway.monitoring.health import Engines, engine
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.protocols.target import Target
from router.gateway.rollout.audit import Audit
from router.gateway.rollout.policy_rollout import PolicyRollout
from router.gateway.rollout.policy_spec import NOT_VALIDATED
from router.gateway.rollout.reload import Reloader
from router.gateway.state import ModelDemand, RouterView, Store
from router.gateway.state.beliefs import Beliefs
from router.gateway.state.files import FileStore
from router.gateway.state.memory import MemoryStore
from router.gateway.state.redis import RedisStore
from router.gateway.state.sync import Sync
from router.gateway.telemetry import recorder
from router.gateway.telemetry.demand import DemandWindow
from router.gateway.telemetry.metrics import Metrics
from router.gateway.telemetry.request_observers import RequestObservers
from router.gateway.traffic.driver import Driver, StreamLimits
from router.gateway.traffic.server import ConnectionLimits, server
from router.gateway.traffic.upstream import PoolLimits
from router.gateway.workers import WorkerIdentity
from router.gateway.workers.sockets import owned
from router.version import build

if TYPE_CHECKING:
    from uvicorn import Server
    from uvicorn._types import ASGI3Application

IDLE: Final = Load()
ALONE_S: Final = 1.0  # between two looks at a state that nobody else reads
_log = logging.getLogger("headroom")


class Gateway:
    """A router in one process. ``run`` serves until a signal ends it."""

    def __init__(
        self, plan: Plan, path: Path, clock: Callable[[], float] = monotonic, place: WorkerIdentity | None = None
    ) -> None:
        """Opens no socket yet; raises OSError when the record's file cannot be written.

        ``place``: its seat among several workers; None: it is the only one.
        """
        self.clock = clock
        self.path = path
        self.metrics, self.demand, self.journal = Metrics(clock), DemandWindow(), Journal()
        if NOT_VALIDATED in (plan.routing, plan.admission):
            raise ConfigError(["policy: a policy file serves only once it is proved"])
        self.core, self.recorder, told = _core(plan, place)
        self.router_id = place.router_id if place else plan.router_id
        self.audit = Audit()
        self.steering = PolicyRollout(self.core, self.audit, self._judge)
        upstream = plan.settings.upstream
        self.driver = Driver(
            told,
            (),
            RequestObservers(self.metrics, self.demand, self.journal, self.steering, clock),
            clock,
            ingress=plan.ingress,
            pool=PoolLimits(upstream.connect_s, upstream.idle_s, upstream.idle_max),
            limits=StreamLimits(upstream.stall_s, upstream.reader_s),
        )
        self.store = _store(plan, self.router_id, place)
        self.engines = Engines(self, self.metrics, ProbeClient, clock)
        state = plan.settings.state
        self.sync = Sync(
            self.store,
            self,
            self._view,
            self._reported_by_sidecars,
            self.metrics,
            state.sync_s if state.redis_url or place else ALONE_S,
            state.lease_s,
        )
        self.beliefs = Beliefs(self.store, self.core.beliefs, self._teach)
        self.reloader = Reloader(path, plan, self.adopt, self.metrics, self.audit)
        self.reports: dict[str, EngineReport] = {}  # the last of each backend
        self._known: dict[str, Backend] = {}  # as the core was told
        self._seen_up: frozenset[str] = frozenset()
        self._leaving: set[str] = set()
        self._demand_seen: tuple[float, Mapping[str, ModelDemand]] = (float("-inf"), {})
        self._tasks: list[asyncio.Task[None]] = []
        self._judging: set[asyncio.Task[None]] = set()
        self._warned: set[tuple[str, str]] = set()  # of whose dropped numbers, by source
        self.metrics.watch(
            lambda: (self.core.in_flight, self.core.held, self.core.loads()),
            self._gaps,
            self.scores,
            lambda: self.core.dropped_numbers.by_source,
        )
        self.metrics.policies.watch(self.steering.samples)
        self.driver.on_sweep += [self._sweep, self._warn_of_dropped_numbers]

    @property
    def plan(self) -> Plan:
        """The config that serves."""
        return self.reloader.running

    @property
    def ready(self) -> bool:
        """Whether a request sent here now has someone to go to."""
        return not self.driver.draining and any(watch.up for watch in self.engines.watches.values())

    # -- told by engines, the store and the driver -------------------------------------------------------------

    def probe_started(self, name: str) -> None:
        """A scrape starts."""
        self.driver.core.probe_started(name, self.clock())

    def reported(self, name: str, report: EngineReport) -> None:
        """An engine's own word on its queue, read by us or by a sidecar."""
        now_s = self.clock()
        if asked_in_time(report, now_s):
            self.reports[name] = report
            self.metrics.reported(name, report)
        self.driver.perform(self.driver.core.reported(name, report, now_s))

    def backend_health(self, name: str, up: bool) -> None:
        """A health check's answer changed."""
        if up or name in self._seen_up:
            (_log.info if up else _log.warning)("backend %s is %s", name, "up" if up else "down")
        else:
            _log.info("backend %s is not up yet", name)
        self._seen_up = self._seen_up | {name} if up else self._seen_up - {name}
        self.driver.perform(self.driver.core.backend_health(name, up, self.clock()))

    def on_peer_load(self, peer: str, loads: Mapping[str, Load]) -> None:
        """Another router's work in flight."""
        self.driver.perform(self.driver.core.on_peer_load(peer, loads, self.clock()))

    def peer_lost(self, peer: str) -> None:
        """Another router's lease ran out."""
        self.driver.perform(self.driver.core.peer_lost(peer, self.clock()))

    def _teach(self, name: str, learnt: Mapping[str, Any]) -> None:
        self.driver.perform(self.driver.core.adopt_belief(name, learnt, self.clock()))

    def _view(self) -> RouterView:
        """What the others may know of us. Demand moves slowly and is summed once a second."""
        now_s = self.clock()
        if now_s - self._demand_seen[0] > 1.0:
            self._demand_seen = (now_s, self.demand.view(now_s))
        busy = {name: load for name, load in self.core.loads().items() if load != IDLE}
        return RouterView(busy, self._demand_seen[1], self.plan.version)

    def _reported_by_sidecars(self) -> tuple[str, ...]:
        if self.plan.settings.scrape.source == "engines":
            return ()
        return tuple(backend.name for backend in self.plan.backends)

    def _gaps(self) -> Mapping[str, Any]:
        return {name: upstream.gaps for name, upstream in self.driver.upstreams.items()}

    def scores(self) -> Mapping[str, Score]:
        """How far each backend's forecast can be trusted."""
        return {name: self.core.belief.score(slot) for name, slot in self.core.ledger.roster.slots}

    # -- the running config ------------------------------------------------------------------------------------

    def _judge(self, plan: Plan, verdict: str, role: str, why: str) -> None:
        """A live policy was dropped, or a canary's trial is over."""
        self.metrics.policies.judged(verdict)
        task = asyncio.create_task(self.reloader.judged(plan, verdict, role, why))
        self._judging.add(task)
        task.add_done_callback(self._judging.discard)

    async def adopt(self, plan: Plan, last_good: Routing | None = None) -> None:
        """Make *plan* the running one. What it says of requests changes in one step; engine watches follow.

        *last_good* decides where the plan's own routing fails.
        """
        if self.recorder is not None and plan is not self.plan:
            self.recorder.adopted(_decisions(plan))
        self.driver.ingress = plan.ingress
        self.steering.adopt(plan, last_good)
        new = self._join(plan)
        self._dismiss(set(self.driver.upstreams) - {backend.name for backend in plan.backends})
        if new:
            await self.beliefs.warm(new)
        scrape = plan.settings.scrape
        await self.engines.watch(
            tuple(
                engine(given, scrape.source == "engines", plan.engine_keys.get(given.name, ""))
                for given in plan.settings.backends
            ),
            scrape.period_s,
            scrape.timeout_s,
            scrape.down_after,
        )

    def _join(self, plan: Plan) -> frozenset[str]:
        """Tell driver and core of every backend; a new one counts as down until its first health check."""
        before = frozenset(self._known)
        core, now_s = self.driver.core, self.clock()
        for given, backend in zip(plan.settings.backends, plan.backends, strict=True):
            self.driver.join(_target(given, plan.engine_keys.get(given.name)))
            known = self._known.get(backend.name)
            if known != backend:
                self.driver.perform(core.backend_joined(backend, now_s))
            if known is None:
                self.driver.perform(core.backend_health(backend.name, False, now_s))
            self._known[backend.name] = backend
        for name in self._leaving & {backend.name for backend in plan.backends}:
            self._leaving.discard(name)
            self.driver.perform(core.backend_draining(name, False, now_s))
        return frozenset(self._known) - before

    def _dismiss(self, names: Iterable[str]) -> None:
        """Send nothing more to these; each goes when its last stream has ended."""
        for name in names:
            self._leaving.add(name)
            self.driver.perform(self.driver.core.backend_draining(name, True, self.clock()))
        self._sweep(self.clock())

    def _sweep(self, now_s: float) -> None:
        """Let go of dismissed backends that have nothing in flight any more."""
        if not self._leaving:
            return
        loads = self.core.loads()
        for name in tuple(self._leaving):
            load = loads.get(name, IDLE)
            if load.prefilling + load.decoding == 0:
                self._leaving.discard(name)
                self._known.pop(name, None)
                self.driver.perform(self.driver.core.backend_left(name, now_s))
                self.driver.leave(name)
                self.reports.pop(name, None)
                self.metrics.forget(name)

    def _warn_of_dropped_numbers(self, _: float) -> None:
        """Log the first number of each source and sender that the core dropped."""
        first = self.core.dropped_numbers.first
        if len(first) == len(self._warned):
            return
        for source, sender in first.keys() - self._warned:
            self._warned.add((source, sender))
            _log.warning(
                "%s%s: dropped %s; more are counted in headroom_dropped_numbers_total",
                source,
                f" of {sender}" if sender else "",
                first[source, sender],
            )

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin all that runs beside the traffic."""
        await self.adopt(self.plan)
        self._tasks = [
            asyncio.create_task(self.sync.run(self.clock), name="sync"),
            asyncio.create_task(self.reloader.watch(), name="config watch"),
            asyncio.create_task(self.beliefs.run(), name="beliefs"),
        ]
        for task in self._tasks:
            task.add_done_callback(_say_why_it_ended)

    async def close(self) -> None:
        """End all of it; the server has drained by now."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engines.close()
        await self.beliefs.keep()
        await self.store.close()
        if self.recorder is not None:
            self.recorder.close()

    def server(self) -> "Server":
        """The server of this router; its ``serve`` returns once streams have ended after a signal."""
        listen = self.plan.settings.listen
        app, limits = cast("ASGI3Application", control_app(self)), front_limits(listen)
        return server(app, self.driver, host=listen.host, port=listen.port, limits=limits)

    async def run(self) -> None:
        """Serve until a signal (``router/event_loop.py``), then let streams end. SIGHUP reloads."""
        loop = asyncio.get_running_loop()
        reloads: set[asyncio.Task[Any]] = set()

        def hang_up() -> None:
            task = asyncio.create_task(self.reloader.reload("SIGHUP"))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGHUP, hang_up)
        listen = self.plan.settings.listen
        try:
            with owned(listen.host, listen.port) as sockets:
                await self.start()
                self._say_start(sockets[0].getsockname()[1])
                await self.server().serve(sockets)
        finally:
            await self.close()

    def _say_start(self, port: int) -> None:
        host, policy = self.plan.settings.listen.host, self.plan.settings.policy.routing.name
        what = f"{len(self.plan.backends)} backends, policy {policy}; {build()}"
        _log.info("router %s: listening on http://%s:%d, %s", self.router_id, host, port, what)


def front_limits(listen: settings.Listen) -> ConnectionLimits:
    """What the data plane wants to know of the listen section."""
    return ConnectionLimits(**listen.model_dump(exclude={"host", "port", "workers"}))


def _core(
    plan: Plan, place: WorkerIdentity | None
) -> tuple[Dispatcher, recorder.Recorder | None, Dispatcher | Recording]:
    """A core, its recorder if one is configured, and whom to tell events."""
    seed = secrets.randbits(64)
    core = Dispatcher(plan.routing, plan.admission, Random(seed), plan.limits)
    record = plan.settings.record
    if record is None:
        return core, None, core
    file = place.record(record.file) if place else record.file
    sink = recorder.Recorder(file, record.bytes_max, {"seed": seed, **_decisions(plan)})
    return core, sink, Recording(core, sink.write)


def _decisions(plan: Plan) -> dict[str, Any]:
    trial = plan.settings.policy.canary
    split = trial.model_dump(mode="json", include={"share", "by", "tenants"}) if trial is not None else None
    named = {role: plan.chosen[role].plain() for role in ("routing", "admission", "canary") if role in plan.chosen}
    return recorder.decisions(named | ({"split": split} if split else {}), plan.limits)


def _store(plan: Plan, router_id: str, place: WorkerIdentity | None) -> Store:
    state = plan.settings.state
    if state.redis_url is not None:
        return RedisStore(state.redis_url, state.pool, router_id, state.lease_s, state.timeout_s)
    return FileStore(place.folder, router_id, state.lease_s) if place else MemoryStore(router_id)


def _target(given: settings.Backend, key: str | None) -> Target:
    """Where the data plane finds a configured backend."""
    templates = {name: getattr(given, name) for name in ("chat_template", "chat_opening")}
    said = {name: text for name, text in templates.items() if text is not None}
    return Target.of_url(given.name, given.url, engine=given.kind, api_key=key, models=given.models, **said)


def _say_why_it_ended(task: asyncio.Task[None]) -> None:
    with suppress(asyncio.CancelledError):
        if error := task.exception():
            _log.error("%s ended: %r", task.get_name(), error)
