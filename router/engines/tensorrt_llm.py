"""TensorRT-LLM behind its own OpenAI server, trtllm-serve."""

from typing import Final

from router.engines.facts import EngineFacts, EnginePages, listed, longest, names, text
from router.engines.kind import EngineKind, Era, MetricsPage, Scheduler
from router.engines.prometheus import ScrapedPage, Snapshot


def _metrics(page: ScrapedPage) -> Snapshot:
    return Snapshot(
        "tensorrt-llm",
        running=page.total("trtllm_num_requests_running"),
        waiting=page.total("trtllm_num_requests_waiting"),
    )


async def _discover(pages: EnginePages) -> EngineFacts | None:
    """``/v1/models`` names TensorRT-LLM as owner."""
    entries = listed(await pages.json("/v1/models"), "tensorrt_llm")
    if not entries:
        return None
    version = text(await pages.json("/version"), "version")
    return EngineFacts(names(entries), version, context_tokens_max=longest(entries, "max_model_len"))


ERAS: Final = (  # 1.0 made the PyTorch backend the default
    Era((1, 0), "tensorrt-llm"),
    Era((0, 0), "tensorrt-llm-2024"),
)

KIND: Final = EngineKind(
    name="tensorrt-llm",
    aliases=("trtllm", "trt-llm", "trtllm-serve"),
    prior="tensorrt-llm",
    eras=ERAS,
    default_port=8000,
    discover=_discover,
    metrics=MetricsPage((b"trtllm_num_requests_", b"trtllm_kv_cache_utilization"), _metrics),
    scheduler=Scheduler.NO_EVICT,
)
