"""Engines of which only the address is known: read over real sockets, served as soon as they answer."""

import asyncio
import contextlib
import json
import logging
from pathlib import Path

import httpx
import pytest

from router.config.backend import ASSUMED_CARD
from router.config.settings import Backend
from router.core.errors import Unanswered
from router.engines import EngineFacts, find
from router.gateway.config.plan import plan_file
from router.gateway.discovery.initial import backends_of, commented, short_config
from router.gateway.discovery.reading import completed, read_engine
from router.gateway.monitoring.probe import ProbeClient
from simulator.emulator.engine import Serving, listen
from simulator.emulator.serving import DIALECTS
from simulator.pool import Member
from simulator.replica.truth import EXACT
from tests.commands import command, router_command
from tests.fakes_router import config, router
from tests.pages import Pages
from tests.redis_server import free_port
from tests.waiting import until, until_async

# As the engines' own pages read, cut to what is read of them and a little more.
VLLM = {
    "/version": b'{"version":"0.6.3"}',
    "/v1/models": b'{"object":"list","data":[{"id":"tiny-s","object":"model","owned_by":"vllm","root":"/models/tiny-s",'
    b'"parent":null,"max_model_len":2048},{"id":"lora-a","owned_by":"vllm","root":"/l","parent":"tiny-s"}]}',
    "/metrics": b'vllm:num_requests_running{engine="0"} 0.0\n'
    b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="512"} 1.0\n',
}
SGLANG = {
    "/get_server_info": b'{"model_path":"meta-llama/Llama-3.1-8B-Instruct","served_model_name":"l",'
    b'"tp_size":2,"pp_size":1,"context_length":null,"chunked_prefill_size":8192,"max_running_requests":48,"max_total_num_tokens":412000,'
    b'"mem_fraction_static":0.85,"version":"0.5.2"}',
    "/v1/models": b'{"object":"list","data":[{"id":"l","object":"model","owned_by":"sglang","max_model_len":131072}]}',
}
LLAMACPP = {
    "/v1/models": b'{"object":"list","data":[{"id":"tiny-lc","owned_by":"llamacpp","meta":{"n_ctx":2048}}]}',
    "/props": b'{"default_generation_settings":{"n_ctx":1024},"total_slots":4,"model_path":"/m/t.gguf",'
    b'"build_info":"b5"}',
}
TRITON = {
    "/v2": b'{"name":"triton","version":"2.51.0","extensions":["classification","statistics"]}',
    "/v2/repository/index": b'[{"name":"ensemble","version":"1","state":"READY"},{"name":"pre","state":"READY"},'
    b'{"name":"old","state":"UNAVAILABLE"}]',
    "/v2/models/ensemble": b'{"name":"ensemble","inputs":[{"name":"text_input","datatype":"BYTES","shape":[1]}]}',
    "/v2/models/pre": b'{"name":"pre","inputs":[{"name":"QUERY","datatype":"BYTES","shape":[1]}]}',
}
TRTLLM = {
    "/v1/models": b'{"object":"list","data":[{"id":"q","object":"model","owned_by":"tensorrt_llm"}]}',
    "/version": b'{"version":"1.0.0"}',
}
TGI = {
    "/info": b'{"model_id":"meta-llama/Llama-3.1-8B-Instruct","max_concurrent_requests":128,"max_total_tokens":8192,'
    b'"max_batch_total_tokens":65536,"max_batch_prefill_tokens":4096,"max_batch_size":null,"version":"3.0.0"}',
    "/v1/models": b'{"object":"list","data":[{"id":"meta-llama/Llama-3.1-8B-Instruct","owned_by":"meta"}]}',
}
DYNAMO = {
    "/v1/models": b'{"object":"list","data":[{"id":"mock","owned_by":"nvidia","context_window":0}]}',
    "/metrics": b'dynamo_frontend_inflight_requests{model="mock"} 0\n'
    b'dynamo_frontend_model_context_length{model="mock"} 2048\n',
}
OTHER = {"/v1/models": b'{"data":[{"id":"mock","owned_by":"nvidia","context_window":4096}]}'}


