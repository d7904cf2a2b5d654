"""One engine's own pages, read once, and a configured backend completed by what they say.

What the config gives is never overruled. Must not depend on the core's state or on what serves at the moment.
"""

import re
from typing import Any, Final

from router.config.backend import ModelFacts, resolve
from router.config.settings import Backend
from router.core.errors import Unanswered, UnknownModel
from router.core.models import model
from router.engines import EngineFacts, EngineKind, EnginePages, discover
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.tls import TlsContext

_COUNTS: Final = ("context_tokens_max", "kv_tokens_max", "seqs_max", "chunk_tokens", "tp", "pp")
_LAID_OUT: Final = ("model", "tp", "pp")  # dropped together when the model does not fit so


class HttpPages(EnginePages):
    """The pages of the engine at one address, each fetched at most once."""

    def __init__(self, given: Backend, client: ProbeClient, key: str, certificates: TlsContext | None) -> None:
        """*key*: the bearer token of the engine, or empty; *certificates*: as in its target."""
        self._given, self._client, self._key, self._certificates = given, client, key, certificates
        self._bodies: dict[tuple[str, str], bytes | None] = {}

    async def get(self, path: str) -> bytes | None:
        """GET, ``/metrics`` at the address that the config gives for it."""
        own = path == "/metrics" and self._given.metrics_url
        return await self._page("GET", path, own or self._given.url + path)

    async def post(self, path: str) -> bytes | None:
        """POST with an empty body."""
        return await self._page("POST", path, self._given.url + path)

    async def _page(self, method: str, path: str, url: str) -> bytes | None:
        if (method, path) not in self._bodies:
            page = await self._client.get(url, self._key, method, self._certificates)
            self._bodies[method, path] = page.body if page.is_success else None
        return self._bodies[method, path]


async def read_engine(
    given: Backend, client: ProbeClient, key: str = "", certificates: TlsContext | None = None
) -> tuple[EngineKind, EngineFacts]:
    """What the engine at that address is. Raises Unanswered when it does not answer, or names no model."""
    pages = HttpPages(given, client, key, certificates)
    found = await discover(pages, given.kind if given.engine or given.protocol else None)
    if found is None or not found[1].models:
        raise Unanswered(f"{given.url} answers, but no engine that lists its models does")
    return found


def completed(given: Backend, kind: EngineKind, facts: EngineFacts) -> Backend:
    """*given* with what the engine reported, wherever the config says nothing."""
    more: dict[str, Any] = {} if given.models else {"models": {name: name for name in facts.models}}
    if not given.engine and not given.protocol:
        more["engine"] = named(kind, facts)
    if given.model is None and (known := known_model(facts)) is not None:
        more["model"] = ModelFacts(like=known)
    counts = {name: getattr(facts, name) for name in _COUNTS if name not in given.model_fields_set}
    more |= {name: count for name, count in counts.items() if count}
    whole = given.model_copy(update=more)
    if isinstance(resolve(whole, ()), list):  # such as a model that does not fit an assumed card
        whole = given.model_copy(update={name: value for name, value in more.items() if name not in _LAID_OUT})
    return whole


def named(kind: EngineKind, facts: EngineFacts) -> str:
    """What a config calls the kind: an older version by its era, whose step times were others."""
    version = re.match(r"v?(\d{1,6})\.(\d{1,6})", facts.version)
    row = kind.prior_of((int(version[1]), int(version[2]))) if version else kind.name
    return row if row.startswith(kind.name) else kind.name


def known_model(facts: EngineFacts) -> str | None:
    """The built-in model that the engine loaded, by the name of its checkpoint or else of what it serves."""
    for name in (facts.loaded, *facts.models):
        try:
            return model(name).name
        except UnknownModel:
            continue
    return None
