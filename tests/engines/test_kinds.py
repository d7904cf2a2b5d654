"""Engine kinds: found by every name, refused with the nearest one, and a new one is one file."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import policies
from router import engines
from router.core.errors import UnknownEngine
from router.core.tables import ENGINES
from router.engines import EngineKind, Scheduler, find, find_or_default, kinds, read_metrics, registry
from simulator.pool import Member, Pool
from simulator.run.play import play
from simulator.run.summary import summarise
from simulator.traces import TraceEntry
from simulator.workload.arrivals import Shaping, shape
from tests.fakes_router import config, router
from tests.fakes_wire import LAST, ScriptedEngine, chunked, reply
from tests.pages import Pages
from tests.waiting import until

LINES = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("vllm", "vllm"), ("vLLM", "vllm"), ("sglang", "sglang"), ("llama.cpp", "llamacpp"), ("openai", "openai")]
    + [(name, "tensorrt-llm") for name in ("tensorrt-llm", "tensorrt_llm", "trtllm", "trt-llm", "TensorRT-LLM")],
)
def test_every_spelling_is_one_kind(name: str, kind: str) -> None:
    """Case, hyphen or underscore, and the common short names."""
    assert find(name) is find(kind)
    assert find(name).name == kind


@pytest.mark.parametrize(("name", "prior", "reserves"), [
    ("vllm", "vllm", True),
    ("vLLM@0.32.0", "vllm", True),
    ("vllm@0.18", "vllm", False),
    ("vllm@0.5", "vllm-2024", False),
    ("vllm-2023", "vllm-2023", False),
    ("llamacpp@0.3", "llamacpp-2024", True),
])  # fmt: skip
def test_a_name_may_state_a_version(name: str, prior: str, reserves: bool) -> None:
    """Its step times and its scheduler's admission are those of the version; without one, today's."""
    kind = find(name)
    assert (kind.prior, kind.reserves_prompt) == (prior, reserves)


@pytest.mark.parametrize("name", ["vllm@", "vllm@new", "vllm@9", "vllm@0.x", "vllm@-1.0", "vllm@0." + "9" * 30])
def test_a_version_that_is_none_is_refused(name: str) -> None:
    """With the form that is expected; an unknown kind before the @ is named as ever."""
    with pytest.raises(UnknownEngine, match=r"expected a version after @, as in vllm@0\.9"):
        find(name)
    with pytest.raises(UnknownEngine, match="did you mean 'vllm'"):
        find("vlm@0.9")


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    """A mistyped engine would be believed and simulated as another."""
    with pytest.raises(UnknownEngine, match="unknown engine 'vlllm'; did you mean 'vllm'"):
        find("vlllm")
    with pytest.raises(UnknownEngine, match="unknown protocol 'tritton'; did you mean 'triton'"):
        find_or_default(None, "tritton")


def test_an_era_is_its_kind_with_the_step_times_of_then() -> None:
    """By name in a config, and by the version that an engine reports."""
    assert find("vllm-2023").prior == "vllm-2023"
    assert find("vllm-2023").metrics is find("vllm").metrics
    assert [find("vllm").prior_of(version) for version in ((0, 3), (0, 6), (0, 32))] == [
        "vllm-2023",
        "vllm-2024",
        "vllm",
    ]


def test_a_protocol_is_apart_from_whose_step_times_are_believed() -> None:
    """Triton serves TensorRT-LLM by default; another of its backends keeps its own prior and scheduler."""
    assert find_or_default(None, None) is find("openai")
    assert find_or_default(None, "triton") is find("triton")
    trt, vllm = find("tensorrt-llm", "triton"), find("vllm", "triton")
    assert (trt.protocol, trt.prior, trt.scheduler) == ("triton", "tensorrt-llm", Scheduler.NO_EVICT)
    assert (vllm.protocol, vllm.prior, vllm.scheduler) == ("triton", "vllm", Scheduler.CHUNKED_PREFILL)
    assert vllm.health_path == "/v2/health/ready"


def test_each_kind_has_a_row_of_the_efficiency_table() -> None:
    """The core falls back to a default row in silence; no kind may depend on that, and no row is out of reach."""
    rows = {row for kind in kinds() for row in kind.rows}
    assert rows == set(ENGINES) - {"default"}


def test_triton_has_its_metrics_two_ports_above() -> None:
    """8000 HTTP, 8001 gRPC, 8002 metrics; an address of IPv6 keeps its brackets."""
    assert find("triton").metrics_url("http://h:8100") == "http://h:8102/metrics"
    assert find("triton").metrics_url("http://[::1]") == "http://[::1]:8002/metrics"
    assert find("vllm").metrics_url("http://h:8000") == "http://h:8000/metrics"


def test_a_kind_of_a_protocol_of_its_own_needs_a_translation() -> None:
    """Else OpenAI's clients would get no answer from it."""
    with pytest.raises(ValueError, match="a translation is needed"):
        EngineKind(name="x", prior="vllm", protocol="x")


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[EngineKind]:
    """The toy's one file in the package's path, as a new file of the package would be."""
    shutil.copy(Path(__file__).parent / "toy.py", tmp_path / "zz_toy.py")
    engines.__path__.append(str(tmp_path))
    registry.forget()
    yield find("toy")
    engines.__path__.remove(str(tmp_path))
    registry.forget()


