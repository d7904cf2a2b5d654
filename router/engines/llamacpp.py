"""llama.cpp's server: OpenAI's API with slots instead of a paged KV cache.

The simulator has no scheduler of slots; chunked prefill with as many sequences as slots is the nearest one.
"""

from collections.abc import Collection
from typing import Final

from router.engines.kind import EngineKind, MetricsPage
from router.engines.prometheus import Snapshot, mean, samples_of_first, total


def _metrics(page: bytes, _: Collection[str]) -> Snapshot:
    cached = total(samples_of_first(page, b"llamacpp:prompt_tokens_cached_total"))
    return Snapshot(
        "llamacpp",
        running=total(samples_of_first(page, b"llamacpp:requests_processing")),
        waiting=total(samples_of_first(page, b"llamacpp:requests_deferred")),
        kv_usage=mean(samples_of_first(page, b"llamacpp:kv_cache_usage_ratio")),
        hits=cached,
        queries=cached + total(samples_of_first(page, b"llamacpp:prompt_tokens_total")),
    )


KIND: Final = EngineKind(
    name="llamacpp",
    aliases=("llama.cpp", "llama-cpp", "llama-server", "chatglm.cpp"),
    prior="llamacpp",
    default_port=8080,
    metrics=MetricsPage((b"llamacpp:requests_processing",), _metrics),
)