def served(pages: dict[str, bytes]) -> Pages:
    return Pages({path: (200, body) for path, body in pages.items()})


async def read(pages: Pages, **given: str) -> tuple[str, EngineFacts]:
    client = ProbeClient(5.0)
    try:
        kind, facts = await read_engine(Backend(name="x", url=pages.url, **given), client)
    finally:
        client.close()
    return kind.name, facts


@pytest.mark.parametrize(
    ("pages", "kind", "facts"),
    [
        (VLLM, "vllm", EngineFacts(("tiny-s",), "0.6.3", "/models/tiny-s", 2048, 8192)),
        (
            SGLANG,
            "sglang",
            EngineFacts(("l",), "0.5.2", "meta-llama/Llama-3.1-8B-Instruct", 131072, 412000, 48, 8192, 2, 1),
        ),
        (LLAMACPP, "llamacpp", EngineFacts(("tiny-lc",), "b5", "/m/t.gguf", 1024, 4096, 4)),
        (TRITON, "triton", EngineFacts(("ensemble",), "2.51.0")),
        (TRTLLM, "tensorrt-llm", EngineFacts(("q",), "1.0.0")),
        (
            TGI,
            "tgi",
            EngineFacts(
                ("meta-llama/Llama-3.1-8B-Instruct",),
                "3.0.0",
                "meta-llama/Llama-3.1-8B-Instruct",
                8192,
                65536,
                chunk_tokens=4096,
            ),
        ),
        (DYNAMO, "dynamo", EngineFacts(("mock",), context_tokens_max=2048)),
        (OTHER, "openai", EngineFacts(("mock",), context_tokens_max=4096)),
    ],
)
async def test_each_engine_is_recognised_by_its_own_pages(
    pages: dict[str, bytes], kind: str, facts: EngineFacts
) -> None:
    """Kind, version, models and limits; adapters are no models of it, and state no limits."""
    async with served(pages) as at:
        assert await read(at) == (kind, facts)
        assert len(at.asked) == len(set(at.asked))


@pytest.mark.parametrize(
    "lie",
    ["-5", "0", "1e99", "NaN", '"4096"', "true", "1.5", "[4096]", "null", "99999999999999999999999"],
)
async def test_a_number_that_cannot_be_is_as_if_it_had_not_been_given(lie: str) -> None:
    """Whatever an engine says, nothing implausible comes in."""
    body = SGLANG["/get_server_info"].replace(b"412000", lie.encode())
    async with served(SGLANG | {"/get_server_info": body}) as at:
        if lie == "NaN":  # no JSON: the page is none, and what is left is a plain OpenAI server
            assert (await read(at))[0] == "openai"
        else:
            assert (await read(at))[1].kv_tokens_max == 0


@pytest.mark.parametrize("name", ['""', "7", '"a\\nb"', json.dumps("x" * 201)])
async def test_a_model_with_a_name_that_cannot_be_is_none(name: str) -> None:
    """Empty, no text, with a line feed, or endless."""
    async with served({"/v1/models": b'{"data":[{"id":%b,"owned_by":"vllm"}]}' % name.encode()}) as at:
        with pytest.raises(Unanswered, match="no engine that lists its models"):
            await read(at)


async def test_an_engine_that_is_not_there_says_so() -> None:
    """With what the socket said."""
    pages = served({})
    async with pages:
        pass
    with pytest.raises(Unanswered):
        await read(pages)


def test_what_the_config_gives_is_never_overruled() -> None:
    """The engine's word fills what is left open, and nothing else."""
    facts = EngineFacts(("a",), "1", "meta-llama/Llama-3.1-8B", 4096, 9999, 8, 512, 4, 1)
    given = Backend(name="x", url="http://h:1", models=["m"], kv_tokens_max=5, tp=2, engine="openai")
    whole = completed(given, find("vllm"), facts)
    assert (whole.models, whole.kv_tokens_max, whole.tp, whole.engine) == ({"m": "m"}, 5, 2, "openai")
    assert (whole.context_tokens_max, whole.seqs_max, whole.chunk_tokens) == (4096, 8, 512)
    open_ended = completed(Backend(name="x", url="http://h:1"), find("vllm"), facts)
    assert (open_ended.models, open_ended.engine, open_ended.tp) == ({"a": "a"}, "vllm", 4)
    assert open_ended.model is not None
    assert open_ended.model.like == "llama-3-8b"


