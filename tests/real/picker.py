"""Envoy with the picker, as deploy/epp has it, in processes of their own in front of engines of this machine."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local import catalog, processes
from tests.real.world import ROOT

ENVOY, FALLBACKS = ROOT / "deploy/epp/envoy.yaml", ROOT / "deploy/epp/envoy-fallbacks.yaml"
ENVOY_PORT, PICKER_PORT, CONTROL_PORT, GATEWAY_PORT = 8300, 8303, 8304, 8305
TICKS = os.sysconf("SC_CLK_TCK")


def home() -> Path:
    """Where Envoy is installed; skips the test where it is not."""
    try:
        found = catalog.home_folder()
    except catalog.EngineError as error:
        pytest.skip(str(error))
    if not (found / "envoy/bin/envoy").exists():
        pytest.skip(f"no Envoy in {found}: `python -m tests.real.matrix.environments envoy` installs it")
    return found


@dataclass
class Parts:
    """Processes by name, whose programs are in *home*."""

    home: Path
    running: dict[str, processes.Running] = field(default_factory=dict)

    def start_again(self, name: str) -> None:
        """A process that has ended, ready."""
        before = self.running[name]
        before.stop()
        self.running[name] = processes.start(before.engine, self.home)
        processes.wait_ready([self.running[name]])

    def cpu_s(self, name: str) -> float:
        """CPU seconds of a process so far."""
        stat = Path(f"/proc/{self.running[name].process.pid}/stat").read_text(encoding="utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS


def _ours(
    name: str, port: int, *command: str, ready_path: str = "/readyz", serving_root: bool = True
) -> catalog.Engine:
    return catalog.Engine(
        name=name,
        model="",
        ports=(port,),
        needs=(),
        command=lambda _: [sys.executable, *command],
        ready_path=ready_path,
        env=lambda _: {"PYTHONPATH": str(ROOT)},
        serving_root=serving_root,  # on other cores than engines
    )


def emulated(name: str, card: str, port: int, model: str) -> catalog.Engine:
    """An emulated engine of one card."""
    options = ("--card", card, "--port", str(port), "--model-name", model, "--spread", "0")
    return _ours(name, port, "-m", "simulator", "serve", *options, ready_path="/health", serving_root=False)


def gateway(folder: Path, config: dict[str, Any], name: str = "gateway", port: int = GATEWAY_PORT) -> catalog.Engine:
    """The gateway with this config."""
    path = _written(folder / f"{name}.yaml", {**config, "listen": {"port": port}})
    return _ours(name, port, "-m", "router", "serve", "--config", str(path))


def picker(folder: Path, config: dict[str, Any]) -> catalog.Engine:
    """The picker with this config."""
    ports = {"listen": {"port": CONTROL_PORT}, "epp": {**config.get("epp", {}), "port": PICKER_PORT}}
    path = _written(folder / "picker.yaml", {**config, **ports})
    return _ours("picker", CONTROL_PORT, "-m", "router", "epp", "--config", str(path))


def envoy(folder: Path, engines: Sequence[int] = ()) -> catalog.Engine:
    """Envoy as users are shown it, on other ports; *engines*: the config that knows them, at these ports."""
    config = yaml.safe_load((FALLBACKS if engines else ENVOY).read_text(encoding="utf-8"))
    resources = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {"address": catalog.HOST, "port_value": ENVOY_PORT}
    (calls,) = [cluster for cluster in resources["clusters"] if cluster["name"] == "picker"]
    (endpoint,) = calls["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["address"]["socket_address"]["port_value"] = PICKER_PORT
    (cluster,) = [cluster for cluster in resources["clusters"] if cluster["name"] == "engines"]
    for port, each in zip(
        engines, cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] if engines else (), strict=True
    ):
        each["endpoint"]["address"]["socket_address"]["port_value"] = port
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
        serving_root=True,
    )


def _written(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@contextmanager
def up(home: Path, *parts: catalog.Engine) -> Iterator[Parts]:
    """These, ready one after the other."""
    with ExitStack() as ends:
        made = Parts(home)
        for part in parts:
            made.running[part.name] = processes.start(part, home)
            ends.callback(lambda name=part.name: made.running[name].stop())
            processes.wait_ready([made.running[part.name]])
        yield made
