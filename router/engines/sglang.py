"""SGLang: an OpenAI server with a radix prefix cache."""

from typing import Final

from router.engines.facts import (
    CARDS_MOST,
    CONTEXT_TOKENS_MOST,
    SEQUENCES_MOST,
    TOKENS_MOST,
    EngineFacts,
    EnginePages,
    bases,
    field,
    listed,
    longest,
    names,
    text,
    whole,
)
from router.engines.kind import EngineKind, MetricsPage
from router.engines.prometheus import ScrapedPage, Snapshot


def _metrics(page: ScrapedPage) -> Snapshot:
    """Every stage of a pipeline reports, and with ``--enable-metrics-for-all-schedulers`` every tensor rank: all of one
    ``dp_rank`` (older versions: a page without it) report the same requests and the same cache.
    """
    return Snapshot(
        "sglang",
        running=page.total_of_ranks("dp_rank", "sglang:num_running_reqs"),
        waiting=page.total_of_ranks("dp_rank", "sglang:num_queue_reqs"),
        kv_tokens_max=page.total_of_ranks("dp_rank", "sglang:max_total_num_tokens"),
    )


async def _discover(pages: EnginePages) -> EngineFacts | None:
    """``/get_server_info`` has every argument it was started with; older versions have no ``owned_by``."""
    info = await pages.json("/get_server_info")
    if field(info, "max_total_num_tokens") is None and field(info, "mem_fraction_static") is None:
        return None
    entries = bases(listed(await pages.json("/v1/models")))
    return EngineFacts(
        names(entries) or tuple(filter(None, [text(info, "served_model_name") or text(info, "model_path")])),
        version=text(info, "version"),
        loaded=text(info, "model_path"),
        context_tokens_max=whole(info, "context_length", CONTEXT_TOKENS_MOST) or longest(entries, "max_model_len"),
        kv_tokens_max=whole(info, "max_total_num_tokens", TOKENS_MOST),
        seqs_max=whole(info, "max_running_requests", SEQUENCES_MOST),
        chunk_tokens=whole(info, "chunked_prefill_size", CONTEXT_TOKENS_MOST),
        tp=whole(info, "tp_size", CARDS_MOST),
        pp=whole(info, "pp_size", CARDS_MOST),
    )


KIND: Final = EngineKind(
    name="sglang",
    prior="sglang",
    default_port=30000,
    discover=_discover,
    metrics=MetricsPage((b"sglang:num_running_reqs",), _metrics),
)