async def test_a_new_engine_is_one_file_in_the_gateway(toy: EngineKind, tmp_path: Path) -> None:
    """Its health path, metrics page, translation and errors are used with nothing else edited."""
    lines = [json.dumps({"word": word}).encode() + b"\n" for word in ("one", " two")]
    scripts = (
        [LINES + chunked(*lines) + LAST],
        [reply(b'{"oops": {"text": "bad manners: say please", "status": 500}}', 500)],
        [reply(b'{"oops": {"text": "out of toys today", "status": 400}}', 400)],
    )
    pages = Pages({"/up": (200, b""), "/numbers": (200, b"toy_busy 3\n")})
    async with ScriptedEngine(*scripts) as engine, pages:
        text = config(
            f'  - {{name: t, url: "http://127.0.0.1:{engine.port}", engine: toy-server, models: {{m: big}}, card: l4, '
            f'model: qwen3-4b, health_url: "{pages.url}/up", metrics_url: "{pages.url}/numbers"}}\n',
            more="policy: {limits: {attempts_max: 1}}\n",
        )
        async with router(tmp_path / "r.yaml", text) as it:
            await until(lambda: "t" in it.gateway.reports)
            assert it.gateway.reports["t"].running == 3
            good = await it.chat()
            assert good.text.endswith("data: [DONE]\n\n")
            assert [json.loads(e[6:])["choices"][0]["delta"]["content"] for e in good.text.split("\n\n")[:2]] == [
                "one",
                " two",
            ]
            assert b'"as":"big"' in engine.requests[0]
            assert engine.requests[0].startswith(b"POST /say ")
            rude, empty = await it.chat(), await it.chat()
            assert (rude.status_code, rude.json()["error"]["message"]) == (400, "bad manners: say please")
            assert empty.json()["error"]["message"] == "out of toys today"
            assert it.gateway.core.belief is not None
            whole = await it.chat(body={"stream": False})
            assert whole.json()["error"]["message"].endswith("streams chats alone")
    assert toy.health_url("http://h:1") == "http://h:1/up"


def test_a_new_engine_is_one_file_in_the_simulator(toy: EngineKind) -> None:
    """Its scheduler and prior are those of the kind; a pool may name it."""
    member = Member("t", "l4", "qwen3-4b", engine="toy")
    assert member.limits().no_evict
    assert member.shape.engine == toy.prior == "sglang"
    arrivals = shape([TraceEntry(n * 0.2, 300, 20) for n in range(20)], Shaping("qwen3-4b", ()), 1)
    routing, admission = policies.find("routing", "slo_headroom"), policies.find("admission", "deadline")
    assert summarise(play(arrivals, Pool((member,)), routing, admission, 1))["served"] == 20
    found = read_metrics(b"toy_busy 2\n")
    assert found is not None
    assert found.engine == "toy"


def test_tensorrt_llm_is_simulated_by_its_own_scheduler_under_every_name() -> None:
    """It was simulated by vLLM's under all but one of them."""
    for name in ("tensorrt-llm", "trtllm", "tensorrt_llm", "trt-llm", "triton", "tensorrt-llm-2024"):
        assert Member("t", "l4", "qwen3-4b", engine=name).limits().no_evict, name
    assert not Member("t", "l4", "qwen3-4b").limits().no_evict


def test_a_page_of_endless_samples_is_read_in_part() -> None:
    """Its tens of thousands of labels would keep the event loop from every stream; what no engine has is not read."""
    line = b'vllm:num_requests_running{engine="0"} 1.0\n'
    found = read_metrics(line * 100_000)
    assert found is not None
    assert found.running == 4096
