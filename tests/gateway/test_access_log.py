"""The access log: a line a request, from a real gateway, as JSON and as text, without text of prompts."""

import json
import logging
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.core.decisions import EndState
from router.core.errors import ConfigError, Reason
from router.gateway.config.plan import plan_file
from router.gateway.telemetry.access_log import AccessLog, termination
from router.gateway.telemetry.line_sink import LineSink
from router.gateway.telemetry.process_log import JsonFormatter, SinkHandler
from router.gateway.traffic.request_log import RequestLog
from simulator.traces import read_trace
from tests.commands import command
from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import Act, ScriptedEngine, reply, stream
from tests.gateway.test_metrics import account
from tests.pages import Pages
from tests.redis_server import free_port
from tests.waiting import until, until_async

USAGE = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def section(path: Path, form: str) -> str:
    return f"log: {{access: {form}, access_file: {path}}}\nslo_classes: {{default: {{ttft_ms: 60000}}}}\n"


@asynccontextmanager
async def serving(path: Path, form: str, *scripts: Any) -> AsyncIterator[tuple[Router, ScriptedEngine]]:
    """A router with one engine of these scripts, which logs to *path*."""
    async with ScriptedEngine(*scripts) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages), more=section(path, form))
        async with router(path.with_name("r.yaml"), text) as made:
            yield made, engine


async def served(folder: Path, form: str, *scripts: Any) -> Path:
    """The log of a gateway that got a request a script, two that it refuses, and one on no path of its own."""
    path = folder / "access.log"
    async with serving(path, form, *scripts) as (made, _):
        for number in range(len(scripts)):
            await made.chat(headers={"x-request-id": f"r{number}", "x-session-id": "s p"})
        await made.client.post("/v1/chat/completions", content=b"{")
        await made.client.get("/v1/chat/completions")
        await made.get("/healthz")
    return path


async def test_a_request_leaves_one_line_of_json(tmp_path: Path) -> None:
    """Who, where, how long, how many bytes and tokens, beside the forecast; a refused one too."""
    path = await served(tmp_path, "json", [stream("a", "b", usage=USAGE)])
    one, bad, wrong = lines(path)
    assert one["client"].startswith("127.0.0.1:")
    assert datetime.fromisoformat(one["time"]).tzinfo is not None
    facts = {
        "access_log": 1, "path": "/v1/chat/completions", "status": 200, "termination": "--", "outcome": "served",
        "reason": None, "request_id": "r0", "session": "s p", "model": "m", "slo_class": "default", "stream": True,
        "backend": "a", "attempts": 1, "held_ms": 0.0, "ttft_slo_ms": 60_000.0, "slo_met": True, "slo_source": "class",
        "prompt_tokens": 12, "output_tokens": 2,
    }  # fmt: skip
    assert {name: one[name] for name in facts} == facts
    assert one["e2e_ms"] >= one["ttft_ms"] >= one["first_token_ms"] > 0.0
    assert one["predicted_ttft_ms"] > 0.0
    assert one["request_bytes"] == len(b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}')
    assert "hello" not in path.read_text()
    for each, status in ((bad, 400), (wrong, 405)):
        assert (each["path"], each["status"], each["termination"]) == ("/v1/chat/completions", status, "PR")
        assert each["client"].startswith("127.0.0.1:")


async def test_bytes_of_a_reply_are_those_that_were_sent(tmp_path: Path) -> None:
    """Of a stream, of a whole reply, of an error of the engine's."""
    streamed = stream("a", "b")
    body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}]}).encode()
    path = tmp_path / "access.log"
    error = reply(b'{"error": {"message": "bad"}}', 400)
    async with serving(path, "json", [streamed], [reply(body)], [error]) as (made, _):
        for stream_ in (True, False, False):
            await made.chat(body={"stream": stream_})
    first, second, third = lines(path)
    assert first["reply_bytes"] == len(streamed.partition(b"\r\n\r\n")[2])
    assert second["reply_bytes"] == len(body)
    assert (third["reply_bytes"], third["status"], third["termination"]) == (29, 400, "PH")


async def test_a_request_leaves_one_line_of_text(tmp_path: Path) -> None:
    """The same for people: what stands first first, and nothing that a client sends can begin another line."""
    path = await served(tmp_path, "text", [stream("a")])
    one, bad, _ = path.read_text().splitlines()
    assert re.match(r"2\S+Z 127\.0\.0\.1:\d+ /v1/chat/completions 200 -- router=", one)
    for part in (' session="s p" ', " model=m ", " backend=a ", " attempts=1 ", " slo_met=yes ", " stream=yes "):
        assert part in one
    assert re.match(r"2\S+Z 127\.0\.0\.1:\d+ /v1/chat/completions 400 PR router=\S+ outcome=rejected$", bad)


async def test_the_simulator_reads_the_log_as_a_trace(tmp_path: Path) -> None:
    """With what was served, and how many were not."""
    path = await served(tmp_path, "json", [stream("a", "b", usage=USAGE)], [stream("a", usage=USAGE)])
    reading = read_trace(path)
    assert reading.format == "access log"
    assert [(each.prompt_tokens, each.output_tokens, each.model) for each in reading.entries] == [
        (12, 2, "m"), (12, 2, "m"),
    ]  # fmt: skip
    assert reading.entries[0].slo is not None
    assert reading.entries[0].slo.ttft_s == 60.0
    assert reading.left_out == {"were not served, so that the length of their reply is not known": 2}


