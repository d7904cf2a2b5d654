"""Envoy with the picker, as deploy/epp has it, in processes of their own in front of engines of this machine."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deploy.local import catalog, processes
from tests.real.world import ROOT

ENVOY = ROOT / "deploy/epp/envoy.yaml"
ENVOY_PORT, PICKER_PORT, CONTROL_PORT, GATEWAY_PORT = 8300, 8303, 8304, 8305
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Parts:
    """Processes by name."""

    running: dict[str, processes.Running] = field(default_factory=dict)

    def cpu_s(self, name: str) -> float:
        """CPU seconds of a process so far."""
        stat = Path(f"/proc/{self.running[name].process.pid}/stat").read_text(encoding="utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS


def _ours(name: str, port: int, *command: str, ready_path: str = "/health") -> catalog.Engine:
    return catalog.Engine(
        name=name,
        model="",
        ports=(port,),
        needs=(),
        command=lambda _: [sys.executable, *command],
        ready_path=ready_path,
        env=lambda _: {"PYTHONPATH": str(ROOT)},
    )


def emulated(name: str, card: str, port: int, model: str) -> catalog.Engine:
    """An emulated engine of one card."""
    options = ("--card", card, "--port", str(port), "--model-name", model, "--spread", "0")
    return _ours(name, port, "-m", "simulator", "serve", *options)


def gateway(folder: Path, config: dict[str, Any]) -> catalog.Engine:
    """The gateway with this config."""
    path = _written(folder / "gateway.yaml", {**config, "listen": {"port": GATEWAY_PORT}})
    return _ours("gateway", GATEWAY_PORT, "-m", "router", "serve", "--config", str(path), ready_path="/readyz")


def picker(folder: Path, config: dict[str, Any]) -> catalog.Engine:
    """The picker with this config."""
    ports = {"listen": {"port": CONTROL_PORT}, "epp": {"port": PICKER_PORT}}
    path = _written(folder / "picker.yaml", {**config, **ports})
    return _ours("picker", CONTROL_PORT, "-m", "router", "epp", "--config", str(path), ready_path="/readyz")


def envoy(folder: Path) -> catalog.Engine:
    """Envoy as users are shown it, on other ports."""
    config = yaml.safe_load(ENVOY.read_text(encoding="utf-8"))
    resources = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {"address": catalog.HOST, "port_value": ENVOY_PORT}
    (calls,) = [cluster for cluster in resources["clusters"] if cluster["name"] == "picker"]
    (endpoint,) = calls["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["address"]["socket_address"]["port_value"] = PICKER_PORT
    path = _written(folder / "envoy.yaml", config)
    return catalog.Engine(
        name="envoy",
        model="",
        ports=(ENVOY_PORT,),
        needs=("envoy/bin/envoy",),
        command=lambda home: [
            *(str(home / "envoy/bin/envoy"), "-c", str(path), "--concurrency", "1"),
            *("--log-level", "error", "--use-dynamic-base-id", "--disable-hot-restart"),
        ],
        ready_path="/v1/models",  # of an engine, by way of the picker
    )


def _written(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@contextmanager
def up(home: Path, *parts: catalog.Engine) -> Iterator[Parts]:
    """These, ready one after the other."""
    with ExitStack() as ends:
        made = Parts()
        for part in parts:
            made.running[part.name] = processes.start(part, home)
            ends.callback(made.running[part.name].stop)
            processes.wait_ready([made.running[part.name]])
        yield made
