"""Adding an SLO metric is one entry in ``router/core/slo_metrics.py``: a copy of the sources with one more shows it.

The checks are in ``with_toy.py``; a process of its own runs them in the copy, for names of headers, keys and columns
are made when modules are imported.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRY = """\
    SloMetric(
        "norm",
        "Normalised latency",
        "Arrival to last byte over output tokens",
        observed=lambda ttft_s, tpot_s, e2e_s, prompt_tokens, output_tokens: e2e_s / max(output_tokens, 1),
        implied=lambda bound_s, prompt_tokens, output_tokens: (0.2 * bound_s * output_tokens, 0.8 * bound_s, inf),
        aliases=("x-normalised-latency-ms",),
        in_ms=True,
    ),
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the toy's entry, nothing compiled."""
    root = tmp_path_factory.mktemp("toy")
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.so.json", "*.pyd")
    for package in ("router", "policies", "simulator", "tests/slo_metrics"):
        shutil.copytree(ROOT / package, root / package, ignore=left_out)
    for file in (ROOT / "pyproject.toml", *ROOT.glob("tests/*.py")):
        shutil.copy(file, root / file.relative_to(ROOT))
    metrics = root / "router/core/slo_metrics.py"
    text, places = re.subn(r"^    # Add a metric here\.\n", lambda _: ENTRY, metrics.read_text(), flags=re.MULTILINE)
    assert places == 1
    metrics.write_text(text)
    return root


def test_one_entry_makes_an_slo_metric(copy: Path) -> None:
    """Headers, config, traces, command line, figures, metrics and explanations have it; policies keep it."""
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/slo_metrics/with_toy.py")
    ran = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
