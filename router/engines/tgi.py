"""Text Generation Inference: OpenAI's API beside one of its own, and a router in front of its shards."""

from typing import Final

from router.engines.facts import (
    CONTEXT_TOKENS_MOST,
    SEQUENCES_MOST,
    TOKENS_MOST,
    EngineFacts,
    EnginePages,
    bases,
    field,
    listed,
    names,
    text,
    whole,
)
from router.engines.kind import EngineKind, MetricsPage
from router.engines.prometheus import ScrapedPage, Snapshot


def _metrics(page: ScrapedPage) -> Snapshot:
    """One page for all shards, which work on the same batch."""
    return Snapshot("tgi", running=page.total("tgi_batch_current_size"), waiting=page.total("tgi_queue_size"))


async def _discover(pages: EnginePages) -> EngineFacts | None:
    """``/info`` has what it was started with; ``/v1/models`` came later."""
    info = await pages.json("/info")
    if not text(info, "model_id") or field(info, "max_total_tokens") is None:
        return None
    entries = bases(listed(await pages.json("/v1/models")))
    return EngineFacts(
        names(entries) or (text(info, "model_id"),),
        version=text(info, "version"),
        loaded=text(info, "model_id"),
        context_tokens_max=whole(info, "max_total_tokens", CONTEXT_TOKENS_MOST),
        kv_tokens_max=whole(info, "max_batch_total_tokens", TOKENS_MOST),
        seqs_max=whole(info, "max_batch_size", SEQUENCES_MOST),
        chunk_tokens=whole(info, "max_batch_prefill_tokens", CONTEXT_TOKENS_MOST),
    )


KIND: Final = EngineKind(
    name="tgi",
    aliases=("text-generation-inference", "huggingface-tgi"),
    prior="vllm",
    default_port=80,
    discover=_discover,
    metrics=MetricsPage((b"tgi_queue_size", b"tgi_batch_current_size"), _metrics),
)
