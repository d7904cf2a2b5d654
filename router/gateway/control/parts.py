"""The parts of one router that its control plane reads and calls. Must not depend on how they were put together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.core.dispatcher import Dispatcher
from router.core.types import EngineReport
from router.engines import ListedModel
from router.gateway.config.plan import Plan
from router.gateway.membership import Membership
from router.gateway.monitoring.downtime import Downtimes
from router.gateway.monitoring.health import Engines
from router.gateway.rollout.audit import Audit
from router.gateway.rollout.policy_rollout import PolicyRollout
from router.gateway.rollout.reload import Reloader
from router.gateway.sources.sources import Sources
from router.gateway.state import Store
from router.gateway.state.changes import Changes
from router.gateway.state.sync import Sync
from router.gateway.telemetry.history import History
from router.gateway.telemetry.journal import Journal
from router.gateway.telemetry.metrics import Metrics
from router.gateway.traffic.ports import RequestDriver


@dataclass(frozen=True, slots=True)
class ControlParts:
    """``path``: the config file; ``ready``: whether a request can be routed now; ``reports``: each engine's last;
    ``downtimes``: why which backends get no requests; ``failing_open``: models whose requests go to such all the same;
    ``model_lists``: what each engine listed last; ``scaling``: the last decision of the autoscaler in this router,
    None: there is none in it; ``changes``: the exchange with peers, None: there is none.
    """

    router_id: str
    path: Path
    clock: Callable[[], float]
    ready: Callable[[], bool]
    core: Dispatcher
    driver: RequestDriver
    engines: Engines
    model_lists: Mapping[str, tuple[ListedModel, ...]]
    downtimes: Callable[[], Downtimes]
    failing_open: Callable[[], Sequence[str]]
    sources: Sources
    reports: Mapping[str, EngineReport]
    store: Store
    sync: Sync
    changes: Changes | None
    reloader: Reloader
    rollout: PolicyRollout
    audit: Audit
    journal: Journal
    history: History
    backends: Membership
    metrics: Metrics
    scaling: Callable[[], Mapping[str, Any] | None]

    @property
    def plan(self) -> Plan:
        """The config that serves."""
        return self.reloader.running
