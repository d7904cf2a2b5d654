"""Likely mistakes of a new user. Each is answered with its place, its cause, and what to do or what was expected.

One table: a mistake that somebody makes belongs in it, with the words that would have helped.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.commands import Result, router_command, simulator_command
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import Act, ScriptedEngine, stream
from tests.gateway.test_adapters import ListingEngine, adapter, often
from tests.pages import Pages
from tests.redis_server import free_port
from tests.waiting import until

GOOD = 'backends:\n  - {name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}\n'
TRACE = '{"arrived_s": 0, "prompt_tokens": 10, "output_tokens": 5}\n'
POOL = "backends:\n  - {name: a, card: l4, model: qwen3-4b}\n"


def of(text: str, old: str, new: str) -> str:
    """The text with one thing wrong."""
    assert old in text
    return text.replace(old, new)


CONFIGS = [
    ("a tab", of(GOOD, "  - {", "\t- {"), ["r.yaml:2", "indented with a tab", "YAML takes spaces alone"]),
    ("a key twice", GOOD + "listen: {}\nlisten: {port: 1}\n", ["r.yaml:4", "key 'listen' is given twice"]),
    ("a misspelt key", of(GOOD, "card:", "crad:"), ["r.yaml:2", "backends[0].crad", "did you mean 'card'?"]),
    ("a misspelt section", GOOD + "listne: {}\n", ["r.yaml:3", "listne", "did you mean 'listen'?"]),
    ("no scheme", of(GOOD, "http://127.0.0.1:9", "127.0.0.1:9"), ["r.yaml:2", "backends[0].url", "expected http://"]),
    (
        "a path of the API",
        of(GOOD, ":9", ":9/v1"),
        ["r.yaml:2", "backends[0].url", "expected the address without /v1", "http://127.0.0.1:9"],
    ),
    (
        "a path of an example",
        of(GOOD, ":9", ":9/v1/chat/completions"),
        ["r.yaml:2", "backends[0].url", "expected the address without /v1/chat/completions", "http://127.0.0.1:9"],
    ),
    ("the page of a check", of(GOOD, ":9", ":9/health"), ["r.yaml:2", "expected the address without /health"]),
    (
        "a collector's port for gRPC",
        GOOD + "tracing: {endpoint: 'http://c:4317'}\n",
        ["r.yaml:3", "tracing.endpoint", "port 4317", "usually 4318"],
    ),
    ("an unknown engine", of(GOOD, "card:", "engine: vlm, card:"), ["r.yaml:2", "engine", "did you mean 'vllm'?"]),
    ("an unknown card", of(GOOD, "l4", "h1000"), ["r.yaml:2", "backends[0].card", "did you mean"]),
    (
        "a fine-tuned model",
        of(GOOD, "qwen3-4b", "acme-support-v2"),
        ["r.yaml:2", "backends[0].model", "`model: NAME` of the one that it is a fine-tune of", "or its facts"],
    ),
    ("a model too large", of(GOOD, "qwen3-4b", "llama-3-70b"), ["r.yaml:2", "backends[0].model", "does not fit"]),
    ("one name twice", GOOD + GOOD.partition("\n")[2], ["r.yaml:3", "backends[1].name", "two backends are named 'a'"]),
    ("no backends", "listen: {port: 8080}\n", ["r.yaml:1", "backends", "needs at least one entry"]),
    ("an empty file", "", ["r.yaml:1", "expected keys with values"]),
    ("an unknown policy", GOOD + "policy: {routing: slo_hedroom}\n", ["r.yaml:3", "did you mean 'slo_headroom'?"]),
    ("a unit", GOOD + "slo_classes: {default: {ttft_ms: 500ms}}\n", ["r.yaml:3", "ttft_ms", "not '500ms'"]),
    (
        "an unset variable",
        GOOD + "api_keys: [{key_env: NOT_SET_HERE, tenant: t}]\n",
        ["r.yaml:3", "api_keys[0].key_env", "environment variable NOT_SET_HERE is not set"],
    ),
    (
        "an unknown class",
        GOOD + "slo_classes: {default: {}, batch: {}}\napi_keys: [{key: long-enough, tenant: t, slo_class: bach}]\n",
        ["r.yaml:4", "api_keys[0].slo_class", "did you mean 'batch'?"],
    ),
    (
        "a fallback that nobody serves",
        GOOD + "models: {m: {fallback: [smal]}}\n",
        ["r.yaml:3", "models.m.fallback[0]", "no backend serves 'smal'", "expected one of m"],
    ),
    (
        "a list where keys belong",
        GOOD + "models: {m: {split: [m]}}\n",
        ["r.yaml:3", "split", "expected keys with values"],
    ),
    ("a value where a list belongs", GOOD + "api_keys: 5\n", ["r.yaml:3", "api_keys: expected a list, not 5"]),
    (
        "a word that is none of those",
        GOOD + "models: {x: {fallback: [m], fallback_for: all}}\n",
        ["r.yaml:3", "models.x.fallback_for: expected everyone, or tenants and classes", "not 'all'"],
    ),
    (
        "a month without a store",
        GOOD + "quotas: {t: {tokens_per_month: 5}}\n",
        ["r.yaml:3", "quotas.t.tokens_per_month", "needs state.redis_url"],
    ),
]


@pytest.mark.parametrize(("mistake", "text", "said"), CONFIGS, ids=[each[0] for each in CONFIGS])
def test_a_mistake_in_a_config_is_answered(mistake: str, text: str, said: list[str], tmp_path: Path) -> None:
    """By file, line and key."""
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    answered(router_command(["check", str(path)]), [str(tmp_path), *said])


def test_a_model_without_brackets_is_a_list_of_one(tmp_path: Path) -> None:
    """``models: demo`` can mean nothing else, nor can ``fallback: demo``."""
    path = tmp_path / "r.yaml"
    rules = "models: {big: {fallback: demo, fallback_for: {tenants: t}}}\n"
    path.write_text(of(GOOD, "models: [m]", "models: demo") + rules, encoding="utf-8")
    made = router_command(["check", str(path)])
    assert (made.exit_code, "models demo" in made.stdout) == (0, True)


def files(folder: Path) -> dict[str, str]:
    """Good files for commands, by a word for each."""
    made = {"TRACE": TRACE, "POOL": POOL, "LATE": POOL + "faults: [{at_s: 900, backend: a, kind: crash, for_s: 5}]\n"}
    made["STRANGE"] = POOL + "faults: [{at_s: 0, backend: b, kind: crash, for_s: 5}]\n"
    for name, text in made.items():
        (folder / name.lower()).write_text(text, encoding="utf-8")
    return {name: str(folder / name.lower()) for name in made} | {"NOWHERE": str(folder / "nowhere" / "x")}


COMMANDS: list[tuple[str, Callable[[list[str]], Result], str, list[str]]] = [
    ("a config that is not there", router_command, "check NOWHERE", ["NOWHERE", "cannot be read"]),
    ("a wrong command", router_command, "sevre", ["unknown command 'sevre'", "did you mean 'serve'?"]),
    ("a wrong option", router_command, "serve --confg x", ["--confg", "--help` shows the options"]),
    ("neither config nor engine", router_command, "serve", ["give either --config FILE or --backend URL"]),
    ("an address without a scheme", router_command, "init --backend 127.0.0.1:8001", ["127.0.0.1:8001", "http://"]),
    (
        "no router at the address",
        router_command,
        "rollback --url http://127.0.0.1:1",
        ["127.0.0.1:1", "does not answer"],
    ),
    ("a router without a scheme", router_command, "top --url 127.0.0.1:8080", ["--url", "http://host:port"]),
    ("three versions", router_command, "policy diff a b c", ["two versions, no more"]),
    (
        "a folder that is not there",
        simulator_command,
        "replay TRACE --pool POOL --json NOWHERE",
        ["--json", "there is no folder"],
    ),
    ("a fault after the trace", simulator_command, "replay TRACE --pool LATE", ["faults[0]", "after the last request"]),
    ("a fault of no backend", simulator_command, "replay TRACE --pool STRANGE", ["faults[0].backend", "among a"]),
    ("a trace that is not there", simulator_command, "replay NOWHERE --pool POOL", ["NOWHERE"]),
    (
        "a policy that is not there",
        simulator_command,
        "replay TRACE --pool POOL --policy slo_hedroom",
        ["did you mean 'slo_headroom'?"],
    ),
]


@pytest.mark.parametrize(("mistake", "run", "words", "said"), COMMANDS, ids=[each[0] for each in COMMANDS])
def test_a_mistake_on_a_command_line_is_answered(
    mistake: str, run: Callable[[list[str]], Result], words: str, said: list[str], tmp_path: Path
) -> None:
    """Before anything is done."""
    names = files(tmp_path)
    answered(run([names.get(word, word) for word in words.split()]), [names.get(each, each) for each in said])


def answered(made: Result, said: list[str]) -> None:
    """The command failed, in words and not with a traceback."""
    assert made.exit_code
    assert [words for words in said if words not in made.output] == [], made.output
    assert "Traceback" not in made.output


def test_an_engine_that_does_not_answer_is_named_by_init() -> None:
    """With the reason; the config has its address alone."""
    made = router_command(["init", "--backend", "http://127.0.0.1:1"])
    assert (made.exit_code, 'url: "http://127.0.0.1:1"' in made.stdout) == (1, True)
    answered(made, ["http://127.0.0.1:1: 127.0.0.1:1 cannot be reached: connection refused, nothing listens there"])


@contextlib.contextmanager
def own_log() -> Iterator[None]:
    """Within the context the process's log has no handler; those that were added are closed at the end."""
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        yield
    finally:
        for each in root.handlers:
            each.close()
        root.handlers[:] = kept
        root.setLevel(level)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_is_no_start(workers: str, tmp_path: Path) -> None:
    """Nothing claims to serve; what to change is named, in the config and for several workers too."""
    path, log = tmp_path / "r.yaml", tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as taken, log.open("w", encoding="utf-8") as file:
        path.write_text(f"listen: {{port: {taken.getsockname()[1]}}}\n{GOOD}", encoding="utf-8")
        with own_log():  # it is written to the descriptor of standard error
            made = router_command(["serve", "--config", str(path), "--workers", workers], file)
    said = log.read_text(encoding="utf-8").lower()
    assert (made.exit_code, "listening" in said, "by 2 workers" in said) == (1, False, False)
    assert "address already in use" in said
    assert f"set another `listen.port` in {path}".lower() in said


