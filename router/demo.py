"""What ``make run`` shows: the gateway in front of three emulated engines, and the way to try it.

Believes: ``python -m simulator serve`` is an engine as far as anyone on the wire can tell. Must not know anything of it
but its command line: the router never imports the simulator.
"""

import asyncio
import json
import logging
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from rich.console import Console

from router.gateway.app import Gateway
from router.gateway.config.plan import plan_file
from router.gateway.serving import serve

READY_WITHIN_S: Final = 60.0
END_WITHIN_S: Final = 5.0

# name in demo.yaml -> what the emulated engine is
ENGINES: Final[Mapping[str, tuple[str, ...]]] = {
    "l20": ("--card", "l20", "--protocol", "vllm", "--model-name", "demo", "--max-num-seqs", "64"),
    "a10x2": ("--card", "a10", "--tp", "2", "--protocol", "vllm", "--model-name", "demo", "--max-num-seqs", "64"),
    "h20": ("--card", "h20", "--protocol", "triton", "--model-name", "ensemble", "--max-num-seqs", "128"),
}


async def run(port: int, speed: float) -> None:
    """Start engines and gateway, say how to try them, serve until Ctrl-C, end all of it."""
    console = Console(highlight=False, soft_wrap=True)
    ports = {name: free_port() for name in ENGINES}
    listening = port if _is_free(port) else free_port()
    if listening != port:
        console.print(f"[yellow]port {port} is in use, taking {listening}[/]")
    console.print("starting three emulated engines ...")
    with tempfile.TemporaryDirectory(prefix="headroom-demo-") as folder:
        config = _config(Path(folder, "demo.yaml"), listening, ports)
        engines = [await _engine(name, ports[name], speed) for name in ENGINES]
        try:
            await _serve(config, engines, console)
        finally:
            await _end(engines)
    console.print("ended: gateway and engines are gone")


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _config(path: Path, port: int, ports: Mapping[str, int]) -> Path:
    template = Template(files("router").joinpath("demo.yaml").read_text(encoding="utf-8"))
    path.write_text(template.substitute(port=port, **ports), encoding="utf-8")
    return path


async def _engine(name: str, port: int, speed: float) -> Process:
    """One emulated engine, in its own session: Ctrl-C reaches the gateway alone, which lets streams end first."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulator", "serve", *ENGINES[name], "--model", "qwen2.5-7b",
        "--port", str(port), "--speedup", str(speed),
        stdout=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


async def _serve(config: Path, engines: list[Process], console: Console) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    gateway = Gateway(plan_file(config), config)
    watching = asyncio.create_task(_announce(gateway, engines, console))
    try:
        await serve(gateway)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _announce(gateway: Gateway, engines: list[Process], console: Console) -> None:
    """Say how to try it once all engines answer; say so if one does not."""
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            while not _all_up(gateway):  # noqa: ASYNC110 - polls other processes
                await asyncio.sleep(0.05)
    except TimeoutError:
        ended = [engine.returncode for engine in engines if engine.returncode is not None]
        console.print(f"[red]not every engine came up within {READY_WITHIN_S:g} s (exit statuses: {ended})[/]")
        return
    _say_how(gateway, console)


def _all_up(gateway: Gateway) -> bool:
    watches = gateway.engines.watches.values()
    return bool(watches) and all(watch.up for watch in watches)


def _say_how(gateway: Gateway, console: Console) -> None:
    listen = gateway.plan.settings.listen
    url = f"http://{listen.host}:{listen.port}"
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    console.print(f"\n[bold green]Headroom is up[/] at [bold]{url}[/] before {len(gateway.plan.backends)} engines:")
    for backend in gateway.plan.backends:
        facts = backend.labels
        console.print(f"  {backend.name:<12} {facts['model']} on {facts['tp']} x {facts['card']}")
    console.print("\nstream a chat completion:")
    console.print(
        f"  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\", style="cyan", markup=False
    )
    console.print(f"    -d '{json.dumps(body)}'", style="cyan", markup=False)
    console.print(f"\nthe fleet, live:   [bold]{url}/[/]")
    console.print(f"metrics:           {url}/metrics")
    console.print(f"config (reloads):  {gateway.path}")
    console.print("\nCtrl-C ends all of it.")


async def _end(engines: list[Process]) -> None:
    """Ask every engine to end, then make it."""
    for engine in engines:
        if engine.returncode is None:
            engine.terminate()
    for engine in engines:
        try:
            async with asyncio.timeout(END_WITHIN_S):
                await engine.wait()
        except TimeoutError:
            engine.kill()
            await engine.wait()
