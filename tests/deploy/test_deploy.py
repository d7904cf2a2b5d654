"""What lies in deploy/ fits the code: configs are good, commands exist, dashboards ask for metrics there are."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from router.core.decisions import EndState
from router.core.score import STATES
from router.core.slo_metrics import SLO_METRICS
from router.gateway.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CONFIGS = [DEPLOY / "router.yaml", DEPLOY / "compose/router.yaml"]
SUFFIXES = re.compile(r"_(total|bucket|count|sum)$")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_config_is_good(config, monkeypatch):
    """As an operator would check it, with the admin key in the environment."""
    monkeypatch.setenv("HEADROOM_ADMIN_KEY", "x")
    done = subprocess.run(
        [sys.executable, "-m", "router", "check", config], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pickers_manifest_has_a_good_config(tmp_path):
    """The port of its config is that of the service that the pool names."""
    manifests = list(yaml.safe_load_all((DEPLOY / "epp/inferencepool.yaml").read_text()))
    by_kind = {manifest["kind"]: manifest for manifest in manifests}
    text = by_kind["ConfigMap"]["data"]["router.yaml"]
    (tmp_path / "router.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "router", "check", tmp_path / "router.yaml"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    picker = by_kind["InferencePool"]["spec"]["endpointPickerRef"]
    (port,) = by_kind["Service"]["spec"]["ports"]
    assert picker["name"] == by_kind["Service"]["metadata"]["name"]
    assert picker["port"]["number"] == port["port"] == yaml.safe_load(text)["epp"]["port"]


def services():
    """The services of the compose file that run our own image, with their commands."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return {
        name: s["command"] for name, s in compose["services"].items() if s.get("image") == "headroom" and "command" in s
    }


def test_compose_backends_are_compose_services():
    """Every engine that the routers are told of is started, on the port they are told."""
    config = yaml.safe_load((DEPLOY / "compose/router.yaml").read_text())
    ports = {name: command[command.index("--port") + 1] for name, command in services().items() if "--port" in command}
    assert {f"http://{name}:{port}" for name, port in ports.items()} == {b["url"] for b in config["backends"]}


@pytest.mark.parametrize("service", [name for name in services() if name.startswith("engine")])
def test_compose_commands_have_options_that_exist(service):
    """`--help` after the rest: an unknown option or value would still be an error."""
    done = subprocess.run(
        [sys.executable, *services()[service][1:], "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_image_starts_a_command_that_the_wheel_has():
    """And copies every file that the build of the wheel reads."""
    image = (DEPLOY / "Dockerfile").read_text()
    command = json.loads(re.search(r"^CMD (.*)$", image, re.MULTILINE).group(1))
    assert command[0] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)$", image, re.MULTILINE) for word in line.split()}
    assert {
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "router",
        "policies",
        "simulator",
    } <= copied


def names_in_code():
    """Every metric name that a Python file of the router states, and those that are made of SLO metrics' names."""
    text = "\n".join(path.read_text() for path in (ROOT / "router").rglob("*.py"))
    return set(re.findall(r'(?:"|# TYPE )(headroom_[a-z_]+)["\s]', text)) | {
        f"headroom_{metric.name}_{kind}" for metric in SLO_METRICS for kind in ("prediction_ratio", "seconds")
    }


@pytest.mark.parametrize("path", ["prometheus/alerts.yml", "grafana/dashboards/headroom.json"])
def test_dashboards_and_alerts_ask_for_metrics_there_are(path):
    """A renamed metric would leave an empty panel or a dead alert."""
    text = (DEPLOY / path).read_text()
    asked = {SUFFIXES.sub("", name) for name in re.findall(r"headroom_[a-z0-9_]+", text)}
    known = {SUFFIXES.sub("", name) for name in names_in_code()}
    assert len(asked) > 5
    assert asked - known == set()


def values_in_code():
    """By label, the values that alerts and dashboards may ask for."""
    page = Metrics(lambda: 0.0).text().decode()
    return {
        "met": {"true", "false"},
        "kind": {"prompt", "output", "cached"},
        "outcome": {outcome.value for outcome in EndState},
        "source": {"class", "header"},
        "result": set(re.findall(r'headroom_config_reloads_total\{result="([a-z]+)"', page)),
        "state": {*STATES, "configured", "answering"},
    }


@pytest.mark.parametrize("path", ["prometheus/alerts.yml", "grafana/dashboards/headroom.json"])
def test_dashboards_and_alerts_ask_for_label_values_there_are(path):
    """A selector with a value that no sample has matches nothing: the alert never fires."""
    asked = re.findall(r'([a-z_]+)=\\?"([a-z_]+)\\?"', (DEPLOY / path).read_text())
    known = values_in_code()
    assert asked
    assert [(label, value) for label, value in asked if value not in known[label]] == []


def test_manifests_are_yaml_and_the_dashboard_json():
    """Each file parses."""
    for path in [*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")]:
        if path.parent.name == "templates":  # of the chart: they are YAML once they are rendered (test_chart.py)
            continue
        list(yaml.safe_load_all(path.read_text()))
    assert json.loads((DEPLOY / "grafana/dashboards/headroom.json").read_text())["panels"]


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_alerts_fire_when_they_should_and_not_when_they_should_not():
    """By Prometheus's own test of rules: an outage, a slow burn, a good class, clients' own bounds."""
    cases = ROOT / "tests/deploy/alerts.test.yml"
    done = subprocess.run([PROMTOOL, "test", "rules", cases], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
