"""One router, put together: plan -> core -> driver, with what runs beside the traffic. serving.py serves it.

Must not depend on protocols, on policies or on the control plane. The running config is one reference: what it holds of
backends, policies, keys and SLOs changes between two requests, streams in flight untouched.
"""

import asyncio
import logging
import secrets
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from math import inf, isfinite
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, Final

from router.config import settings
from router.core.border import asked_in_time
from router.core.dispatcher import Dispatcher
from router.core.errors import ConfigError
from router.core.quota import Quotas, Shares
from router.core.record import Recording
from router.core.reports import UNATTRIBUTED_TTL_S
from router.core.score import Score
from router.core.types import EngineReport, Load
from router.engines import RunningAdapters
from router.gateway.config.plan import Plan
from router.gateway.config.policy_spec import NOT_VALIDATED
from router.gateway.discovery.model_lists import ListedEngine, ModelLists
from router.gateway.discovery.watch import Discovery
from router.gateway.membership import IDLE, Membership
from router.gateway.monitoring.division import Division, owns
from router.gateway.monitoring.downtime import Downtimes
from router.gateway.monitoring.health import Engines, HealthChange, engine
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.monitoring.publishing import WorkerPublisher
from router.gateway.monitoring.seen_backends import SeenBackends, publish
from router.gateway.monitoring.sleepers import Sleepers
from router.gateway.monitoring.troubles import TroubleLog, Troubles, troubles
from router.gateway.peer_exchange import exchange
from router.gateway.protocols.target import Target
from router.gateway.rollout.audit import Audit
from router.gateway.rollout.policy_rollout import PolicyRollout
from router.gateway.rollout.reload import Reloader
from router.gateway.rollout.replacements import Replacements
from router.gateway.sources.registry import source_of
from router.gateway.sources.sources import Sources
from router.gateway.state import ModelDemand, RouterView, Store
from router.gateway.state.beliefs import Beliefs
from router.gateway.state.changes import Changes
from router.gateway.state.files import FileStore
from router.gateway.state.memory import MemoryStore
from router.gateway.state.monthly_use import MonthlyUse
from router.gateway.state.redis import RedisStore
from router.gateway.state.seen import SeenVariant
from router.gateway.state.sync import Sync
from router.gateway.telemetry import process_log, recorder
from router.gateway.telemetry.access_log import AccessLog
from router.gateway.telemetry.demand import DemandWindow
from router.gateway.telemetry.history import History
from router.gateway.telemetry.journal import Journal
from router.gateway.telemetry.line_sink import LineSink
from router.gateway.telemetry.metrics import Metrics
from router.gateway.telemetry.refusal_log import RefusalLog
from router.gateway.telemetry.request_observers import RequestObservers
from router.gateway.telemetry.span_writer import Explain, SpanWriter
from router.gateway.tls import TlsContext
from router.gateway.traffic.buffers import Buffers
from router.gateway.traffic.driver import Driver, StreamLimits
from router.gateway.traffic.ports import RequestObserver
from router.gateway.traffic.request_trace import TraceSource
from router.gateway.traffic.upstream import Dialler, PoolLimits
from router.gateway.worker_identity import WorkerIdentity

ALONE_SYNC_S: Final = 1.0  # the period of syncs with a state that no other router reads
_OFFERED_MAX: Final = 500  # series of a model and a class that no request had yet
DEMAND_S: Final = 1.0  # demand changes slowly: it is summed at most once in so long
_log = logging.getLogger("headroom")


async def _nothing(_: Plan) -> None:
    """No plan needs any preparation."""


