"""The scaling loop: from demand to the number of replicas, with the reason; the config's target applies it.

Routers publish their demand in Redis or, where a single router has its state in memory, at its admin path. Without an
answer the last advice remains; while a part of the routers cannot be seen, replicas are only added. Must not depend on
any one target or on how replicas are started.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from math import nan
from time import monotonic
from typing import Final

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from router.core.decisions import ScaleTo
from router.core.errors import StoreGone
from router.core.policy import Demand
from router.core.types import Backend
from router.gateway.config.plan import Plan
from router.gateway.state import ModelDemand, RouterView, Store
from router.gateway.state.redis import RedisStore
from router.gateway.state.wire import UNREADABLE, view_of
from router.targets import Advice, Outcome, Target

_log = logging.getLogger("headroom")
_TIMEOUT_S: Final = 2.0
MISSING_S: Final = 60.0  # as long as a window of demand: then what a router served that is gone shows at the others

Views = Mapping[str, RouterView]


def together(views: Sequence[Mapping[str, ModelDemand]]) -> dict[str, ModelDemand]:
    """The demand of all routers, by model: rates add up, means weigh by rate, the busiest router's class counts."""
    by_model: dict[str, list[ModelDemand]] = defaultdict(list)
    for view in views:
        for model, demand in view.items():
            by_model[model].append(demand)
    return {model: _summed(demands) for model, demands in by_model.items()}


def _summed(demands: Sequence[ModelDemand]) -> ModelDemand:
    rate = sum(each.requests_per_s for each in demands)
    weights = [each.requests_per_s / rate if rate else 1 / len(demands) for each in demands]
    pairs = list(zip(weights, demands, strict=True))
    return ModelDemand(
        requests_per_s=rate,
        prompt_tokens=sum(weight * each.prompt_tokens for weight, each in pairs),
        output_tokens=sum(weight * each.output_tokens for weight, each in pairs),
        ended=sum(each.ended for each in demands),
        attained=sum(each.attained for each in demands),
        slo_class=max(pairs, key=lambda pair: pair[0])[1].slo_class,
    )


def advise(plan: Plan, demand: Mapping[str, ModelDemand]) -> list[Advice]:
    """The advice of the plan's scaling policy for this demand, by model, within the variants' bounds."""
    return [one for model, each in sorted(demand.items()) for one in _advise_model(plan, model, each)]


def _advise_model(plan: Plan, model: str, demand: ModelDemand) -> list[Advice]:
    patterns = {backend.variant: backend for backend in plan.backends if model in backend.models}
    running = {name: sum(b.variant == name and model in b.models for b in plan.backends) for name in patterns}
    if not patterns or demand.output_tokens <= 0:
        return []
    answers = plan.scaling.scale(_demand(plan, model, demand, running, patterns))
    return [_bounded(plan, model, answer, running.get(answer.variant, 0)) for answer in answers]


def _demand(
    plan: Plan, model: str, demand: ModelDemand, running: Mapping[str, int], patterns: Mapping[str, Backend]
) -> Demand:
    classes = plan.ingress.classes
    return Demand(
        model=model,
        requests_per_s=demand.requests_per_s,
        prompt_tokens=demand.prompt_tokens,
        output_tokens=demand.output_tokens,
        slo=classes.get(demand.slo_class, classes[plan.ingress.default_class]).slo,
        replicas=running,
        variants=patterns,
        attainment=demand.attained / demand.ended if demand.ended else nan,
    )


def _bounded(plan: Plan, model: str, answer: ScaleTo, running: int) -> Advice:
    bounds = plan.settings.autoscale.variants.get(answer.variant)
    replicas, why = answer.replicas, answer.why
    if bounds is not None and not bounds.min_replicas <= replicas <= bounds.max_replicas:
        replicas = min(max(replicas, bounds.min_replicas), bounds.max_replicas)
        why += f"; {answer.replicas} is outside {bounds.min_replicas} to {bounds.max_replicas}"
    return Advice(model, answer.variant, replicas, running, why)


