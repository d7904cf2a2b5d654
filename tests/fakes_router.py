"""A whole router in the test's own loop: config file, server, control plane, engines under watch."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from router.gateway.app import Gateway
from router.gateway.config.plan import plan_file
from router.gateway.serving import server_of
from router.gateway.state import Store
from tests.fakes_wire import ScriptedEngine
from tests.pages import Pages
from tests.waiting import until

HEALTHY = {"/health": (200, b""), "/metrics": (200, b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n")}


def backend(name: str, engine: ScriptedEngine, pages: Pages, **more: Any) -> str:
    """One line of a config's backends: model m on an L4, streams from *engine*, health and metrics from *pages*."""
    facts = {"url": f"http://127.0.0.1:{engine.port}", "models": ["m"], "card": "l4", "model": "qwen3-4b"} | more
    facts |= {"health_url": f"{pages.url}/health", "metrics_url": f"{pages.url}/metrics"}
    return f"  - {{name: {name}, " + ", ".join(f"{key}: {_yaml(value)}" for key, value in facts.items()) + "}\n"


def _yaml(value: Any) -> str:
    return str(value).replace("'", "") if isinstance(value, list) else f'"{value}"' if ":" in str(value) else str(value)


def write(path: Path, text: str) -> None:
    """Put *text* where a router reads its config."""
    path.write_text(text, encoding="utf-8")


def config(*backends: str, more: str = "") -> str:
    """A config with these backends, on any free port, that asks engines often."""
    head = "listen: {port: 0, drain_s: 5}\nscrape: {period_s: 0.02, models_s: null}\nbackends:\n"
    return head + "".join(backends) + more


class Router:
    """A router that serves, and an HTTP client for its control plane."""

    def __init__(self, gateway: Gateway, port: int, client: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.port = port
        self.client = client

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.client.get(path, **more)

    async def chat(self, **more: Any) -> httpx.Response:
        """One streamed chat completion, read to its end."""
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "m", "stream": True, "messages": messages} | more.pop("body", {})
        return await self.client.post("/v1/chat/completions", json=body, **more)


@asynccontextmanager
async def router(
    path: Path,
    text: str,
    *,
    ready: bool = True,
    store: Store | None = None,
    clock: Callable[[], float] = monotonic,
) -> AsyncIterator[Router]:
    """The router of this config, written to *path*; with ``ready`` one that has an engine up."""
    write(path, text)
    gateway = Gateway(plan_file(path), path, clock, store=store)
    await gateway.start()
    server = server_of(gateway)
    serving = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started or serving.done())
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120.0, trust_env=False) as client:
            if ready:
                await until(lambda: gateway.ready)
            yield Router(gateway, port, client)
    finally:
        server.should_exit = True
        await serving
        await gateway.close()