class Gateway:
    """A router in one process: the parts of it, and what passes between them beside the traffic."""

    def __init__(
        self,
        plan: Plan,
        path: Path,
        clock: Callable[[], float] = monotonic,
        identity: WorkerIdentity | None = None,
        store: Store | None = None,
        dialler: Dialler | None = None,
        prepare: Callable[[Plan], Awaitable[None]] = _nothing,
    ) -> None:
        """Opens no socket; raises OSError when the record's file cannot be written.

        ``identity``: which of several workers it is; None: the only process. ``store``: None: the config's.
        ``dialler``: as the driver's. ``prepare``: what has to be done before a plan takes effect.
        """
        if NOT_VALIDATED in (plan.routing, plan.admission):
            raise ConfigError(["policy: a policy file serves only after its validation"])
        self.clock, self.path, self.identity, self._prepare = clock, path, identity, prepare
        self.router_id = identity.router_id if identity else plan.router_id
        self.metrics, self.demand, self.journal = Metrics(clock), DemandWindow(), Journal()
        self.core, self.recorder, recorded, replacements = _core(plan, identity)
        self.audit = Audit(worker=self.router_id if identity else "")
        self.rollout = PolicyRollout(
            self.core, self.audit, self._on_verdict, trials=identity.slots if identity else 1, replacements=replacements
        )
        self.access_log = _access_log(plan, self.router_id, clock)
        self.traces = _traces(plan, self.router_id, self.core.explain, clock)
        self.history, self._refusals = History(self.rollout.arm), RefusalLog()
        self.seen_backends, self.sleepers = SeenBackends(self.core, clock), Sleepers()
        more: list[RequestObserver] = [self.history, self.seen_backends, self._refusals]
        more += [each for each in (self.access_log, self.traces) if each is not None]
        observer = RequestObservers(self.metrics, self.demand, self.journal, self.rollout, clock, more)
        self.quotas = Quotas()
        self.monthly_use: MonthlyUse | None = None
        self.driver = _driver(plan, recorded, observer, self.quotas, clock, dialler)
        self.backends = Membership(self.driver, self.core.loads, self._on_left)
        self.store = store or _store(plan, self.router_id, identity)
        self._division, self.publisher = Division(self._owns, clock()), self._make_publisher(plan)
        self.engines = Engines(
            self, self.publisher or self.metrics, ProbeClient, clock, self._reads, self.driver.last_read_s
        )
        self.sync, self.changes = self._make_sync(plan), self._exchange(plan)
        self.beliefs = Beliefs(self.store, lambda: self.backends.known, self.core.belief_of, self._adopt_belief)
        self.reloader = Reloader(
            path, plan, self.adopt, self.metrics, self.audit, leads=self.leads, record=_worker_record(plan, identity)
        )
        self.discovery = Discovery(self._on_discovered, ProbeClient)
        self.model_lists = ModelLists(self._on_discovered, self._adapters_listed, ProbeClient, self.clock)
        self.sources = Sources(lambda plan, given: source_of(plan, given, path), self._on_discovered, self._down_s)
        self.reloader.complete = self._complete
        self.reports: dict[str, EngineReport] = {}  # the last of each backend
        self.scaling: Callable[[], Mapping[str, Any]] | None = None  # the last decision of an autoscaler in here
        self._failing_open: Sequence[str] = ()  # as it was logged
        self._demand: tuple[float, Mapping[str, ModelDemand]] = (float("-inf"), {})  # when it was summed, by model
        self._tasks: list[asyncio.Task[None]] = []
        self._verdicts: set[asyncio.Task[None]] = set()
        self._warned: set[tuple[str, str]] = set()  # sources and senders whose dropped numbers were logged
        self._watch_metrics()
        watchers = [self._log_failing_open, self._warn_of_dropped_numbers, TroubleLog(self.troubles, clock).sweep]
        self.driver.on_sweep += [self.backends.sweep, self._wake, self._sample, self._refusals.sweep, *watchers]

    def _make_publisher(self, plan: Plan) -> WorkerPublisher | None:
        """What publishes the reports that are read here, where others may read them."""
        shared = self.identity is not None or plan.redis is not None
        return WorkerPublisher(self.store, self.metrics, self._shares_scrapes) if shared else None

    def _make_sync(self, plan: Plan) -> Sync:
        state = plan.settings.state
        period_s = state.sync_s if plan.redis or self.identity else ALONE_SYNC_S
        view, backends = self._view, self._reported_elsewhere
        return Sync(self.store, self, view, backends, self.metrics, period_s, state.lease_s, self._pushing)

    def _exchange(self, plan: Plan) -> Changes | None:
        skipped = self.store.skipped
        return exchange(plan, self.identity, self.core, self.driver, self.clock, skipped, lambda: self.sync.peers)

    def _pushing(self, peers: Collection[str]) -> bool:
        """Whether the changes of all these come as they happen, and nothing else of their views is urgent."""
        return self.changes is not None and not self.quotas.active and self.changes.come_from(peers)

    def _watch_metrics(self) -> None:
        self.metrics.watch(
            lambda: (self.core.in_flight, self.core.held, self.core.loads()),
            lambda: {name: upstream.gaps for name, upstream in self.driver.upstreams.items()},
            self.scores,
            lambda: self.core.dropped_numbers.by_source,
            lambda: {name: watch.up for name, watch in self.engines.watches.items()},
            self.downtimes,
            self.troubles,
            self.failing_open,
        )
        self.metrics.watch_state(lambda: self.store.skipped.counts)
        self.metrics.watch_offered(self._offered)
        self.metrics.sources.watch(lambda: self.sources.states)
        self.metrics.policies.watch(self.rollout.samples)
        self.metrics.quotas.watch(self.quotas)
        self.metrics.changes.watch(self.changes)
        self.metrics.resources.watch(
            lambda: self.recorder.dropped if self.recorder is not None else 0,
            self.driver.buffers,
            self._dropped_lines,
            self._spans,
        )

    def _offered(self) -> Iterable[tuple[str, str]]:
        """The models that the config names with the classes that it has, unless those are very many."""
        models = dict.fromkeys(model for backend in self.plan.backends for model in backend.models)
        classes = self.plan.ingress.classes
        return product(models, classes) if len(models) * len(classes) <= _OFFERED_MAX else ()

    def _dropped_lines(self) -> Mapping[str, int]:
        """Of each log of this process."""
        access = self.access_log.dropped if self.access_log is not None else 0
        return {"access": access, "process": process_log.dropped()}

    def _spans(self) -> Mapping[str, int]:
        """Spans of traces by what became of them; none while no traces are written."""
        traces = self.traces
        return {"exported": traces.exported, "failed": traces.failed} if traces is not None else {}

    @property
    def plan(self) -> Plan:
        """The config that serves."""
        return self.reloader.running

    @property
    def ready(self) -> bool:
        """Whether a request sent here now can be routed: at least one backend is up or tried though it is down, each
        source has given a first set or had its time to, and no shutdown has begun.
        """
        some = len(self.downtimes()) < len(self.engines.watches) or self.failing_open()
        return not self.driver.draining and bool(some) and self.sources.informed

    def failing_open(self) -> Sequence[str]:
        """The models whose requests go to backends that are down, for none of theirs is up."""
        return self.core.ledger.roster.failing_open()

    def downtimes(self) -> Downtimes:
        """Why each backend that gets no requests gets none, and since when."""
        found = (
            (name, (watch.down, self.sleepers.down(name), self.backends.down(name)))
            for name, watch in self.engines.watches.items()
        )
        return {name: [down for down in downs if down is not None] for name, downs in found if any(downs)}

    def _down_s(self, name: str) -> float:
        """For how long a backend has been down; 0: it is up."""
        watch = self.engines.watches.get(name)
        return inf if watch is None else watch.down_s

    def troubles(self) -> Troubles:
        """What fails on each backend, whether it is ejected, what it refuses."""
        return troubles(self.core, self.clock())

    def scores(self) -> Mapping[str, Score]:
        """The accuracy of each backend's forecast."""
        return {name: self.core.belief.score(slot) for name, slot in self.core.ledger.roster.slots}

    # -- the share of one of several workers -------------------------------------------------------------------

    def leads(self) -> bool:
        """Whether this process does what only one worker may do."""
        return self.identity is None or self.identity.leads(self.sync.peers)

    def scrapes(self, name: str) -> bool:
        """Whether that engine's metrics are this process's to read."""
        return not self._shares_scrapes() or self._division.mine(name, self.sync.peers)

    def _reads(self, name: str) -> bool:
        """Whether it reads them now."""
        report = self.reports.get(name)
        reported_s = -inf if report is None else report.asked_s
        return not self._shares_scrapes() or self._division.reads(name, self.sync.peers, reported_s, self.clock())

    def _shares_scrapes(self) -> bool:
        """Whether several processes divide the engines among them."""
        return self.identity is not None or self.plan.settings.scrape.source == "routers"

    def _owns(self, name: str, peers: Collection[str]) -> bool:
        if self.plan.settings.scrape.source == "routers" or self.identity is None:
            return owns(self.router_id, name, peers)
        return self.identity.scrapes(name, peers)

    def _reported_elsewhere(self) -> tuple[str, ...]:
        """The backends whose metrics a sidecar, another worker or another router reads."""
        backends, peers = self.plan.backends, self.sync.peers
        if self.plan.settings.scrape.source == "state":
            return tuple(backend.name for backend in backends)
        if not self._shares_scrapes():
            return ()
        return tuple(backend.name for backend in backends if not self._division.mine(backend.name, peers))

    # -- callbacks of engines, the store and the driver --------------------------------------------------------

    def probe_started(self, name: str) -> None:
        """A scrape starts."""
        self.driver.core.probe_started(name, self.clock())

    def reported(self, name: str, report: EngineReport) -> None:
        """An engine's report of its queue, read here, by a sidecar or by another worker."""
        now_s = self.clock()
        if asked_in_time(report, now_s):
            self.reports[name] = report
            self.metrics.reported(name, report)
            self.sleepers.reported(name, report)
        self.driver.perform(self.driver.core.reported(name, report, now_s))

    def adapters_reported(self, name: str, running: RunningAdapters) -> None:
        """For which of its adapters an engine runs requests, read here, by a sidecar or by another worker; the core has
        them by the names of clients.
        """
        if self.publisher is not None and self.scrapes(name):
            self.publisher.adapters_reported(name, running)
        models = next((given.models for given in self.plan.addresses if given.name == name), {})
        named = [ours for ours, theirs in models.items() if theirs in running.names]
        names = (*named, *(each for each in running.names if each not in models.values()))
        self.driver.perform(self.driver.core.adapters_reported(name, names, running.places, self.clock()))

    def _adapters_listed(self, name: str, listed: tuple[str, ...], asked_s: float) -> None:
        """The adapters of an engine's list, read again and again: they matter to the core where it refused one."""
        if any(each.what in listed for each in self.core.refusals(name)):
            self.driver.perform(self.driver.core.adapters_listed(name, listed, asked_s, self.clock()))

    def backend_health(self, name: str, change: HealthChange) -> None:
        """The result of a backend's health checks changed."""
        (_log.info if change.up else _log.warning)("backend %s: %s", name, change)
        self.driver.perform(self.driver.core.backend_health(name, change.up, self.clock(), change.reason))
        self._log_failing_open()

    def on_peer_load(self, peer: str, loads: Mapping[str, Load]) -> None:
        """Another router's work in flight."""
        self.driver.perform(self.driver.core.on_peer_load(peer, loads, self.clock()))

    def peer_quotas(self, peer: str, shares: Mapping[str, Shares]) -> None:
        """What another router took of the quotas."""
        if self.quotas.active:
            self.quotas.heard(peer, shares, self.clock())

    def peer_lost(self, peer: str) -> None:
        """Another router's lease ran out."""
        self.quotas.lost(peer)
        self.driver.perform(self.driver.core.peer_lost(peer, self.clock()))

    def _adopt_belief(self, name: str, learnt: Mapping[str, Any]) -> None:
        self.driver.perform(self.driver.core.adopt_belief(name, learnt, self.clock()))

    def _view(self) -> RouterView:
        """What this router publishes to the others."""
        now_s = self.clock()
        if now_s - self._demand[0] > DEMAND_S:
            self._demand = (now_s, self.demand.view(now_s, self.core.held_of))
        busy = {name: load for name, load in self.core.loads().items() if load != IDLE}
        quotas = self.quotas.shares(now_s) if self.quotas.active else {}
        mesh = self.changes.address if self.changes is not None else ""
        return RouterView(busy, self._demand[1], self.plan.version, quotas, mesh=mesh)

    def _seen(self) -> tuple[SeenVariant, ...] | None:
        """The backends of this router, for the autoscaler; None while a source has not answered yet."""
        answered, downs = not self.sources.unanswered, self.downtimes()
        return self.seen_backends.seen(self.plan, answered, lambda name: name not in downs)

    def _log_failing_open(self, _: float = 0.0) -> None:
        """Log once when a model's requests begin to go to backends that are down, and once when that ends."""
        now = self.failing_open()
        if now == self._failing_open:
            return
        for model in set(now) - set(self._failing_open):
            _log.warning(
                "model %s: no backend is up, by health checks that may be wrong; until one is, its requests go to "
                "those that are down (/admin/fleet states why)",
                model,
            )
        for model in set(self._failing_open) - set(now):
            _log.info("model %s: its requests are no longer sent to backends that are down", model)
        self._failing_open = now

    def _wake(self, now_s: float) -> None:
        """Take engines that slept and whose pages cannot be read any more for awake: nothing else would wake them."""
        for name in self.sleepers.names:
            if now_s - self.reports[name].asked_s > UNATTRIBUTED_TTL_S:
                self.reported(name, EngineReport(now_s))

    def _sample(self, _: float) -> None:
        """The load and the cost now, for the history."""
        prices = (backend.price_per_hour for backend in self.plan.backends)
        self.history.sample(self.core.loads(), self.core.held, sum(price for price in prices if isfinite(price)))

    def _on_left(self, name: str) -> None:
        self.reports.pop(name, None)
        self._division.forget(name)
        self.discovery.forget(name)
        self.model_lists.forget(name)
        self.sleepers.forget(name)
        self.seen_backends.forget(name)
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

    # -- the running config ------------------------------------------------------------------------------------

    def _on_verdict(self, plan: Plan, verdict: str, role: str, why: str) -> None:
        """A live policy was dropped, or a canary's trial is over."""
        self.metrics.policies.judged(verdict)
        task = asyncio.create_task(self.reloader.judged(plan, verdict, role, why))
        self._verdicts.add(task)
        task.add_done_callback(self._verdicts.discard)

    async def adopt(self, plan: Plan, last_good: Plan | None = None) -> None:
        """Make *plan* the running one: ingress, models, quotas and policies in one step, then its backends, of many
        some in each turn of the event loop; health checks and scrapes follow.

        The routing of *last_good* decides where the plan's own fails.
        """
        await self._prepare(plan)
        if self.recorder is not None and plan is not self.plan:
            self.recorder.adopted(_decisions(plan, last_good))
        self.driver.ingress, self.core.models = plan.ingress, plan.ingress.models
        self.quotas.adopt(plan.quotas, self.clock())
        self.rollout.adopt(plan, last_good.routing if last_good is not None else None)
        await self._adopt_backends(plan)

    async def _adopt_backends(self, plan: Plan) -> None:
        """Route to the backends of *plan*, watch their engines, read those that have not reported what they serve."""
        self._division.clear()  # the config may divide the engines otherwise
        given, keys, certificates = plan.addresses, plan.engine_keys, plan.engine_tls
        targets = (_target(backend, keys.get(backend.name), certificates.get(backend.name)) for backend in given)
        new = await self.backends.update(zip(targets, plan.backends, strict=True))
        if new:
            await self.beliefs.warm(new)
        scrape = plan.settings.scrape
        scraped = scrape.source != "state"
        watched = tuple(
            engine(backend, scraped, keys.get(backend.name, ""), certificates.get(backend.name)) for backend in given
        )
        await self.engines.watch(watched, scrape.period_s, scrape.timeout_s, scrape.down_after)
        await self.sources.watch(plan)
        await self.discovery.watch(plan.undiscovered, keys, certificates, scrape.period_s, scrape.timeout_s)
        lists = (ListedEngine(each, keys.get(each.name, ""), certificates.get(each.name)) for each in given)
        await self.model_lists.watch(lists, scrape.models_s, scrape.timeout_s)

    def _complete(self, plan: Plan) -> Plan:
        """The plan with the backends that sources have found, what their engines have reported, and the adapters that
        are loaded by now.
        """
        whole = self.discovery.complete(self.sources.complete(plan))
        return whole.adapted({given.name: self.model_lists.adapters(given) for given in whole.addresses})

    async def _on_discovered(self) -> None:
        await self.reloader.completed(self._adopt_discovered)

    async def _adopt_discovered(self, plan: Plan) -> None:
        await self._prepare(plan)
        await self._adopt_backends(plan)

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything that runs beside the traffic."""
        await self.reloader.start()
        self._tasks = [
            asyncio.create_task(self.sync.run(self.clock), name="sync"),
            asyncio.create_task(self.reloader.watch(), name="config watch"),
            asyncio.create_task(self.beliefs.run(), name="beliefs"),
            asyncio.create_task(publish(self._seen, self.store, self.router_id), name="seen backends"),
        ]
        if self.publisher is not None and self.identity is None:  # a worker publishes with what else it shares
            publishing = self.publisher.run(lambda: self.plan.settings.scrape.period_s)
            self._tasks.append(asyncio.create_task(publishing, name="reports"))
        if isinstance(self.store, RedisStore):
            self.monthly_use = MonthlyUse(self.store, self.quotas)
            self._tasks.append(asyncio.create_task(self.monthly_use.run(), name="use of quotas"))
        if self.changes is not None:
            self._tasks.append(asyncio.create_task(self.changes.run(), name="changes"))
        for task in self._tasks:
            task.add_done_callback(_log_failure)

    async def close(self) -> None:
        """Stop it; the server has drained by now."""
        tasks = (*self._tasks, *self._verdicts)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.reloader.close()
        if self.changes is not None:
            await self.changes.close()
        await self.sources.close()
        await self.discovery.close()
        await self.model_lists.close()
        await self.engines.close()
        await self.beliefs.keep()
        if self.monthly_use is not None:
            await self.monthly_use.once()  # of the last second
        await self.store.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.access_log is not None:
            self.access_log.close()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)


def _core(
    plan: Plan, identity: WorkerIdentity | None
) -> tuple[Dispatcher, recorder.Recorder | None, Dispatcher | Recording, Replacements | None]:
    """A core, its recorder if one is configured, the core as the driver gets it, recorded or not, and where guards note
    for the record whose decisions they replaced.
    """
    seed = secrets.randbits(64)
    core = Dispatcher(plan.routing, plan.admission, Random(seed), plan.limits, models=plan.ingress.models)
    record = plan.settings.record
    if record is None:
        return core, None, core, None
    file = _worker_record(plan, identity) or record.file
    sink = recorder.Recorder(file, record.bytes_max, {"seed": seed, **_decisions(plan)})
    replacements = Replacements()
    return core, sink, Recording(core, sink.write, replacements.take), replacements


def _access_log(plan: Plan, router_id: str, clock: Callable[[], float]) -> AccessLog | None:
    log = plan.settings.log
    if log.access == "off":
        return None
    try:
        sink = LineSink(log.access_file or sys.stdout.fileno(), changed=_on_access_log)
    except OSError as error:
        raise ConfigError([f"log.access_file: cannot open {log.access_file}: {error.strerror}"]) from None
    return AccessLog(sink, log.access, router_id, clock)


def _traces(plan: Plan, router_id: str, explain: Explain, clock: Callable[[], float]) -> SpanWriter | None:
    tracing = plan.settings.tracing
    if tracing is None:
        return None
    from router.gateway.telemetry.traces import Traces  # noqa: PLC0415 - the SDK takes a third of a second to import

    return Traces(tracing.url, tracing.service, router_id, explain, clock)


def _on_access_log(error: OSError | None) -> None:
    if error is None:
        _log.warning("the access log is written again")
    else:
        _log.error("the access log cannot be written, its lines are dropped: %s", error.strerror or error)


def _worker_record(plan: Plan, identity: WorkerIdentity | None) -> Path | None:
    """The file of one worker's record; None: none is configured, or the config's file is the process's own."""
    record = plan.settings.record
    return identity.record(record.file) if record and identity else None