class Autoscaler:
    """Reads the demand, computes the advice, sets the gauges, and applies the advice to the target."""

    def __init__(self, plan: Plan, target: Target, admin_key: str = "", clock: Callable[[], float] = monotonic) -> None:
        """``admin_key``: of the router, where its demand is read over HTTP and that needs a key."""
        self._plan, self._target, self._admin_key, self._clock = plan, target, admin_key, clock
        self._read_s: dict[str, float] = {}  # by router, when its demand was read last
        self._last: dict[tuple[str, str], int] = {}  # by model and variant, the replicas of the last advice
        self.registry = CollectorRegistry()
        labels = ["model", "variant"]
        self._wanted = Gauge("headroom_replicas_wanted", "Replicas the SLO needs", labels, registry=self.registry)
        self._running = Gauge("headroom_replicas_running", "Replicas configured", labels, registry=self.registry)
        self._failures = Counter(
            "headroom_autoscale_failures", "Rounds in which the demand could not be read", registry=self.registry
        )
        self._applied = Counter(
            "headroom_autoscale_applied",
            "Advice applied to the scaling target, by model, variant and outcome",
            [*labels, "outcome"],
            registry=self.registry,
        )

    async def round(self, source: Callable[[], Awaitable[Views]]) -> list[Advice]:
        """Read the demand once and apply what follows; without an answer the gauges stay and nothing is applied."""
        try:
            views = await source()
        except (StoreGone, httpx.HTTPError, ValueError) as error:
            self._failures.inc()
            _log.warning("the demand of the routers could not be read, so the advice stays as it is: %s", error)
            return []
        missing = self._missing(views)
        advice = advise(self._plan, together([view.demand for view in views.values()]))
        if missing:
            advice = [self._no_fewer(one, missing) for one in advice]
        self._last |= {(one.model, one.variant): one.replicas for one in advice}
        for one in advice:
            await self._apply(one)
        return advice

    def _missing(self, views: Views) -> list[str]:
        """The routers whose demand was read in the last minute and cannot be read now, and those whose never could."""
        now_s = self._clock()
        read = {name for name, view in views.items() if view is not UNREADABLE}
        self._read_s |= dict.fromkeys(read, now_s)
        self._read_s = {name: at_s for name, at_s in self._read_s.items() if now_s - at_s < MISSING_S}
        return sorted((self._read_s.keys() | views.keys()) - read)

    def _no_fewer(self, one: Advice, missing: Sequence[str]) -> Advice:
        """The advice, with no fewer replicas than before: a router that cannot be seen may serve as much as ever."""
        least = self._last.get((one.model, one.variant), one.running)
        if one.replicas >= least:
            return one
        return replace(
            one, replicas=least, why=f"{one.why}; not fewer while the demand of {', '.join(missing)} cannot be read"
        )

    async def _apply(self, one: Advice) -> None:
        """Set the gauges and apply; a failure is counted and logged."""
        self._wanted.labels(one.model, one.variant).set(one.replicas)
        self._running.labels(one.model, one.variant).set(one.running)
        applied = await self._target.apply(one)
        self._applied.labels(one.model, one.variant, applied.outcome.value).inc()
        if applied.outcome is Outcome.FAILED:
            _log.warning("%s: %d x %s was not applied: %s", one.model, one.replicas, one.variant, applied.reason)

    async def run(self, *, once: bool = False) -> None:
        """Go round until cancelled, then close the target; with ``once`` a single time, without the metrics port."""
        try:
            await self._run(once)
        finally:
            await self._target.close()

    async def _run(self, once: bool) -> None:
        settings = self._plan.settings.autoscale
        async with _Sources(self._plan, self._admin_key) as sources:
            source = sources.views
            if once:
                if not await self.round(source):
                    _log.info("no router reports any demand, so there is no advice")
                return
            server, _ = start_http_server(settings.port, self._plan.settings.listen.host, self.registry)
            try:
                while True:
                    await self.round(source)
                    await asyncio.sleep(settings.period_s)
            finally:
                server.shutdown()
                server.server_close()


class _Sources:
    """Redis where the config has one; else the admin path of the router that the config describes."""

    def __init__(self, plan: Plan, admin_key: str) -> None:
        self._plan, self._admin_key = plan, admin_key
        self._store: Store | None = None
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> "_Sources":
        state = self._plan.settings.state
        if self._plan.redis is not None:
            self._store = RedisStore(self._plan.redis, state.pool, "autoscaler", state.lease_s, state.timeout_s)
        else:
            self._client = _http_client(_TIMEOUT_S)
        return self

    async def views(self) -> Views:
        """The view of every router. Raises StoreGone, httpx.HTTPError, or ValueError for an answer of another form."""
        if self._store is not None:
            return await self._store.routers(monotonic())
        assert self._client is not None
        listen = self._plan.settings.listen
        answer = await self._client.get(f"http://{listen.host}:{listen.port}/admin/routers", headers=self._auth())
        answer.raise_for_status()
        views = answer.json()
        if not isinstance(views, dict):
            raise ValueError(f"{answer.url}: expected an object of routers")  # noqa: TRY004 - of a text
        return {router: view_of(view) for router, view in views.items()}

    def _auth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._admin_key}"} if self._admin_key else {}

    async def __aexit__(self, *_: object) -> None:
        if self._store is not None:
            await self._store.close()
        if self._client is not None:
            await self._client.aclose()


def _http_client(timeout_s: float) -> httpx.AsyncClient:
    """For control traffic: bounded waits, no proxy from the environment, no redirects followed."""
    limits = httpx.Limits(max_keepalive_connections=64, keepalive_expiry=4.0)  # vLLM closes idle ones after 5 s
    return httpx.AsyncClient(timeout=timeout_s, trust_env=False, limits=limits)
