"""Envoy and the picker restarted, frozen and reloaded under load, and clients that leave in each phase of a request.

Whatever happens: every request that the picker has taken has one end in its record, nothing is in flight once all is
over, no reply that was cut ends as if it were whole, and what comes after is served.
"""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.local import catalog
from tests.real import picker
from tests.real.picker import CONTROL_PORT, ENVOY_PORT, Parts
from tests.real.world import MODEL, long_chat, metric
from tests.waiting import until_async

URL = f"http://{catalog.HOST}:{ENVOY_PORT}/v1/chat/completions"
METRICS = f"http://{catalog.HOST}:{CONTROL_PORT}/metrics"
REQUESTS, BETWEEN_S, TOKENS = 50, 0.1, 60
FROZEN_S = 5.0
HOSTS = ("localhost", "127.0.0.1")
END = b"data: [DONE]\n\n"
WHOLE, CUT, SHORT = "whole", "cut", "short"


@dataclass
class World:
    """Two engines, picker and Envoy."""

    parts: Parts
    folder: Path

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process."""
        self.parts.running[name].signal_group(number)

    async def start_again(self, name: str) -> None:
        """A process that has ended, ready."""
        await asyncio.to_thread(self.parts.start_again, name)

    async def idle(self) -> bool:
        """Whether the picker has nothing in flight."""
        return await metric(METRICS, "headroom_requests_in_flight") == 0

    async def ends(self) -> Counter[str]:
        """How the requests ended that the picker has taken since it started, once it has nothing in flight; by its
        record, which has one end for each.
        """
        await until_async(self.idle)
        await asyncio.to_thread(self.parts.running["picker"].stop)
        arrived, ends = list[str](), list[tuple[str, str]]()
        for line in (self.folder / "record.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event.get("event") == "arrived":
                arrived.append(event["request"]["id"])
            records = [each for each in event.get("answer", ()) if each["command"] == "RequestRecord"]
            ends += [(each["request_id"], each["outcome"]) for each in records]
        assert sorted(arrived) == sorted(name for name, _ in ends)
        return Counter(outcome for _, outcome in ends)


ENGINES = [("a", "h100", 8321), ("b", "h100", 8322)]


def config_of(tmp_path: Path) -> dict[str, Any]:
    """With a record of what the picker decides."""
    return {
        "scrape": {"period_s": 0.2, "timeout_s": 2.0},
        "record": {"file": str(tmp_path / "record.jsonl")},
        "reload": {"validation": {"enabled": False}},
        "backends": [
            {"name": name, "url": f"http://{host}:{port}", "models": [MODEL], "card": card, "model": "llama-3-8b"}
            for (name, card, port), host in zip(ENGINES, HOSTS, strict=True)
        ],
        "policy": {"guard": {"budget_ms": 1000}},
    }


def emulated() -> list[catalog.Engine]:
    """Both engines."""
    return [picker.emulated(name, card, port, MODEL) for name, card, port in ENGINES]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """As users are shown it."""
    parts = picker.picker(tmp_path, config_of(tmp_path)), picker.envoy(tmp_path)
    with picker.up(picker.home(), *emulated(), *parts) as made:
        yield World(made, tmp_path)


async def ask(client: httpx.AsyncClient, after_s: float = 0.0) -> str:
    """One streamed request and what became of it: its status where that is no success."""
    await asyncio.sleep(after_s)
    try:
        async with client.stream("POST", URL, json=long_chat(tokens=TOKENS)) as answer:
            body = await answer.aread()
    except httpx.HTTPError:
        return CUT
    if answer.status_code != httpx.codes.OK:
        return str(answer.status_code)
    if body.endswith(END):
        return WHOLE
    return "error" if b'"error"' in body else SHORT


async def while_busy(act: Callable[[], Awaitable[None]]) -> Counter[str]:
    """A load of streams, and this in the middle of it."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=60.0, limits=limits) as client:
        asked = [asyncio.create_task(ask(client, number * BETWEEN_S)) for number in range(REQUESTS)]
        await asyncio.sleep(REQUESTS * BETWEEN_S / 3)
        await act()
        found = Counter(await asyncio.gather(*asked))
        assert found[SHORT] == 0, found
        assert await ask(client) == WHOLE
    return found


