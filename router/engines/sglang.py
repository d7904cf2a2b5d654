"""SGLang: an OpenAI server with a radix prefix cache."""

from collections.abc import Collection
from typing import Final

from router.engines.kind import EngineKind, MetricsPage
from router.engines.prometheus import Snapshot, mean, samples_of_first, total


def _metrics(page: bytes, _: Collection[str]) -> Snapshot:
    return Snapshot(
        "sglang",
        running=total(samples_of_first(page, b"sglang:num_running_reqs")),
        waiting=total(samples_of_first(page, b"sglang:num_queue_reqs")),
        kv_usage=mean(samples_of_first(page, b"sglang:token_usage")),
        kv_tokens_max=total(samples_of_first(page, b"sglang:max_total_num_tokens")),
        hit_rate=mean(samples_of_first(page, b"sglang:cache_hit_rate")),
    )


KIND: Final = EngineKind(
    name="sglang",
    prior="sglang",
    default_port=30000,
    metrics=MetricsPage((b"sglang:num_running_reqs",), _metrics),
)
