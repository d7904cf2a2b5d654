"""The picker behind the real Envoy, before two emulated engines of unequal cards."""

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from deploy.local import catalog
from tests.real import picker
from tests.real.picker import CONTROL_PORT, ENVOY_PORT, Parts
from tests.real.world import MODEL, events_of, long_chat, metric, text_of
from tests.waiting import until_async

URL, CONTROL = f"http://{catalog.HOST}:{ENVOY_PORT}", f"http://{catalog.HOST}:{CONTROL_PORT}"
FAST, SLOW = ("fast", "h100", 8301), ("slow", "l4", 8302)
TTFT_S, TPOT_S = 1.5, 0.1
CONFIG = {
    "scrape": {"period_s": 0.2, "timeout_s": 2.0},
    "backends": [
        {"name": name, "url": f"http://{catalog.HOST}:{port}", "models": [MODEL], "card": card, "model": "llama-3-8b"}
        for name, card, port in (FAST, SLOW)
    ],
    "slo_classes": {"default": {"ttft_ms": TTFT_S * 1e3, "tpot_ms": TPOT_S * 1e3}},
    "policy": {"guard": {"budget_ms": 1000}},  # a busy machine is no fault of the policy
}


@pytest.fixture(scope="module")
def home() -> Path:
    """Where Envoy is installed."""
    return picker.home()


@pytest.fixture(scope="module")
def parts(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """Engines, picker and Envoy."""
    folder = tmp_path_factory.mktemp("epp")
    engines = [picker.emulated(name, card, port, MODEL) for name, card, port in (FAST, SLOW)]
    with picker.up(home, *engines, picker.picker(folder, CONFIG), picker.envoy(folder)) as made:
        yield made


@pytest.mark.usefixtures("parts")
async def test_the_official_client_streams_through_envoy() -> None:
    """And sees no usage that it did not ask for, while the picker learns it."""
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="any", max_retries=0, timeout=60.0) as client:
        assert await text_of(client)
    async with httpx.AsyncClient(timeout=60.0) as plain:
        body = {**long_chat(tokens=3), "max_tokens": 3}
        before = await metric(f"{CONTROL}/metrics", "headroom_tokens_total", 0.0, kind="output")
        answer = await plain.post(f"{URL}/v1/chat/completions", json=body)
        assert answer.headers["x-headroom-backend"] in {"fast", "slow"}
        assert "usage" not in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
    assert await metric(f"{CONTROL}/metrics", "headroom_tokens_total", kind="output") == before + 3


@pytest.mark.usefixtures("parts")
async def test_a_clients_own_destination_is_replaced() -> None:
    """Else anybody could have Envoy send requests anywhere."""
    async with httpx.AsyncClient(timeout=60.0) as client:
        answer = await client.post(
            f"{URL}/v1/chat/completions",
            json={**long_chat(tokens=3), "max_tokens": 3},
            headers={"x-gateway-destination-endpoint": f"{catalog.HOST}:1"},
        )
        assert answer.status_code == 200


@pytest.mark.usefixtures("parts")
async def test_refusals_and_other_paths() -> None:
    """A refusal is the picker's own; a list of models an engine's; a large body reaches one whole."""
    async with httpx.AsyncClient(timeout=60.0) as client:
        refused = await client.post(f"{URL}/v1/chat/completions", json={**long_chat(), "model": "other"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert refused.headers["content-type"] == "application/json"
        models = await client.get(f"{URL}/v1/models")
        assert models.json()["data"][0]["id"] == MODEL
        body = {**long_chat("word " * 60_000, tokens=3), "max_tokens": 3, "stream": False}
        large = await client.post(f"{URL}/v1/chat/completions", json=body)
        assert large.json()["usage"]["completion_tokens"] == 3


@pytest.mark.usefixtures("parts")
async def test_a_client_that_leaves_is_seen() -> None:
    """What it had in flight is released."""

    async def idle() -> bool:
        return await metric(f"{CONTROL}/metrics", "headroom_requests_in_flight") == 0

    before = await metric(f"{CONTROL}/metrics", "headroom_requests_total", 0.0, outcome="left")
    events = events_of(URL, long_chat())
    for _ in range(3):
        await anext(events)
    await events.aclose()
    await until_async(idle)
    assert await metric(f"{CONTROL}/metrics", "headroom_requests_total", outcome="left") == before + 1


async def test_an_engine_that_dies_costs_no_client_anything(parts: Parts) -> None:
    """Envoy's own error reaches none: the picker sends the request to the engine that is left, and that reply takes its
    place. Runs last: the engine is not started again.
    """
    async with httpx.AsyncClient(timeout=60.0) as client:
        parts.running["slow"].signal_group(signal.SIGKILL)
        for stream in (True, False) * 6:
            body = {**long_chat(tokens=3), "max_tokens": 3, "stream": stream}
            answer = await client.post(f"{URL}/v1/chat/completions", json=body)
            assert answer.status_code == 200
            assert answer.headers["x-headroom-backend"] == "fast"
            assert answer.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
            assert answer.text.endswith("data: [DONE]\n\n") if stream else answer.json()["choices"]
