"""Where the demand is read: Redis where the config has one, else the admin path of the router that it describes.

Must not depend on what the demand is used for.
"""

from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Final

import httpx

from router.autoscaler.demand import Views
from router.autoscaler.keeping import FileKeeper, Keeper, NoKeeper, StoreKeeper
from router.config.settings import Listen
from router.gateway.config.plan import Plan
from router.gateway.state import Store
from router.gateway.state.redis import RedisStore
from router.gateway.state.wire import view_of
from router.gateway.tls import to_own_port
from router.urls import host_port

_TIMEOUT_S: Final = 2.0


class Sources:
    """Redis where the config has one; else the admin path of the router that the config describes."""

    def __init__(self, plan: Plan, path: Path, admin_key: str) -> None:
        """Opens nothing yet. *path*: of the config."""
        self._plan, self._folder, self._admin_key = plan, path.parent, admin_key
        state = plan.settings.state
        self._store: Store | None = None
        if plan.redis is not None:
            self._store = RedisStore(plan.redis, state.pool, "autoscaler", state.lease_s, state.timeout_s)

    @property
    def keeper(self) -> Keeper:
        """Where the autoscaler keeps its memory."""
        if self._store is not None:
            return StoreKeeper(self._store, shared=True)
        file = self._plan.settings.autoscale.memory_file
        return FileKeeper(file) if file is not None else NoKeeper()

    async def __aenter__(self) -> "Sources":
        return self

    async def views(self) -> Views:
        """The view of every router. Raises StoreGone, httpx.HTTPError, or ValueError for an answer of another form."""
        if self._store is not None:
            return await self._store.routers(monotonic())
        async with self._client() as client:
            answer = await client.get("/admin/routers", headers=self._auth())
        answer.raise_for_status()
        views = answer.json()
        if not isinstance(views, dict):
            raise ValueError(f"{answer.url}: expected an object of routers")  # noqa: TRY004 - of a text
        return {router: view_of(view) for router, view in views.items()}

    def _client(self) -> httpx.AsyncClient:
        """For one call: bounded waits, no proxy from the environment, no redirects followed, and the router's
        certificate as it is now.
        """
        listen = self._plan.settings.listen
        verify = to_own_port(listen.tls, self._folder) if listen.tls is not None else True
        return httpx.AsyncClient(base_url=own_url(listen), timeout=_TIMEOUT_S, trust_env=False, verify=verify)

    def _auth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._admin_key}"} if self._admin_key else {}

    async def __aexit__(self, *_: object) -> None:
        if self._store is not None:
            await self._store.close()


def own_url(listen: Listen) -> str:
    """Where a process on the same machine reaches the router that listens so."""
    scheme, host = "https" if listen.tls is not None else "http", listen.host
    try:
        address = ip_address(host)
    except ValueError:
        return f"{scheme}://{host}:{listen.port}"
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004 - of the protocol
    return f"{scheme}://{host_port(host, listen.port)}"
