"""What this router states of its backends to the autoscaler: which there are, which get requests, how the first request
went, what was learnt of each variant.

Nothing is stated before every source of the config has answered: a part of the backends would be read as all of them.
Must not depend on what the autoscaler makes of it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from typing import Any, Final

from router.config.settings import Backend as Section
from router.core.capacity import VariantBelief
from router.core.dispatcher import Dispatcher
from router.core.errors import StoreGone
from router.core.types import Backend
from router.gateway.config.plan import Plan
from router.gateway.state import SEEN, Store
from router.gateway.state.seen import SeenBackend, SeenVariant, seen_json
from router.gateway.traffic.request_log import RequestLog

PERIOD_S: Final = 1.0
LEASE_S: Final = 30.0
UNDISCOVERED_S: Final = 30.0  # for so long after the start engines that have not said what they serve are waited for
LEARNT_MIN: Final = 20  # first tokens of a backend, before what was learnt of it stands for its variant
LEARNT_FROM: Final = 8  # backends of a variant
LEARNT_VARIANTS: Final = 64  # more would not fit into one value of the shared state
_SECRETS: Final = {"api_key", "api_key_env", "ca", "client_cert", "client_key", "tls_server_name"}


class SeenBackends:
    """The backends of one router, as it publishes them; an observer of requests."""

    def __init__(self, core: Dispatcher, clock: Callable[[], float]) -> None:
        self._core, self._clock = core, clock
        self._began_s = clock()
        self._first_ttft_s: dict[str, float] = {}  # by backend

    def ended(self, log: RequestLog) -> None:
        """A request has ended: of a backend's first one with a token, its TTFT is noted."""
        record = log.record
        if record.backend and record.backend not in self._first_ttft_s:
            ttft_s = record.first_token_s - record.sent_s
            if isfinite(ttft_s):
                self._first_ttft_s[record.backend] = max(0.0, ttft_s)

    def rejected(self, path: str, status: int, peer: tuple[str, int] | None) -> None:
        """It reached no backend."""

    def forget(self, name: str) -> None:
        """A backend has left."""
        self._first_ttft_s.pop(name, None)

    def seen(self, plan: Plan, answered: bool, up: Callable[[str], bool]) -> tuple[SeenVariant, ...] | None:
        """By variant; None while some may still be missing. ``answered``: whether every source has."""
        if not answered or (plan.undiscovered and self._clock() - self._began_s < UNDISCOVERED_S):
            return None
        groups: dict[tuple[str, tuple[str, ...]], list[tuple[Backend, Section]]] = defaultdict(list)
        for backend, section in zip(plan.backends, plan.addresses, strict=True):
            groups[backend.variant, backend.models].append((backend, section))
        return tuple(
            SeenVariant(
                variant,
                models,
                {backend.name: self._backend(backend.name, up(backend.name)) for backend, _ in members},
                members[0][1].model_dump(mode="json", exclude_unset=True, exclude=_SECRETS),
                self._learnt([backend.name for backend, _ in members]) if at < LEARNT_VARIANTS else None,
            )
            for at, ((variant, models), members) in enumerate(groups.items())
        )

    def _backend(self, name: str, up: bool) -> SeenBackend:
        known_s = self._first_ttft_s.get(name)
        return SeenBackend(up) if known_s is None else SeenBackend(up, known_s)

    def _learnt(self, names: Sequence[str]) -> Mapping[str, Any] | None:
        core = self._core
        slots = [core.ledger.roster.slot(name) for name in names]
        known = [slot for slot in slots if slot is not None and core.belief.seen(slot) >= LEARNT_MIN]
        return VariantBelief().update([core.belief.export(slot) for slot in known[:LEARNT_FROM]], 0.0)


async def publish(seen: Callable[[], tuple[SeenVariant, ...] | None], store: Store, router_id: str) -> None:
    """Publish what *seen* gives, again and again; cancel to end. Without it an earlier value expires."""
    while True:
        now = seen()
        if now is not None:
            with suppress(StoreGone):  # the sync with the shared state logs it
                await store.keep(SEEN + router_id, seen_json(now), LEASE_S)
        await asyncio.sleep(PERIOD_S)