def test_a_layout_that_cannot_be_is_not_believed() -> None:
    """A TP that does not divide the model's heads is another model, or a lie: the rest still holds."""
    whole = completed(
        Backend(name="x", url="http://h:1"), find("vllm"), EngineFacts(("llama-3-8b",), kv_tokens_max=64, tp=7)
    )
    assert (whole.model, whole.tp, whole.kv_tokens_max) == (None, 1, 64)


async def test_an_engine_is_served_as_soon_as_it_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A backend of a name and an address alone: not up at the start, named in the log, then read and served."""
    loop = asyncio.get_running_loop()
    member = Member("e", "h100", model="qwen2.5-0.5b", model_tokens_max=4096, kv_blocks=1000)
    serving = Serving(member, "tiny", EXACT, speedup=50.0, mean_output_tokens=4)
    server, connections = await listen(serving, DIALECTS["openai"], "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    text = config(f"  - {{name: late, url: 'http://127.0.0.1:{port}'}}\n")
    caplog.set_level(logging.INFO, "headroom")
    async with router(tmp_path / "r.yaml", text, ready=False) as it:
        await until(lambda: "backend late: not served yet" in caplog.text)
        assert not it.gateway.ready
        version = it.gateway.plan.version
        server, connections = await listen(serving, DIALECTS["openai"], "127.0.0.1", port)
        await until(lambda: it.gateway.ready)
        assert "backend late: vllm 0.32.0, models tiny, context 4096 tokens, KV cache 16000 tokens" in caplog.text
        got = await it.chat(body={"model": "tiny", "max_tokens": 3})
        assert got.status_code == 200
        assert got.text.endswith("data: [DONE]\n\n")
        (backend,) = it.gateway.plan.backends
        assert (backend.models, backend.kv_tokens_max, backend.context_tokens_max) == (("tiny",), 16000, 4096)
        assert backend.labels["card"] == ASSUMED_CARD.name
        assert min(backend.prior.sigma) >= 1.0
        assert it.gateway.plan.version == version
        assert (await it.get("/v1/models")).json()["data"][0]["id"] == "tiny"
        outcome = await it.gateway.reloader.reload("test")
        assert outcome.ok
        assert (await it.chat(body={"model": "tiny", "max_tokens": 2})).status_code == 200
    server.close()
    for connection in list(connections):
        connection.close()
    await server.wait_closed()
    assert loop.is_running()


async def test_every_emulated_engine_can_be_discovered() -> None:
    """``python -m simulator serve`` stands in for a real one, Triton too."""
    for protocol in DIALECTS:
        serving = Serving(Member("e", "h100", model="qwen2.5-0.5b"), "tiny", EXACT)
        server, connections = await listen(serving, DIALECTS[protocol], "127.0.0.1", 0)
        client = ProbeClient(5.0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        kind, facts = await read_engine(Backend(name="x", url=url), client)
        assert kind.protocol == protocol
        assert facts.models == ("tiny",)
        client.close()
        server.close()
        for connection in list(connections):
            connection.close()
        await server.wait_closed()


async def test_a_backend_that_leaves_the_config_is_asked_no_more(tmp_path: Path) -> None:
    """An engine that never answered delays no other."""
    text = config("  - {name: a, url: 'http://127.0.0.1:1'}\n", "  - {name: b, url: 'http://127.0.0.1:1'}\n")
    async with router(tmp_path / "r.yaml", text, ready=False) as it:
        assert set(it.gateway.discovery._tasks) == {"a", "b"}
        (tmp_path / "r.yaml").write_text(config("  - {name: b, url: 'http://127.0.0.1:1'}\n"))
        assert (await it.gateway.reloader.reload("test")).ok
        assert set(it.gateway.discovery._tasks) == {"b"}


def test_addresses_alone_are_a_config(tmp_path: Path) -> None:
    """What ``serve --backend`` serves: names from the addresses, each its own."""
    with short_config(backends_of(["http://a:8000", "http://b:8000/x", "http://a:8000"]), 9000) as path:
        plan = plan_file(path)
    assert [given.name for given in plan.undiscovered] == ["a-8000", "b-8000-x", "a-8000-again-1"]
    assert plan.settings.listen.port == 9000
    assert not plan.backends
    assert not path.exists()
    with pytest.raises(ValueError, match="expected http://host:port, not 'a:8000'"):
        backends_of(["a:8000"])


@pytest.mark.parametrize("host", ["null", "yes", "123", "0x1f", "2001-01-01"])
def test_a_host_that_yaml_would_read_as_another_value_is_a_name(host: str) -> None:
    """The short config is read back like any other."""
    with short_config(backends_of([f"http://{host}"]), 9000) as path:
        assert [given.name for given in plan_file(path).undiscovered] == [host]


async def test_init_writes_every_printable_name_as_yaml(tmp_path: Path) -> None:
    """Beyond the basic plane too, where escapes of JSON are none of YAML, and words that YAML reads otherwise."""
    names = ["m\U0001f600", "null", "é: #x", 'a"b\\c']
    listed = {"data": [{"id": name, "owned_by": "vllm"} for name in names]}
    async with served({"/v1/models": json.dumps(listed).encode()}) as at:
        text, _ = await commented([at.url], 5.0)
    file = tmp_path / "found.yaml"
    file.write_text(text, encoding="utf-8")
    assert list(plan_file(file).backends[0].models) == names


async def test_init_writes_what_it_found_and_check_accepts_it(tmp_path: Path) -> None:
    """One engine of each sort, and one that is away: its address stays, to be read when it answers."""
    async with served(VLLM) as vllm, served(SGLANG) as sglang, served(TRITON) as triton:
        text, missing = await commented([vllm.url, sglang.url, triton.url, "http://127.0.0.1:1"], 5.0)
    file = tmp_path / "found.yaml"
    file.write_text(text)
    plan = plan_file(file)
    assert [given.engine for given in plan.addresses] == ["vllm-2024", "sglang", "triton"]
    assert [backend.kv_tokens_max for backend in plan.backends[:2]] == [8192, 412000]
    assert [given.url for given in plan.undiscovered] == ["http://127.0.0.1:1"]
    assert len(missing) == 1
    assert "# card: ?" in text
    assert "model: llama-3-8b" in text
    result = router_command(["check", str(file)])
    assert (result.exit_code, "OK" in result.stdout) == (0, True)


async def test_serve_with_an_address_alone_answers(tmp_path: Path) -> None:
    """As a user starts it, a real process; its config is gone with it."""
    serving = Serving(Member("e", "h100", model="qwen2.5-0.5b"), "tiny", EXACT, speedup=50.0, mean_output_tokens=4)
    server, connections = await listen(serving, DIALECTS["openai"], "127.0.0.1", 0)
    url, port = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", free_port()
    async with (
        command("serve", "--backend", url, "--port", str(port)) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False) as client,
    ):
        await until_async(lambda: ready(client))
        body = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "hello"}]}
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.json()["usage"]["completion_tokens"] <= 3
        process.terminate()
        await process.wait()
    server.close()
    for connection in list(connections):
        connection.close()
    await server.wait_closed()


async def ready(client: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return (await client.get("/readyz")).status_code == 200
    return False


@pytest.mark.parametrize(
    ("options", "expected", "status"),
    [
        (["serve"], "give either --config FILE or --backend URL", 2),
        (["serve", "--config", "x.yaml", "--backend", "http://a:1"], "give either", 2),
        (["serve", "--config", "x.yaml", "--port", "1"], "--port: goes with --backend", 2),
        (["serve", "--backend", "a:1"], "--backend: expected http://host:port", 1),
        (["init", "--backend", "ftp://x"], "--backend: expected http://host:port", 1),
    ],
)
def test_a_command_that_cannot_be_says_what_was_expected(options: list[str], expected: str, status: int) -> None:
    """With the exit status of a wrong command line, or of a value that cannot be used."""
    result = router_command(options)
    assert (result.exit_code, expected in result.stderr) == (status, True)
