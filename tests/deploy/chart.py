"""The Helm chart, rendered by Helm's own library: nothing to install by hand, no cluster."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART_EXTRA = "Helm's library and Kubernetes' schemas are not installed: `make chart` installs them"
_helm: Any = pytest.importorskip("helm_python.chart", reason=CHART_EXTRA)
Chart, lint = _helm.Chart, _helm.lint
HelmError: Any = pytest.importorskip("helm_python.errors", reason=CHART_EXTRA).HelmError
kubernetes_validate: Any = pytest.importorskip("kubernetes_validate", reason=CHART_EXTRA)

CHART = Path(__file__).parents[2] / "deploy/helm/headroom"
Manifest = dict[str, Any]


def everything() -> dict[str, Any]:
    """Values with which every part of the chart is there."""
    values: dict[str, Any] = yaml.safe_load((CHART / "ci/values.yaml").read_text())
    return values


def rendered(
    values: dict[str, Any], name: str = "headroom", namespace: str = "llm", folder: Path = CHART
) -> list[Manifest]:
    """The manifests of a release. Raises HelmError."""
    with Chart.load(folder) as chart:
        files = chart.render(values, name=name, namespace=namespace)
    texts = [text for path, text in sorted(files.items()) if path.endswith(".yaml")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


@cache
def of_everything() -> list[Manifest]:
    """The manifests of a release that has every part."""
    return rendered(everything())


def one(manifests: list[Manifest], kind: str, name: str, namespace: str | None = None) -> Manifest:
    """The one of that kind and name."""
    (found,) = [
        each
        for each in manifests
        if each["kind"] == kind
        and each["metadata"]["name"] == name
        and each["metadata"].get("namespace", namespace) == namespace
    ]
    return found
