"""Where the demand is read: Redis where the config has one, else the admin path of the router that it describes.

Must not depend on what the demand is used for.
"""

from time import monotonic
from typing import Final

import httpx

from router.autoscaler.demand import Views
from router.gateway.config.plan import Plan
from router.gateway.state import Store
from router.gateway.state.redis import RedisStore
from router.gateway.state.wire import view_of

_TIMEOUT_S: Final = 2.0


class Sources:
    """Redis where the config has one; else the admin path of the router that the config describes."""

    def __init__(self, plan: Plan, admin_key: str) -> None:
        self._plan, self._admin_key = plan, admin_key
        self._store: Store | None = None
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> "Sources":
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