async def said_of(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, words: list[str], level: int = logging.WARNING
) -> None:
    """A router with this config logs one line with all these words."""
    with caplog.at_level(level, "headroom"):
        async with router(tmp_path / "r.yaml", text, ready=False):
            await until(lambda: any(all(word in line for word in words) for line in caplog.messages))


async def test_an_engine_that_is_down_is_named_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name, its address, what its check got."""
    port = free_port()
    text = config(f'  - {{name: a, url: "http://127.0.0.1:{port}", models: [m], card: l4, model: qwen3-4b}}\n')
    await said_of(text, tmp_path, caplog, ["backend a", f"http://127.0.0.1:{port}/health", "refused"])


async def test_https_for_an_engine_that_speaks_http_is_recognised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And what its url should be."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")  # what servers make of a TLS hello
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        text = config(f'  - {{name: a, url: "{url}", models: [m], card: l4, model: qwen3-4b}}\n')
        await said_of(text, tmp_path, caplog, ["backend a", "does not speak TLS", "is its url http://?"])


async def test_http_for_an_engine_that_speaks_https_is_recognised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other way round."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    engine = ScriptedEngine([stream("a")])
    engine.tls = context
    async with engine:
        url = f"http://127.0.0.1:{engine.port}"
        text = config(f'  - {{name: a, url: "{url}", models: [m], card: l4, model: qwen3-4b}}\n')
        await said_of(text, tmp_path, caplog, ["backend a", f"{url}/health", "is its url https://?"])


async def test_a_server_that_closes_without_a_word_is_no_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be anything."""
    async with ScriptedEngine([Act.CLOSE]) as engine:
        url = f"http://127.0.0.1:{engine.port}"
        text = config(f'  - {{name: a, url: "{url}", models: [m], card: l4, model: qwen3-4b}}\n')
        await said_of(text, tmp_path, caplog, ["backend a", f"{url}/health", "closed"])
    assert not any("https://?" in line for line in caplog.messages)


async def test_a_model_that_an_engine_does_not_serve_is_named_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With what it does serve, and which key is to be changed."""
    async with ListingEngine(adapter("qwen")) as engine, Pages(dict(HEALTHY)) as pages:
        text = often(config(backend("a", engine, pages).replace("models: [m]", "models: [m], engine: vllm")))
        await said_of(text, tmp_path, caplog, ["backend a", "lists qwen, but not m", "`models` of the backend"])


async def test_a_store_that_is_away_is_named_and_the_router_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it is without: the load of its peers."""
    port = free_port()
    text = config(
        '  - {name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}\n',
        more=f"state: {{redis_url: 'redis://127.0.0.1:{port}'}}\n",
    )
    words = ["shared state", f"127.0.0.1:{port}", "refused", "decides without the load of its peers until it answers"]
    await said_of(text, tmp_path, caplog, words)
