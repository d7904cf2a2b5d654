"""Headroom beside other gateways, in one interleaved run: `python -m tests.bench.side_by_side [--rounds 3]`.

CPU of each gateway's processes a streamed token and a short request, and the time to the first token, of streams that
begin all at once and of as many that begin one after the other; of this gateway with everything on (config, cards,
slo_headroom, metrics, accounting) and of whichever peers are installed: vllm-router, sglang-router, haproxy, nginx,
found on PATH or by HEADROOM_BENCH_VLLM_ROUTER and the like. The scripted engine and the load generator are C programs
in ../shared/bench, or where HEADROOM_BENCH_TOOLS says. Linux alone: CPU is read in /proc.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import sleep
from types import ModuleType
from typing import Any, Final

import yaml

from tests.redis_server import free_port

ROOT: Final = Path(__file__).parents[2]
TOOLS: Final = Path(os.environ.get("HEADROOM_BENCH_TOOLS", ROOT.parent / "shared" / "bench"))
KINDS: Final = ("token", "request", "spread")
UNITS: Final = {"token": "us_per_event", "request": "us_per_request", "spread": "us_per_event"}
ENGINE: Final = "the engine"  # asked without a gateway: the first token's time that is nobody's fault

HAPROXY: Final = """
global
  nbthread 1
  maxconn 4000
defaults
  mode http
  option http-no-delay
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  balance roundrobin
  server a 127.0.0.1:{a}
  server b 127.0.0.1:{b}
"""
NGINX: Final = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 10000; }}
http {{
  access_log off;
  client_body_temp_path {folder};
  proxy_temp_path {folder};
  fastcgi_temp_path {folder};
  uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  upstream b {{ server 127.0.0.1:{a}; server 127.0.0.1:{b}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://b;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      keepalive_requests 1000000;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Contender:
    """A gateway: what starts it, with ``{a}`` and ``{b}`` for the engines' ports, on its port by kind of load."""

    name: str
    command: str
    port: Mapping[str, int]


