"""A page of engine metrics to an engine's report of itself: vLLM, SGLang, Triton/TensorRT-LLM, trtllm-serve, llama.cpp.

Believes: the Prometheus text format, of which only the samples wanted are read; a page of vLLM is 90 KB of histograms.
Must not know who fetched it or when it will be again. Which engine it is, the names on the page tell.

With data parallelism an engine shows one sample a rank: counts are summed over them, shares averaged.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import nan
from typing import Final

from router.core.types import EngineReport

Labels = Mapping[str, str]
Samples = list[tuple[Labels, float]]

_LABEL: Final = re.compile(rb'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
_LABELS: Final = re.compile(rb'\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\}')


def samples(page: bytes, name: bytes) -> Iterator[tuple[Labels, float]]:
    """The samples of exactly this name, labels with values; a line that cannot be read is passed over."""
    at = page.find(b"\n" + name)
    while at >= 0:
        start = at + 1 + len(name)
        end = page.find(b"\n", start)
        found = _sample(page[start : end if end >= 0 else len(page)])
        if found is not None:
            yield found
        at = page.find(b"\n" + name, start)


def _sample(rest: bytes) -> tuple[Labels, float] | None:
    """What follows a name on its line: nothing for a longer name or what is no number."""
    if rest[:1] not in {b"{", b" "}:
        return None
    labels = _LABELS.match(rest)
    words = rest[labels.end() if labels else 0 :].split()
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    pairs = _LABEL.findall(labels.group(1)) if labels else ()
    return {key.decode(): text.decode(errors="replace") for key, text in pairs}, value


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one page says. ``hits`` and ``queries`` count prompt tokens since the engine began (nan: not told);
    ``hit_rate`` is for engines that tell only the share.
    """

    engine: str
    running: float = nan
    waiting: float = nan
    kv_usage: float = nan
    kv_tokens_max: float = nan
    hits: float = nan
    queries: float = nan
    hit_rate: float = nan

    def report(self, asked_s: float, before: "Snapshot | None") -> EngineReport:
        """As the core wants it; ``before`` is the page read last, for what happened since."""
        rate = self.hit_rate if before is None else self._rate_since(before)
        return EngineReport(asked_s, self.running, self.waiting, self.kv_usage, rate, self.kv_tokens_max)

    def _rate_since(self, before: "Snapshot") -> float:
        """Share of the prompt tokens since then found in the cache; nan with no prompt, or after a restart."""
        asked, hit = self.queries - before.queries, self.hits - before.hits
        return hit / asked if asked > 0 and 0 <= hit <= asked else self.hit_rate


def read(page: bytes, models: Collection[str] = ()) -> Snapshot | None:
    """What the page says, or None when it is of no engine known here.

    ``models``: the names the engine knows its models by; a Triton that serves others too is read for these alone.
    """
    text = b"\n" + page
    for signature, reader in _READERS.items():
        if b"\n" + signature in text:
            return reader(text, models)
    return None


def _all(page: bytes, *names: bytes) -> Samples:
    """The samples of the first of these names that the page has: the newest name first."""
    for name in names:
        found = list(samples(page, name))
        if found:
            return found
    return []


def _of(found: Samples, models: Collection[str]) -> Samples:
    """The samples of these models; all when none is theirs (an ensemble's numbers stand under its inner model)."""
    return [(labels, value) for labels, value in found if labels.get("model") in models] or found


def _sum(found: Samples, **labels: str) -> float:
    values = [value for has, value in found if labels.items() <= has.items()]
    return sum(values) if values else nan


def _mean(found: Samples, **labels: str) -> float:
    values = [value for has, value in found if labels.items() <= has.items()]
    return sum(values) / len(values) if values else nan


