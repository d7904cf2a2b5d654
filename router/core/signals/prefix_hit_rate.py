"""The share of prompt tokens that an engine found in its prefix cache since its last report."""

from math import nan
from typing import Final

from router.core.columns import PREFIX_HIT_RATE
from router.core.signals.signal import Computed, Gauge, Page, Ratio, Share, Signal, SimulatedEngine, Value


def _vllm_otherwise(page: Page) -> float:
    """0 where prefix caching is off."""
    never = any(labels.get("enable_prefix_caching") == "False" for labels in page.labels("vllm:cache_config_info"))
    return 0.0 if never else nan


def _llamacpp(page: Page) -> Value:
    """Its counter of prompt tokens leaves the cached ones out."""
    cached = page.total("llamacpp:prompt_tokens_cached_total")
    return Share(cached, cached + page.total("llamacpp:prompt_tokens_total"))


def _simulated(engine: SimulatedEngine) -> Value:
    return Share(engine.cached_tokens, engine.prompt_tokens, nan if engine.limits.prefix_caching else 0.0)


SIGNAL: Final = Signal(
    name="prefix_hit_rate",
    metric="headroom_engine_prefix_hit_ratio",
    help="Share of prompt tokens found in the prefix cache since the last report",
    least=0.0,
    most=1.0,
    rounding=0.05,
    live={
        "vllm": Ratio(
            ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
            ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
            _vllm_otherwise,
        ),
        "sglang": Gauge(("sglang:cache_hit_rate",)),
        "llamacpp": Computed(_llamacpp),
        "tensorrt-llm": Gauge(("trtllm_kv_cache_hit_rate",)),
    },
    simulated=_simulated,
    row=PREFIX_HIT_RATE,
)
