"""vLLM: its OpenAI server, and the metrics of V1 and V0."""

from math import nan
from typing import Final

from router.engines.facts import TOKENS_MOST, EngineFacts, EnginePages, bases, listed, longest, names, text, whole
from router.engines.kind import EngineKind, Era, MetricsPage
from router.engines.prometheus import Labels, RunningAdapters, ScrapedPage, Snapshot

_ADAPTERS_MOST: Final = 256  # at once
_DIGITS_MOST: Final = 6


def _metrics(page: ScrapedPage) -> Snapshot:
    return Snapshot(
        "vllm",
        running=page.total("vllm:num_requests_running"),
        waiting=page.total("vllm:num_requests_waiting"),
        kv_tokens_max=_kv_tokens_max(page),
        adapters=_adapters(page),
        asleep=page.total("vllm:engine_sleep_state", sleep_state="awake") == 0.0,
    )


def _adapters(page: ScrapedPage) -> RunningAdapters | None:
    """It names them in the labels of a gauge whose value is the time: the newest counts."""
    info = page.newest_labels("vllm:lora_requests_info")
    if info is None or not info.get("max_lora", "").isdecimal():
        return None
    running = [name for name in info.get("running_lora_adapters", "").split(",")[:_ADAPTERS_MOST] if name]
    return RunningAdapters(tuple(running), int(info["max_lora"][:_DIGITS_MOST]))


def _kv_tokens_max(page: ScrapedPage) -> float:
    """Tokens of all ranks' caches; nan where the page has none."""
    info = page.labels("vllm:cache_config_info")
    return sum(map(_kv_tokens, info)) if info else nan


def _kv_tokens(labels: Labels) -> float:
    """Tokens of one rank's cache: stated by current versions, blocks x block size in older ones."""
    stated = labels.get("kv_cache_size_tokens", "None")
    try:
        return float(stated) if stated != "None" else float(labels["num_gpu_blocks"]) * float(labels["block_size"])
    except (KeyError, ValueError):
        return nan


async def _discover(pages: EnginePages) -> EngineFacts | None:
    """``/v1/models`` names vLLM as owner; the size of the KV cache stands among the metrics."""
    entries = bases(listed(await pages.json("/v1/models"), "vllm"))
    if not entries:
        return None
    metrics = await pages.get("/metrics")
    held = _kv_tokens_max(ScrapedPage(metrics or b""))
    return EngineFacts(
        names(entries),
        version=text(await pages.json("/version"), "version"),
        loaded=text(entries[0], "root"),
        context_tokens_max=longest(entries, "max_model_len"),
        kv_tokens_max=whole({"held": held}, "held", TOKENS_MOST),
    )


KIND: Final = EngineKind(
    name="vllm",
    prior="vllm",
    eras=(  # 0.4 had CUDA graphs settled; the V1 engine came with 0.8
        Era((0, 8), "vllm"),
        Era((0, 4), "vllm-2024"),
        Era((0, 0), "vllm-2023"),
    ),
    whole_prompts_since=(0, 19),  # scheduler_reserve_full_isl: vllm-project/vllm#37307, merged in spring 2026
    default_port=8000,
    paused_path="/is_paused",
    discover=_discover,
    checks_model=True,
    metrics=MetricsPage((b"vllm:num_requests_running",), _metrics),
)
