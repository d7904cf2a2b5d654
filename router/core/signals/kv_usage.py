"""The share of an engine's KV cache in use."""

from math import nan
from typing import Final

from router.core.columns import KV_USAGE
from router.core.signals.signal import Computed, Gauge, Page, Signal


def _triton(page: Page) -> float:
    """TensorRT-LLM's backend under Triton counts blocks."""
    blocks = "nv_trt_llm_kv_cache_block_metrics"
    most = page.total(blocks, kv_cache_block_type="max")
    return page.total(blocks, kv_cache_block_type="used") / most if most > 0 else nan


SIGNAL: Final = Signal(
    name="kv_usage",
    metric="headroom_engine_kv_usage_ratio",
    help="Used share of the KV cache, as the engine reports",
    least=0.0,
    most=1.0,
    rounding=0.05,
    live={
        "vllm": Gauge(("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")),  # the second: V0's name
        "sglang": Gauge(("sglang:token_usage",)),
        "llamacpp": Gauge(("llamacpp:kv_cache_usage_ratio",)),
        "tensorrt-llm": Gauge(("trtllm_kv_cache_utilization",)),
        "triton": Computed(_triton),
    },
    simulated=lambda engine: engine.kv_usage(),
    row=KV_USAGE,
)
