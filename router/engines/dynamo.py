"""Dynamo's frontend: OpenAI's API in front of workers, which are engines of any kind and have metrics of their own.

It states what it has in flight itself; of several frontends of the same workers each states its own.
"""

from math import isnan
from typing import Final

from router.engines.facts import CONTEXT_TOKENS_MOST, EngineFacts, EnginePages, listed, names, whole
from router.engines.kind import EngineKind, MetricsPage
from router.engines.prometheus import ScrapedPage, Snapshot

_IN_FLIGHT: Final = "dynamo_frontend_inflight_requests"
_PENDING: Final = "dynamo_frontend_router_queue_pending_requests"


def _metrics(page: ScrapedPage) -> Snapshot:
    """What waits in its router's queue is in flight too. A frontend without such a queue shows none."""
    in_flight, pending = page.total(_IN_FLIGHT), page.total(_PENDING)
    waiting = 0.0 if isnan(pending) else pending
    return Snapshot("dynamo", running=max(in_flight - waiting, 0.0), waiting=waiting)


async def _discover(pages: EnginePages) -> EngineFacts | None:
    """Its metrics show that it is one, since others name the same owner. Its workers' limits are not its own."""
    entries = listed(await pages.json("/v1/models"), "nvidia")
    page = ScrapedPage((await pages.get("/metrics") if entries else None) or b"")
    if not page.begins_a_line(_IN_FLIGHT.encode()):
        return None
    stated = {"context": page.mean("dynamo_frontend_model_context_length")}
    return EngineFacts(names(entries), context_tokens_max=whole(stated, "context", CONTEXT_TOKENS_MOST))


KIND: Final = EngineKind(
    name="dynamo",
    aliases=("dynamo-frontend", "nvidia-dynamo"),
    prior="vllm",
    default_port=8000,
    discover=_discover,
    metrics=MetricsPage((_IN_FLIGHT.encode(),), _metrics),
    checks_model=True,
)