def _vllm(page: bytes, _: Collection[str]) -> Snapshot:
    """vLLM V1 names; ``gpu_cache_usage_perc`` is what V0 called it."""
    info = [labels for labels, _ in _all(page, b"vllm:cache_config_info")]
    never = any(labels.get("enable_prefix_caching") == "False" for labels in info)
    return Snapshot(
        "vllm",
        running=_sum(_all(page, b"vllm:num_requests_running")),
        waiting=_sum(_all(page, b"vllm:num_requests_waiting")),
        kv_usage=_mean(_all(page, b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")),
        kv_tokens_max=sum(map(_vllm_kv_tokens, info)) if info else nan,
        hits=_sum(_all(page, b"vllm:prefix_cache_hits_total", b"vllm:gpu_prefix_cache_hits_total")),
        queries=_sum(_all(page, b"vllm:prefix_cache_queries_total", b"vllm:gpu_prefix_cache_queries_total")),
        hit_rate=0.0 if never else nan,
    )


def _vllm_kv_tokens(labels: Labels) -> float:
    """Tokens of one rank's cache: said outright by today's vLLM, blocks x size by older ones."""
    told = labels.get("kv_cache_size_tokens", "None")
    try:
        return float(told) if told != "None" else float(labels["num_gpu_blocks"]) * float(labels["block_size"])
    except (KeyError, ValueError):
        return nan


def _sglang(page: bytes, _: Collection[str]) -> Snapshot:
    return Snapshot(
        "sglang",
        running=_sum(_all(page, b"sglang:num_running_reqs")),
        waiting=_sum(_all(page, b"sglang:num_queue_reqs")),
        kv_usage=_mean(_all(page, b"sglang:token_usage")),
        kv_tokens_max=_sum(_all(page, b"sglang:max_total_num_tokens")),
        hit_rate=_mean(_all(page, b"sglang:cache_hit_rate")),
    )


def _triton(page: bytes, models: Collection[str]) -> Snapshot:
    """TensorRT-LLM's backend under Triton: ``scheduled`` is what runs; ``active`` would count those that wait too.

    Triton's own ``nv_inference_pending_request_count`` stays 0 for decoupled models and is no use.
    """
    requests = _of(_all(page, b"nv_trt_llm_request_metrics"), models)
    blocks = _of(_all(page, b"nv_trt_llm_kv_cache_block_metrics"), models)
    most = _sum(blocks, kv_cache_block_type="max")
    return Snapshot(
        "triton",
        running=_sum(requests, request_type="scheduled"),
        waiting=_sum(requests, request_type="waiting"),
        kv_usage=_sum(blocks, kv_cache_block_type="used") / most if most > 0 else nan,
        kv_tokens_max=most * _mean(blocks, kv_cache_block_type="tokens_per") if most > 0 else nan,
    )


def _trtllm_serve(page: bytes, _: Collection[str]) -> Snapshot:
    return Snapshot(
        "trtllm-serve",
        running=_sum(_all(page, b"trtllm_num_requests_running")),
        waiting=_sum(_all(page, b"trtllm_num_requests_waiting")),
        kv_usage=_mean(_all(page, b"trtllm_kv_cache_utilization")),
        hit_rate=_mean(_all(page, b"trtllm_kv_cache_hit_rate")),
    )


def _llamacpp(page: bytes, _: Collection[str]) -> Snapshot:
    cached = _sum(_all(page, b"llamacpp:prompt_tokens_cached_total"))
    return Snapshot(
        "llamacpp",
        running=_sum(_all(page, b"llamacpp:requests_processing")),
        waiting=_sum(_all(page, b"llamacpp:requests_deferred")),
        kv_usage=_mean(_all(page, b"llamacpp:kv_cache_usage_ratio")),
        hits=cached,
        queries=cached + _sum(_all(page, b"llamacpp:prompt_tokens_total")),
    )


_READERS: Final[Mapping[bytes, Callable[[bytes, Collection[str]], Snapshot]]] = {
    b"vllm:num_requests_running": _vllm,
    b"sglang:num_running_reqs": _sglang,
    b"nv_trt_llm_request_metrics": _triton,
    b"trtllm_num_requests_": _trtllm_serve,
    b"trtllm_kv_cache_utilization": _trtllm_serve,
    b"llamacpp:requests_processing": _llamacpp,
}
