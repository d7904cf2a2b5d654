"""Real engines and a real gateway, as the tests use them: engines that come back when a test has killed them.

Believes: deploy/local. Must not know anything of the gateway but its command line, its config and its wire.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import yaml

from deploy.local import catalog, processes
from tests.waiting import until_async

ROOT = Path(__file__).resolve().parents[2]
MODEL = "tiny"

CONFIG = ROOT / "deploy/local/router.yaml"
BACKENDS: dict[str, dict[str, Any]] = {
    given["name"]: given for given in yaml.safe_load(CONFIG.read_text())["backends"]
}  # each bears its engine's name


def backend(name: str, **changed: Any) -> dict[str, Any]:
    """The backend of that engine, as the config that users are shown has it."""
    return {**BACKENDS[name], **changed}


@dataclass
class Engines:
    """The engines of a test run, started when first asked for and again when a test has killed them."""

    home: Path
    running: dict[str, processes.Running] = field(default_factory=dict)

    def ensure(self, *names: str) -> None:
        """Have these ready; those that must be started start side by side."""
        started = []
        for name in names:
            now = self.running.get(name)
            if now is None or not now.alive or not processes.answers(now.engine):
                self.stop(name)
                self.running[name] = processes.start(catalog.ENGINES[name], self.home)
                started.append(self.running[name])
        processes.wait_ready(started)

    def stop(self, *names: str) -> None:
        """End these, orphans included."""
        for name in names:
            if name in self.running:
                self.running.pop(name).stop()

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the engine's first process, the one that serves."""
        self.running[name].process.send_signal(number)

    def send_children(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the processes that compute."""
        for pid in processes.descendants(self.running[name].process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass
class Gateway:
    """A gateway in a process of its own, on a port of its own."""

    config: Path
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> openai.AsyncOpenAI:
        """The official client, without its own retries: what fails shall be seen."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=60.0)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of *name* with these labels on the gateway's own page."""
        return await metric(f"{self.url}/metrics", name, **labels)

    def stop(self) -> int:
        """End it as an operator would; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _spawn(config: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "router", "serve", "--config", str(config)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
    processes.set_affinity(process.pid, processes.RIM_CPUS)
    return process


@contextlib.asynccontextmanager
async def serving(folder: Path, *backends: dict[str, Any], **sections: Any) -> AsyncIterator[Gateway]:
    """`python -m router serve` with this config, ready, on the cores that are not the engines'."""
    port = _free_port()
    config = folder / f"router-{port}.yaml"
    fast = {"period_s": 0.2, "timeout_s": 2.0}
    settings = {"listen": {"port": port}, "scrape": fast, "backends": list(backends), **sections}
    config.write_text(yaml.safe_dump(settings))
    log = config.with_suffix(".log")
    gateway = Gateway(config, port, _spawn(config, log), log)
    try:
        await until_async(lambda: _ready(gateway))
        yield gateway
    finally:
        status = gateway.stop()
        said = log.read_text(errors="replace")
        print(said)  # noqa: T201 - pytest shows it with a failure
    assert status == 0
    assert "Traceback" not in said


async def _ready(gateway: Gateway) -> bool:
    assert gateway.process.poll() is None, gateway.log.read_text(errors="replace")
    async with httpx.AsyncClient() as client:
        with contextlib.suppress(httpx.HTTPError):
            return (await client.get(f"{gateway.url}/readyz")).is_success
    return False


async def metric(url: str, name: str, default: float | None = None, **labels: str) -> float:
    """The sum of the samples of *name* with these labels on a page of Prometheus text; *default* when there is none."""
    async with httpx.AsyncClient(timeout=10.0) as client:
        return samples_sum((await client.get(url)).text, name, default, **labels)


def samples_sum(page: str, name: str, default: float | None = None, **labels: str) -> float:
    """The same, of a page that was read."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    found = [
        float(line.rsplit(" ", 1)[1])
        for line in page.splitlines()
        if line.startswith((f"{name} ", f"{name}{{")) and all(label in line for label in wanted)
    ]
    if not found and default is not None:
        return default
    assert found, f"no {name} with {labels} on the page"
    return sum(found)


def connections_to(port: int) -> int:
    """Established connections of this machine that an engine on *port* has accepted (from /proc/net/tcp)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def text_of(client: openai.AsyncOpenAI, prompt: str = "Say something.", **more: Any) -> str:
    """A streamed chat completion, to its end; every chunk's text."""
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 16, **more}
    stream = await client.chat.completions.create(messages=[{"role": "user", "content": prompt}], stream=True, **asked)
    parts = []
    ended = None
    async for chunk in stream:
        for choice in chunk.choices:
            parts.append(choice.delta.content or "")
            ended = choice.finish_reason or ended
    assert ended in {"stop", "length"}
    return "".join(parts)


async def events_of(url: str, body: dict[str, Any]) -> AsyncGenerator[str, None]:
    """The payloads of a streamed chat completion's events, as they come; ends with the body or raises httpx's error."""
    async with (
        httpx.AsyncClient(timeout=60.0) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield line[6:]


def long_chat(prompt: str = "Go on and on.", tokens: int = 1_500) -> dict[str, Any]:
    """The body of a chat that takes *tokens* tokens, whatever the model would rather say."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": True}