async def test_a_reload_under_load_costs_no_request(world: World) -> None:
    """Not one, though a name has to be looked up for it."""

    async def reload() -> None:
        reloads = {"name": "headroom_config_reloads_total", "result": "ok"}
        before = await metric(METRICS, **reloads)
        path = world.folder / "picker.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        for given, old, new in zip(config["backends"], HOSTS, reversed(HOSTS), strict=True):
            given["url"] = given["url"].replace(old, new)
        config["slo_classes"] = {"default": {"ttft_ms": 30_000}}
        path.write_text(yaml.safe_dump(config), encoding="utf-8")

        async def taken() -> bool:
            return await metric(METRICS, **reloads) > before

        await until_async(taken)

    assert await while_busy(reload) == {WHOLE: REQUESTS}
    assert await world.ends() == {"served": REQUESTS + 1}


async def test_a_picker_that_is_frozen_for_a_while_costs_no_request(world: World) -> None:
    """They wait for it; what the proxy could not deliver meanwhile is no engine's silence."""

    async def freeze() -> None:
        world.kill("picker", signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        world.kill("picker", signal.SIGCONT)

    assert await while_busy(freeze) == {WHOLE: REQUESTS}
    assert await metric(METRICS, "headroom_backend_failures_total", 0.0) == 0
    assert await world.ends() == {"served": REQUESTS + 1}


async def test_an_envoy_that_is_killed_leaves_nothing_in_flight(world: World) -> None:
    """Its clients' requests ended as those of clients who left."""

    async def restart() -> None:
        world.kill("envoy")
        await world.start_again("envoy")

    found = await while_busy(restart)
    ends = await world.ends()
    assert set(ends) <= {"served", "left"}
    assert ends["served"] >= found[WHOLE]
    assert ends["left"] > 0


async def test_a_picker_that_is_stopped_lets_streams_end(world: World) -> None:
    """Those that come until it is there again get an error."""

    async def restart() -> None:
        world.kill("picker", signal.SIGTERM)
        await asyncio.to_thread(world.parts.running["picker"].process.wait, 60.0)
        await world.start_again("picker")

    found = await while_busy(restart)
    assert found[CUT] == found["error"] == 0, found
    assert found[WHOLE] >= 1
    assert set(await world.ends()) <= {"served"}


async def test_a_picker_that_is_killed_cuts_streams_and_no_more(world: World) -> None:
    """Nothing ends as if it were whole, and the next picker begins with nothing in flight."""

    async def restart() -> None:
        world.kill("picker")
        await asyncio.to_thread(world.parts.running["picker"].process.wait, 60.0)
        (world.folder / "record.jsonl").unlink(missing_ok=True)
        await world.start_again("picker")

    await while_busy(restart)
    assert set(await world.ends()) <= {"served", "left"}


async def _leave(*pieces: bytes, until: bytes = b"") -> None:
    """Send this, read until that has come, and go."""
    reader, writer = await asyncio.open_connection(catalog.HOST, ENVOY_PORT, limit=2**24)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if until:
            await reader.readuntil(until)
    finally:
        writer.transport.abort()


async def test_clients_that_leave_in_each_phase_leave_nothing(world: World) -> None:
    """In the middle of the body, before the first token, after the head, in the middle of the reply, at its end."""
    body = json.dumps(long_chat("word " * 20_000, tokens=400)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    for _ in range(5):
        await asyncio.gather(
            _leave(head),
            _leave(head, body[:1000]),
            _leave(head, body),
            _leave(head, body, until=b"\r\n\r\n"),
            _leave(head, body, until=b"data: "),
            _leave(head, body, until=END),
        )
    async with httpx.AsyncClient(timeout=60.0) as client:
        assert await ask(client) == WHOLE
    ends = await world.ends()
    assert set(ends) <= {"served", "left"}
    assert ends["served"] >= 1
    assert ends["left"] >= 5


async def test_an_engine_that_is_gone_costs_no_client_anything_where_the_proxy_has_a_fallback(tmp_path: Path) -> None:
    """Envoy goes on to the next endpoint, and the picker counts the request there and the fault here."""
    config = {**config_of(tmp_path), "epp": {"fallbacks": 1}, "scrape": {"period_s": 30.0, "timeout_s": 2.0}}
    config["policy"] = {**config["policy"], "routing": {"name": "round_robin"}}
    envoy = picker.envoy(tmp_path, [port for _, _, port in ENGINES])
    with picker.up(picker.home(), *emulated(), picker.picker(tmp_path, config), envoy) as parts:
        world = World(parts, tmp_path)
        world.kill("a")
        async with httpx.AsyncClient(timeout=60.0) as client:
            assert [await ask(client) for _ in range(12)] == [WHOLE] * 12
        assert await metric(METRICS, "headroom_backend_failures_total", backend="a") >= 1
        assert await metric(METRICS, "headroom_backend_failures_total", 0.0, backend="b") == 0
        assert await world.ends() == {"served": 12}
