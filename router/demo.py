"""What ``make run`` shows: the gateway in front of three emulated engines, and the way to try it.

Believes: ``simulator serve`` is an engine as far as anyone on the wire can tell. Must not know anything of it but its
command line: the router never imports the simulator. The engines are started before the gateway is imported, so that
all four processes import at once.
"""

import asyncio
import json
import logging
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from errno import EADDRINUSE
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from router.event_loop import on_signal
from router.search_path import environment, module_command
from router.version import build

if TYPE_CHECKING:
    from router.gateway.app import Gateway

READY_WITHIN_S: Final = 60.0
END_WITHIN_S: Final = 5.0

# name in demo.yaml -> what the emulated engine is
ENGINES: Final[Mapping[str, tuple[str, ...]]] = {
    "l20": ("--card", "l20", "--protocol", "vllm", "--model-name", "demo", "--max-num-seqs", "64"),
    "a10x2": ("--card", "a10", "--tp", "2", "--protocol", "vllm", "--model-name", "demo", "--max-num-seqs", "64"),
    "h20": ("--card", "h20", "--protocol", "triton", "--model-name", "ensemble", "--max-num-seqs", "128"),
}


async def run(port: int | None, default_port: int, speed: float) -> None:
    """Start engines and gateway, say how to try them, serve until a signal, end all of it.

    ``port``: None for the first free one from *default_port* on. Raises OSError when the one given is in use.
    """
    listening = _first_free(default_port) if port is None else port
    if port is None and listening != default_port:
        _say(f"port {default_port} is in use: taking {listening}; choose another with --port")
    elif not _is_free(listening):
        raise OSError(EADDRINUSE, f"port {listening} is in use; choose another with --port")
    ports = {name: free_port() for name in ENGINES}
    _say(f"starting three emulated engines ({build()})")
    with tempfile.TemporaryDirectory(prefix="headroom-demo-") as folder:
        async with _engines(ports, speed) as engines:
            await _serve(_config(Path(folder, "demo.yaml"), listening, ports), engines)
    _say("ended: gateway and engines are gone")


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _first_free(port: int) -> int:
    return next((each for each in range(port, port + 100) if _is_free(each)), 0) or free_port()


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


@asynccontextmanager
async def _engines(ports: Mapping[str, int], speed: float) -> AsyncIterator[list[Process]]:
    """All of them, each a process that ends with the context. A signal while they are started is taken afterwards."""
    engines: list[Process] = []
    came: list[int] = []
    try:
        with on_signal(came.append):
            for name in ENGINES:
                engines.append(await _engine(name, ports[name], speed))  # noqa: PERF401 - those started are to be ended
        if came:
            signal.raise_signal(came[0])
            await asyncio.sleep(0)
        yield engines
    finally:
        with on_signal(lambda _: _kill(engines)):
            await _end(engines)


async def _engine(name: str, port: int, speed: float) -> Process:
    """One emulated engine, in its own session: Ctrl-C reaches the gateway alone, which lets streams end first. Its
    standard input is a pipe from this process: should that be killed, the engine ends by itself.
    """
    options = (*ENGINES[name], "--model", "qwen2.5-7b", "--port", str(port), "--speedup", str(speed), "--until-eof")
    command = module_command("simulator", "serve", *options)
    return await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=DEVNULL, env=environment(), start_new_session=True
    )


async def _serve(config: Path, engines: list[Process]) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    from router.gateway.app import Gateway  # noqa: PLC0415 - while the engines import too, see above
    from router.gateway.config.plan import plan_file  # noqa: PLC0415 - the same
    from router.gateway.serving import serve  # noqa: PLC0415 - the same

    gateway = Gateway(plan_file(config), config)
    watching = asyncio.create_task(_announce(gateway, engines))
    try:
        await serve(gateway)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _announce(gateway: "Gateway", engines: list[Process]) -> None:
    """Say how to try it once all engines answer; say so if one does not."""
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            while not _all_up(gateway):  # noqa: ASYNC110 - polls other processes
                await asyncio.sleep(0.05)
    except TimeoutError:
        ended = [engine.returncode for engine in engines if engine.returncode is not None]
        _say(f"not every engine came up within {READY_WITHIN_S:g} s (exit statuses: {ended})", "31")
        return
    _say_how(gateway)
    logging.getLogger("headroom").setLevel(logging.INFO)  # what becomes of an edited config


def _all_up(gateway: "Gateway") -> bool:
    watches = gateway.engines.watches.values()
    return bool(watches) and all(watch.up for watch in watches)


def _say_how(gateway: "Gateway") -> None:
    listen = gateway.plan.settings.listen
    url = f"http://{listen.host}:{listen.port}"
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    _say(f"\nHeadroom is up at {url} with {len(gateway.plan.backends)} engines:", "1;32")
    for backend in gateway.plan.backends:
        facts = backend.labels
        _say(f"  {backend.name:<12} {facts['model']} on {facts['tp']} x {facts['card']}")
    _say("\nstream a chat completion:")
    _say(f"  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\", "36")
    _say(f"    -d '{json.dumps(body)}'", "36")
    _say(f"\nthe fleet, live:   {url}/")
    _say(f"metrics:           {url}/metrics")
    _say(f"config (reloads):  {gateway.path}")
    _say("\nCtrl-C ends all of it.")


def _say(line: str, style: str = "") -> None:
    """A line on stdout, in a terminal with this style (ANSI)."""
    styled = f"\033[{style}m{line}\033[0m" if style and sys.stdout.isatty() else line
    sys.stdout.write(f"{styled}\n")
    sys.stdout.flush()


async def _end(engines: list[Process]) -> None:
    """Ask every engine to end, then make it."""
    for engine in engines:
        if engine.returncode is None:
            with suppress(ProcessLookupError):
                engine.terminate()
    try:
        async with asyncio.timeout(END_WITHIN_S):
            for engine in engines:
                await engine.wait()
    except TimeoutError:
        _kill(engines)
        for engine in engines:
            await engine.wait()


def _kill(engines: list[Process]) -> None:
    for engine in engines:
        if engine.returncode is None:
            with suppress(ProcessLookupError):
                engine.kill()