async def test_whether_another_model_might_serve_a_request_is_logged(tmp_path: Path) -> None:
    """A replay of the log falls back where the gateway might have; what says nothing of it is left to the rules."""
    path = tmp_path / "access.log"
    async with serving(path, "json", [stream("a", usage=USAGE)]) as (made, _):
        for headers in ({"x-headroom-fallback": "deny"}, {"x-headroom-fallback": "allow"}, {}):
            await made.chat(headers=headers)
    assert [each["fallback"] for each in lines(path)] == ["deny", "allow", None]
    assert [each.fallback for each in read_trace(path).entries] == ["deny", "allow", ""]


async def test_a_client_that_leaves_and_an_engine_that_breaks_end_differently(tmp_path: Path) -> None:
    """By the letters that HAProxy has for it."""
    path = tmp_path / "access.log"
    begun = stream("a", "b", "c")[:-60]
    async with serving(path, "json", [begun, Act.UNTIL_LEFT], [begun, Act.RESET]) as (made, engine):
        async with made.client.stream("POST", "/v1/chat/completions", json=_chat()) as leaving:
            await anext(leaving.aiter_bytes())
        await until(lambda: engine.left == 1)
        broken = await made.chat()
    assert b"error" in broken.content
    assert [line["termination"] for line in lines(path)] == ["CD", "SD"]


def _chat() -> dict[str, Any]:
    return {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("outcome", "reason", "letters"),
    [
        (EndState.SERVED, None, "--"),
        (EndState.LEFT, None, "CH"),
        (EndState.REFUSED, Reason.SATURATED, "PH"),
        (EndState.REFUSED, Reason.FIRST_BYTE_LATE, "SH"),
    ],
)
def test_termination_states_who_ended_it_and_when(outcome: EndState, reason: Reason | None, letters: str) -> None:
    """The records of these were sent and got no token, unless served."""
    assert termination(account(outcome, reason)) == letters


def test_lines_that_have_no_room_are_counted(tmp_path: Path) -> None:
    """A full pipe behind the log: the observer goes on."""
    reader, writer = os.pipe()
    sink = LineSink(writer, at_once=True, lines_max=1)
    log = AccessLog(sink, "json", "r", lambda: 10.0, lambda: 1_000.0)
    for _ in range(500):
        log.ended(RequestLog(account(), "/v1/completions", "w", True, 200, 0, 0.0, 0.0))
    assert log.dropped > 0
    os.set_blocking(reader, False)
    assert json.loads(os.read(reader, 1 << 16).splitlines()[0])["time"] == "1970-01-01T00:16:30.000Z"
    os.close(reader)  # ends the thread's wait
    log.close()
    os.close(writer)


def test_the_process_log_as_json_has_its_exception() -> None:
    """One object a line, whatever stands in the message."""
    try:
        raise ValueError("first\nsecond")  # noqa: TRY301 - to be logged
    except ValueError as error:
        record = logging.LogRecord(
            "headroom", logging.ERROR, "", 0, "it\nfailed: %s", ("x",), (ValueError, error, None)
        )
    line = JsonFormatter("3").format(record)
    assert "\n" not in line
    plain = json.loads(line)
    assert (plain["level"], plain["logger"], plain["message"]) == ("error", "headroom", "it\nfailed: x")
    assert plain["worker"] == "3"
    assert "ValueError: first\nsecond" in plain["exception"]


def test_the_process_log_goes_through_a_sink(tmp_path: Path) -> None:
    """And flushes as logging's own shutdown asks it to."""
    path = tmp_path / "log"
    handler = SinkHandler(LineSink(path, at_once=True))
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.handle(logging.LogRecord("headroom", logging.INFO, "", 0, "line", (), None))
    handler.flush()
    assert path.read_bytes() == b"line\n"
    handler.close()


async def test_workers_log_as_the_config_says(tmp_path: Path) -> None:
    """Access lines on standard output, their own log as JSON on standard error; nothing is lost at the end."""
    path, port = tmp_path / "r.yaml", free_port()
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages)).replace("port: 0", f"port: {port}, workers: 2")
        write(path, text + "log: {access: json, format: json}\n")
        async with (
            command("serve", "--config", str(path)) as running,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client,
        ):

            async def ready() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.HTTPError:
                    return False

            await until_async(ready)
            assert (await client.post("/v1/chat/completions", json=_chat())).status_code == 200
            running.send_signal(signal.SIGTERM)
            out, err = await running.communicate()
    (line,) = [json.loads(each) for each in out.splitlines()]
    assert (line["outcome"], line["status"]) == ("served", 200)
    logged = [json.loads(each) for each in err.splitlines()]
    assert any(each["message"].startswith("router ") for each in logged)
    assert {"0", "1"} & {each.get("worker") for each in logged}
    assert line["router"].endswith((".w0", ".w1"))


def test_a_bare_off_is_off(tmp_path: Path) -> None:
    """Which YAML reads as false; and an unknown form is refused by its place."""
    path = tmp_path / "r.yaml"
    good = 'backends: [{name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}]\n'
    write(path, good + "log: {access: off}\n")
    assert plan_file(path).settings.log.access == "off"
    write(path, good + "log: {access: xml}\n")
    with pytest.raises(ConfigError, match=r"log\.access"):
        plan_file(path)
