"""Health checks over real sockets, and the engines' metrics pages."""

import time
from dataclasses import astuple
from math import isnan, nan
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import settings
from router.core.signals import Share
from router.core.types import EngineReport
from router.engines import Snapshot, read_metrics
from router.gateway.monitoring.health import Engines, HealthChange, Watch, WatchedEngine, engine
from router.gateway.monitoring.probe import ProbeClient
from tests.pages import Pages
from tests.waiting import until

VLLM = b"""# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.1
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 250.0
vllm:cache_config_info{block_size="16",engine="0",odd="a}b\\"c",num_gpu_blocks="100"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="100"} 1.0
"""
CAPTURES = Path(__file__).parents[3] / "shared" / "engines"


def same(found: Snapshot | None, expected: Snapshot) -> bool:
    """Equal, where nan counts as equal to nan."""
    assert found is not None
    return numbers(astuple(found)) == numbers(astuple(expected))


def numbers(value: object) -> object:
    """The same with -1 for nan, which equals nothing."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [numbers(item) for item in value]
    return -1 if isinstance(value, float) and isnan(value) else value


class Listener:
    """Notes every call."""

    def __init__(self) -> None:
        self.reports: list[EngineReport] = []
        self.asked = 0
        self.changes: list[HealthChange] = []
        self.failures: list[str] = []

    def probe_started(self, name: str) -> None:
        self.asked += 1

    def reported(self, name: str, report: EngineReport) -> None:
        self.reports.append(report)

    def backend_health(self, name: str, change: HealthChange) -> None:
        self.changes.append(change)

    @property
    def healths(self) -> list[bool]:
        return [change.up for change in self.changes]

    def scraped(self, backend: str, report: EngineReport, took_s: float) -> None:
        pass

    def scrape_failed(self, backend: str, why: str) -> None:
        self.failures.append(why)


def test_ranks_of_one_engine_are_summed_and_shares_averaged() -> None:
    """Data parallelism shows one sample a rank; longer names that begin alike are not counted in."""
    assert same(
        read_metrics(VLLM),
        Snapshot("vllm", 7.0, 2.0, 3200.0, {"kv_usage": 0.3, "prefix_hit_rate": Share(250.0, 1000.0)}),
    )


def test_the_prefix_hit_rate_is_of_what_came_since_the_last_page() -> None:
    """A lifetime mean would hide a cache that was just flushed; a restart gives no rate at all."""
    first = Snapshot("vllm", signals={"prefix_hit_rate": Share(250, 1000)})
    assert isnan(first.report(0.0, None).prefix_hit_rate)
    assert Snapshot("vllm", signals={"prefix_hit_rate": Share(350, 1200)}).report(0.0, first).prefix_hit_rate == 0.5
    assert isnan(Snapshot("vllm", signals={"prefix_hit_rate": Share(1, 10)}).report(0.0, first).prefix_hit_rate)
    assert isnan(first.report(0.0, first).prefix_hit_rate)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (
            b'sglang:num_running_reqs{model_name="m"} 5\nsglang:num_queue_reqs{model_name="m"} 6\n'
            b"sglang:token_usage 0.25\nsglang:max_total_num_tokens 4096\nsglang:cache_hit_rate 0.75\n",
            Snapshot("sglang", 5, 6, 4096, {"kv_usage": 0.25, "prefix_hit_rate": 0.75}),
        ),
        (
            b"trtllm_num_requests_running 2\ntrtllm_num_requests_waiting 1\ntrtllm_kv_cache_utilization 0.5",
            Snapshot("tensorrt-llm", 2, 1, signals={"kv_usage": 0.5, "prefix_hit_rate": nan}),
        ),
        (
            b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n"
            b"llamacpp:prompt_tokens_total 60\nllamacpp:prompt_tokens_cached_total 40\n",
            Snapshot("llamacpp", 1, 2, signals={"kv_usage": nan, "prefix_hit_rate": Share(40, 100)}),
        ),
        (b"tgi_batch_current_size 3\ntgi_queue_size 2\n", Snapshot("tgi", 3, 2)),
        (
            b'dynamo_frontend_inflight_requests{model="m"} 7\ndynamo_frontend_inflight_requests{model="other"} 9\n'
            b'dynamo_frontend_router_queue_pending_requests{model="m",policy_class="default",worker_type="decode"} 2\n',
            Snapshot("dynamo", 5, 2),
        ),
        (b'dynamo_frontend_inflight_requests{model="m"} 7\n', Snapshot("dynamo", 7, 0)),
        (
            b"vllm:num_requests_running what\nvllm:num_requests_waiting 3 1700000000\n",
            Snapshot("vllm", nan, 3, signals={"kv_usage": nan, "prefix_hit_rate": Share(nan, nan)}),
        ),
    ],
)
def test_each_engine_is_known_by_its_names(page: bytes, expected: Snapshot) -> None:
    """SGLang, trtllm-serve, llama.cpp, TGI, Dynamo; a sample that is no number is passed over; a timestamp is not the
    value.
    """
    assert same(read_metrics(page, ("m",)), expected)


SGLANG = b"""sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",priority="",tp_rank="0"} 10.0
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",priority="0",tp_rank="0"} 7.0
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",priority="5",tp_rank="0"} 3.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",priority="",tp_rank="0"} 2.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",priority="None",tp_rank="0"} 2.0
sglang:max_total_num_tokens{engine_type="unified",model_name="m",pp_rank="0",priority="",tp_rank="0"} 4096.0
"""


def test_a_total_beside_its_parts_by_priority_is_counted_once() -> None:
    """SGLang with priority scheduling: 10 streams were read as 20, and the next ones refused."""
    found = read_metrics(SGLANG)
    assert found is not None
    assert (found.running, found.waiting, found.kv_tokens_max) == (10.0, 2.0, 4096.0)


def test_ranks_that_work_on_the_same_requests_are_counted_once() -> None:
    """Stages of a pipeline and tensor ranks report the same requests each; ranks of data parallelism have their own."""
    page = b"".join(
        b'sglang:num_running_reqs{dp_rank="%d",pp_rank="%d",tp_rank="%d"} %d\n' % (dp, pp, tp, 3 + 2 * dp)
        for dp in range(2)
        for pp in range(2)
        for tp in range(4)
    )
    found = read_metrics(page)
    assert found is not None
    assert found.running == 3 + 5


NAMES = {
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    "sglang": ("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage", "sglang:max_total_num_tokens"),
    "llamacpp": ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    "tensorrt-llm": ("trtllm_num_requests_running", "trtllm_num_requests_waiting", "trtllm_kv_cache_utilization"),
}


@given(
    st.sampled_from(sorted(NAMES)),
    st.lists(st.integers(0, 50), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["priority", "reason", "adapter"]), st.sampled_from("abc"), min_size=1),
    st.lists(st.integers(0, 50), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_breakdown_beside_a_total_changes_nothing(
    kind: str, ranks: list[int], labels: dict[str, str], parts: list[int], empty: bool
) -> None:
    """Whatever labels an engine divides its totals by, with the labels of the total empty or left out."""
    rank = "dp_rank" if kind == "sglang" else "engine"
    total, divided = b"", b""
    for name in NAMES[kind]:
        for number, value in enumerate(ranks):
            none = "".join(f',{label}=""' for label in labels) if empty else ""
            total += f'{name}{{{rank}="{number}"{none}}} {value}\n'.encode()
            for part, size in enumerate(parts):
                more = "".join(f',{label}="{text}{part}"' for label, text in labels.items())
                divided += f'{name}{{{rank}="{number}"{more}}} {size}\n'.encode()
    alone, beside, before = (read_metrics(page) for page in (total, total + divided, divided + total))
    assert alone is not None
    assert alone.running == sum(ranks)
    assert same(beside, alone)
    assert same(before, alone)


def test_a_triton_that_serves_others_too_is_read_for_our_models_alone() -> None:
    """Blocks give the capacity; models we do not route to do not count, unless no sample is named after ours."""
    page = b"\n".join(
        b'nv_trt_llm_request_metrics{model="%b",request_type="%b",version="1"} %d' % row
        for row in [(b"a", b"waiting", 1), (b"a", b"scheduled", 2), (b"b", b"waiting", 10), (b"b", b"scheduled", 20)]
    ) + b"".join(
        b'\nnv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="%b",model="a",version="1"} %d' % row
        for row in [(b"used", 50), (b"max", 100), (b"tokens_per", 64), (b"fraction", 0)]
    )
    assert same(read_metrics(page, ["a"]), Snapshot("triton", 2, 1, 6400, {"kv_usage": 0.5}))
    other = read_metrics(page, ["outer-ensemble"])
    assert other is not None
    assert other.running == 22


def test_a_page_of_no_known_engine_says_nothing() -> None:
    """Neither does an empty one."""
    assert read_metrics(b"node_load1 0.5\n") is None
    assert read_metrics(b"") is None


@pytest.mark.skipif(not CAPTURES.exists(), reason="no captures of real engines beside the repository")
def test_pages_of_real_engines_are_read() -> None:
    """vLLM 0.32 under load, and Triton 2.51 idle."""
    vllm, triton = (read_metrics((CAPTURES / name).read_bytes()) for name in ("vllm_metrics.txt", "triton_metrics.txt"))
    assert vllm is not None
    assert triton is not None
    assert (vllm.running, vllm.waiting, vllm.kv_tokens_max) == (3.0, 8.0, 8192.0)
    assert (triton.running, triton.waiting) == (0.0, 0.0)


def watch(pages: Pages, listener: Listener, down_after: int = 2) -> Watch:
    """A watch of one engine that those pages are of; close its client."""
    at = WatchedEngine("e", pages.url + "/health", pages.url + "/metrics", ("m",))
    return Watch(at, ProbeClient(2.0), listener, listener, down_after, time.monotonic)


async def test_a_healthy_engine_is_reported_with_the_time_it_was_asked() -> None:
    """Health first turns up, then stays; the report carries the moment of the question."""
    async with Pages({"/health": (200, b""), "/metrics": (200, VLLM)}) as pages:
        listener = Listener()
        one = watch(pages, listener)
        before_s = time.monotonic()
        for _ in range(2):
            await one.check()
            await one.scrape()
        assert listener.healths == [True]
        assert listener.asked == 2
        assert before_s <= listener.reports[0].asked_s <= time.monotonic()
        assert listener.reports[0].running == 7.0
        one._client.close()


async def test_a_failing_scrape_does_not_take_a_backend_down() -> None:
    """Only its health does."""
    async with Pages({"/health": (200, b""), "/metrics": (500, b"")}) as pages:
        listener = Listener()
        one = watch(pages, listener)
        for _ in range(5):
            await one.check()
            await one.scrape()
        assert listener.healths == [True]
        assert len(listener.failures) == 5
        one._client.close()


async def test_one_missed_check_is_forgiven_and_two_are_not() -> None:
    """Down after ``down_after`` in a row, up again with the first good one; one without a check is down."""
    async with Pages({"/health": (200, b"")}) as pages:
        listener = Listener()
        one = watch(pages, listener)
        for status in (200, 503, 200, 503, 503, 503, 200):
            pages.pages["/health"] = (status, b"")
            await one.check()
        assert listener.healths == [True, False, True]
        await pages.stop()
        fresh_listener = Listener()
        fresh = watch(pages, fresh_listener)
        await fresh.check()
        assert fresh.up is False
        down, refused = listener.changes[1], fresh_listener.changes[0]
        assert str(down).startswith(f"health check failed (status 503 at {pages.url}/health), 2 in a row, down since ")
        assert f"at {pages.url}/health), 1 in a row, down since " in str(refused)
        for each in (one, fresh):
            each._client.close()
        await pages.start()


async def test_the_set_of_engines_can_change_while_watched() -> None:
    """A new engine is checked, a removed one no longer, the others go on as before."""
    async with Pages({"/health": (200, b"")}) as pages:
        listener = Listener()
        engines = Engines(listener, listener, ProbeClient, time.monotonic)
        a, b, c = (WatchedEngine(name, f"{pages.url}/health?{name}", pages.url, (), scraped=False) for name in "abc")
        await engines.watch((a, b), 0.01, 1.0, 2)
        await until(lambda: "/health?b" in pages.asked and "/health?a" in pages.asked)
        kept = engines.watches["b"]
        await engines.watch((b, c), 0.01, 1.0, 2)
        await until(lambda: "/health?c" in pages.asked)
        assert set(engines.watches) == {"b", "c"}
        assert engines.watches["b"] is kept
        await engines.close()
        assert not engines.watches


def test_addresses_follow_the_customs_of_each_protocol() -> None:
    """Triton answers for its health under /v2 and for its metrics two ports up."""

    def addresses(**more: str) -> tuple[str, str]:
        facts = {"name": "x", "url": "http://h:8100", "models": ["m"], "card": "l4", "model": "qwen3-4b"} | more
        made = engine(settings.Backend.model_validate(facts), True)
        return made.health_url, made.metrics_url

    assert addresses() == ("http://h:8100/health", "http://h:8100/metrics")
    assert addresses(protocol="triton") == ("http://h:8100/v2/health/ready", "http://h:8102/metrics")
    own = {"health_url": "http://h:1/up", "metrics_url": "http://h:2/m"}
    assert addresses(protocol="triton", **own) == ("http://h:1/up", "http://h:2/m")