def _driver(
    plan: Plan,
    core: Dispatcher | Recording,
    observer: RequestObservers,
    quotas: Quotas,
    clock: Callable[[], float],
    dialler: Dialler | None,
) -> Driver:
    upstream, tracing = plan.settings.upstream, plan.settings.tracing
    return Driver(
        core,
        (),
        observer,
        clock,
        ingress=plan.ingress,
        pool=PoolLimits(upstream.connect_s, upstream.idle_s, upstream.idle_max),
        limits=StreamLimits(upstream.stall_s, upstream.reader_s),
        buffers=Buffers(plan.settings.listen.buffered_bytes_max),
        traces=TraceSource(tracing.sample, tracing.clients_decide) if tracing is not None else None,
        dialler=dialler,
        quotas=quotas,
    )


def _decisions(plan: Plan, last_good: Plan | None = None) -> dict[str, Any]:
    trial = plan.settings.policy.canary
    split = trial.model_dump(mode="json", include={"share", "by", "tenants"}) if trial is not None else None
    named = {role: plan.chosen[role].plain() for role in ("routing", "admission", "canary") if role in plan.chosen}
    if last_good is not None:
        named["last_good"] = last_good.chosen["routing"].plain()
    return recorder.decisions(named | ({"split": split} if split else {}), plan.limits, plan.ingress.models)


def _store(plan: Plan, router_id: str, identity: WorkerIdentity | None) -> Store:
    state = plan.settings.state
    if plan.redis is not None:
        return RedisStore(plan.redis, state.pool, router_id, state.lease_s, state.timeout_s)
    return FileStore(identity.folder, router_id, state.lease_s) if identity else MemoryStore(router_id)


def _target(given: settings.Backend, key: str | None, certificates: TlsContext | None) -> Target:
    """The address of a configured backend for the data plane."""
    templates = {name: getattr(given, name) for name in ("chat_template", "chat_opening")}
    given_templates = {name: text for name, text in templates.items() if text is not None}
    facts = {"engine": given.kind, "api_key": key, "models": given.models, "certificates": certificates}
    return Target.of_url(given.name, given.url, **facts, **given_templates)


def _log_failure(task: asyncio.Task[None]) -> None:
    with suppress(asyncio.CancelledError):
        if error := task.exception():
            _log.error("task %s failed and has ended: %r; restart the router", task.get_name(), error)
