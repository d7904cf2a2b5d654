"""llama.cpp's server: OpenAI's API with slots instead of a paged KV cache.

The simulator has no scheduler of slots; chunked prefill with as many sequences as slots is the nearest one.
"""

from typing import Final

from router.engines.facts import (
    CONTEXT_TOKENS_MOST,
    SEQUENCES_MOST,
    TOKENS_MOST,
    EngineFacts,
    EnginePages,
    field,
    listed,
    names,
    text,
    whole,
)
from router.engines.kind import UNREADY, EngineKind, Era, ErrorDialect, MetricsPage
from router.engines.prometheus import ScrapedPage, Snapshot


def _metrics(page: ScrapedPage) -> Snapshot:
    return Snapshot(
        "llamacpp",
        running=page.total("llamacpp:requests_processing"),
        waiting=page.total("llamacpp:requests_deferred"),
    )


async def _discover(pages: EnginePages) -> EngineFacts | None:
    """``/props`` has the slots and the context of each; ``/v1/models`` the names."""
    entries = listed(await pages.json("/v1/models"), "llamacpp")
    if not entries:
        return None
    props = await pages.json("/props")
    slots = whole(props, "total_slots", SEQUENCES_MOST)
    context = whole(field(props, "default_generation_settings"), "n_ctx", CONTEXT_TOKENS_MOST)
    return EngineFacts(
        names(entries),
        version=text(props, "build_info"),
        loaded=text(props, "model_path"),
        context_tokens_max=context or whole(field(entries[0], "meta"), "n_ctx", CONTEXT_TOKENS_MOST),
        kv_tokens_max=min(context * slots, TOKENS_MOST),
        seqs_max=slots,
    )


KIND: Final = EngineKind(
    name="llamacpp",
    aliases=("llama.cpp", "llama-cpp", "llama-server", "chatglm.cpp"),
    prior="llamacpp",
    eras=(Era((1, 0), "llamacpp"), Era((0, 0), "llamacpp-2024")),
    default_port=8080,
    discover=_discover,
    metrics=MetricsPage((b"llamacpp:requests_processing",), _metrics),
    errors=ErrorDialect(unready=(UNREADY, r"Loading model$")),
)