def tools() -> ModuleType:
    """The shared measuring program. FileNotFoundError says what is missing."""
    path = TOOLS / "gateway_cost.py"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: HEADROOM_BENCH_TOOLS names the folder of gateway_cost.py")
    if shutil.which("cc") is None:
        raise FileNotFoundError("no C compiler (cc) for the scripted engine and the load generator")
    spec = importlib.util.spec_from_file_location("gateway_cost", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(name: str) -> str | None:
    """Where a peer is, if it is anywhere."""
    return os.environ.get(f"HEADROOM_BENCH_{name.upper().replace('-', '_')}") or shutil.which(name)


def headroom(folder: Path, loads: Mapping[str, Any], routing: str = "slo_headroom") -> Contender:
    """This gateway with all on, and a config for each pair of engines."""
    port = free_port()
    for (a, b), *_ in loads.values():
        backends = [
            {"name": f"e{each}", "url": f"http://127.0.0.1:{each}", "models": ["m"]}
            | {"card": "h100-sxm", "model": "llama-3-8b", "seqs_max": 4096, "kv_tokens_max": 100_000_000}
            for each in (a, b)
        ]
        config = {
            "listen": {"port": port},
            "backends": backends,
            "slo_classes": {"default": {"ttft_ms": 30_000, "tpot_ms": 3_000}},
            "policy": {"routing": {"name": routing}},
        }
        (folder / f"{routing}-{a}-{b}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = f"exec {sys.executable} -m router serve --config {folder}/{routing}-{{a}}-{{b}}.yaml"
    return Contender("headroom", command, dict.fromkeys(loads, port))


def peers(folder: Path, loads: Mapping[str, Any]) -> Iterator[Contender | str]:
    """Those that are installed, and a line for each that is not."""
    for name, made in (("vllm-router", _rust), ("sglang-router", _rust), ("haproxy", _haproxy), ("nginx", _nginx)):
        where, port = program(name), free_port()
        if where is None:
            yield f"{name} is not installed (neither on PATH nor in HEADROOM_BENCH_{name.upper().replace('-', '_')})"
        else:
            yield Contender(name, made(where, port, folder, loads), dict.fromkeys(loads, port))


def _rust(where: str, port: int, folder: Path, loads: Mapping[str, Any]) -> str:
    launch = " launch" if "sglang" in Path(where).name or "smg" in Path(where).name else ""
    workers = "--worker-urls http://127.0.0.1:{a} http://127.0.0.1:{b}"
    metrics = f"--prometheus-port {free_port()}"
    return f"exec {where}{launch} --host 127.0.0.1 --port {port} {workers} --policy round_robin {metrics}"


def _haproxy(where: str, port: int, folder: Path, loads: Mapping[str, Any]) -> str:
    return f"exec {where} -db -f {_written(folder, 'haproxy', HAPROXY, port, loads)}"


def _nginx(where: str, port: int, folder: Path, loads: Mapping[str, Any]) -> str:
    return f"exec {where} -p {folder} -c {_written(folder, 'nginx', NGINX, port, loads)}"


def _written(folder: Path, name: str, text: str, port: int, loads: Mapping[str, Any]) -> str:
    for (a, b), *_ in loads.values():
        told = text.format(port=port, a=a, b=b, folder=folder)
        (folder / f"{name}-{a}-{b}.conf").write_text(told, encoding="utf-8")
    return f"{folder}/{name}-{{a}}-{{b}}.conf"


@contextmanager
def engines(binary: Path, ports: Sequence[int], script: Sequence[str]) -> Iterator[None]:
    """The scripted engines of one kind of load."""
    running = [subprocess.Popen([binary, str(port), *script]) for port in ports]
    try:
        sleep(0.3)
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def loads(cost: ModuleType) -> dict[str, Any]:
    """Engines' ports, their script and the load's arguments, by kind. ``spread``: the token load's streams, which that
    begins all at once, one after the other, so that times to the first token are those of a router that runs.
    """
    return {**cost.LOADS, "spread": cost.LOADS["token"]}


def spread_load(folder: Path) -> Path:
    """The load generator whose streams begin in even steps."""
    program = folder / "spread"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.bench.paced spread "$@"\n', encoding="ascii")
    program.chmod(0o755)
    return program


def compiled(folder: Path) -> None:
    """The scripted engine and the load generator, in *folder*."""
    for source in ("engine", "load"):
        subprocess.run(["cc", "-O2", "-w", "-o", folder / source, TOOLS / f"{source}.c"], check=True)


Figures = dict[str, dict[str, dict[str, float]]]


def measured(contenders: Sequence[Contender], rounds: int, kinds: Sequence[str] = KINDS) -> Figures:
    """By kind and gateway the median of each figure over interleaved rounds."""
    cost = tools()
    figures: Figures = {}
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory(prefix="headroom-bench-") as name:
        work = Path(name)
        compiled(work)
        for kind in kinds:
            ports, script, arguments = loads(cost)[kind]
            load = spread_load(work) if kind == "spread" else work / "load"
            runs: dict[str, list[dict[str, float]]] = {each.name: [] for each in contenders}
            with engines(work / "engine", ports, script):
                for _ in range(rounds):
                    for each in contenders:
                        log = work / f"{each.name.replace(' ', '-')}.log"
                        try:
                            runs[each.name].append(
                                cost.measure(load, str(each.port[kind]), each.command, ports, arguments, log)
                            )
                        except RuntimeError as problem:
                            print(f"{each.name}: {problem}: {log.read_text(errors='replace')[-500:]}")
            figures[kind] = {
                name: {key: median(run[key] for run in told) for key in told[0]} for name, told in runs.items() if told
            }
    return figures


def table(figures: Figures) -> str:
    """One line a gateway and kind: what it costs, what this one costs of that, and its first token's time."""
    lines = []
    for kind, told in figures.items():
        ours = told["headroom"][UNITS[kind]]
        lines.append(
            f"{kind:15s}{'CPU us':>8s}{'ours/its':>9s}{'TTFT p50':>10s}{'p99 ms':>8s}{'per s':>8s}{'errors':>7s}"
        )
        for name, each in told.items():
            cost_us = each[UNITS[kind]]
            ratio = f"{ours / cost_us:9.2f}" if name != ENGINE and cost_us else " " * 9
            rate = each["requests_per_s" if kind == "request" else "events_per_s"]
            lines.append(
                f"  {name:13s}{cost_us:8.1f}{ratio}{each['ttft_ms_p50']:10.2f}{each['ttft_ms_p99']:8.2f}"
                f"{rate:8.0f}{each['errors']:7.0f}"
            )
    return "\n".join(lines)


def line_up(folder: Path, loads: Mapping[str, Any], routing: str = "slo_headroom") -> list[Contender]:
    """This gateway, the peers that are there, and the engine alone; says which peers are not."""
    found = [headroom(folder, loads, routing)]
    for each in peers(folder, loads):
        if isinstance(each, str):
            print(each)
        else:
            found.append(each)
    found.append(Contender(ENGINE, "exec sleep 600", {kind: ports[0] for kind, (ports, *_) in loads.items()}))
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--beside", action="append", help="these peers alone")
    parser.add_argument("--routing", default="slo_headroom")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headroom-bench-") as name:
        contenders = line_up(Path(name), loads(tools()), options.routing)
        if options.beside is not None:
            wanted = {"headroom", ENGINE, *options.beside}
            contenders = [each for each in contenders if each.name in wanted]
        print(table(measured(contenders, options.rounds, options.only or KINDS)))


if __name__ == "__main__":
    main()
