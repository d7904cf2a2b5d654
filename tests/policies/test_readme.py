"""The page about policies says what the code does: its tables, its example, its config."""

import os
import random
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

import policies
import router.core
from policies._contract import check_routing
from policies._worlds import scene
from router import loading
from router.core import E2E, TTFT
from router.loading import Source
from simulator.validation.validate import Job, validate
from tests.contract.strategies import any_world
from tests.fakes import backend

ROOT = Path(__file__).parents[2]
README = (ROOT / "policies" / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
FAST = []
KINDS = [kind for kind in policies.KINDS if f"<!-- {kind}: tested" in README]


def table(kind):
    """Rows of the table of one kind: name to its parameters as text."""
    part = README.split(f"<!-- {kind}: tested against the code -->")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.strip().splitlines()[2:]]
    return {row[0].strip("`"): row[2] for row in rows}


def default(field):
    """A parameter's default, as written."""
    return field.default if field.default is not MISSING else field.default_factory()


@pytest.mark.parametrize("kind", policies.KINDS)
def test_the_table_lists_every_policy_and_none_that_is_not_there(kind):
    """In order."""
    assert list(table(kind)) == policies.names(kind)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in policies.names(kind)])
def test_the_table_lists_every_parameter_with_its_default(kind, name):
    """As the code has it, in the code's order."""
    made = policies.find(kind, name)
    expected = ", ".join(f"`{f.name}={default(f)!r}`" for f in fields(made))
    assert table(kind)[name] == expected


def test_the_example_is_a_policy_that_keeps_the_contract():
    """Copied from the page, it passes the check that the page shows."""
    lines = [line for line in PYTHON[0].splitlines() if line.strip()]
    assert len(lines) <= 20
    made = loading.load("routing", Source("my_policy.py", PYTHON[0]), {})
    check_routing(made, random.Random(0))


def fast_policy(tmp_path):
    """The second example, loaded from a file as a user would have it."""
    path = tmp_path / "fast_policy.py"
    path.write_text(PYTHON[2], encoding="utf-8")
    return loading.load("routing", loading.read(path), {})


def test_the_fast_example_keeps_the_contract(tmp_path):
    """It reads whole rows, which are read-only."""
    check_routing(fast_policy(tmp_path), random.Random(0))


@settings(max_examples=40, deadline=None)
@given(world=any_world())
def test_the_fast_example_chooses_what_its_words_say(tmp_path_factory, world):
    """The least of the largest shares of any bound in force, as numpy has it."""
    made = FAST or FAST.append(fast_policy(tmp_path_factory.mktemp("fast"))) or FAST
    fleet, forecast = scene(world)
    slo, waited_s = world.request.slo, fleet.now_s - world.request.arrived_s
    ttft_s, tpot_s, e2e_s = (np.maximum(bound, 1e-9) for bound in (slo.ttft_s, slo.tpot_s, slo.e2e_s))
    tails = forecast.tails_s(slo.quantile)
    uses = np.maximum.reduce([
        (waited_s + tails[TTFT]) / ttft_s, forecast.tpot_s / tpot_s, (waited_s + tails[E2E]) / e2e_s,
        forecast.tpot_s / np.maximum(fleet.tpot_bound_s, 1e-9),
    ])  # fmt: skip
    index = fleet.index(made[0].choose(world.request, fleet, forecast, random.Random(0)).slot)
    assert uses[index] == pytest.approx(uses.min(), rel=1e-9)


def test_the_fast_example_is_proved_before_it_serves():
    """As the gateway asks it: in time, and no worse than the least work."""
    decisions = {
        "routing": {"path": "fast_policy.py", "text": PYTHON[2], "parameters": {}},
        "admission": {"name": "deadline", "parameters": {}},
    }
    pool = (backend("a"), backend("b", slower=2.0))
    verdict = validate(Job(candidate=decisions, backends=pool, requests_max=300))
    assert verdict.passed, verdict.why


def test_every_name_of_a_row_is_on_the_page():
    """The vocabulary is what the page says."""
    rows = [name for name in router.core.__all__ if isinstance(getattr(router.core, name), int)]
    assert [name for name in [*rows, "hash64"] if not re.search(rf"`[^`]*\b{name}\b", README)] == []


def test_the_page_can_be_followed_to_the_letter(tmp_path):
    """The file saved, its check run, the command typed: from a checkout, nothing else at hand."""
    blocks = re.findall(r"```(python|bash)\n(.*?)```", README, re.DOTALL)
    code, check, _ = PYTHON
    (tmp_path / "my_policy.py").write_text(code, encoding="utf-8")
    told = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, env=told, check=True)
    command = next(text for language, text in blocks if "./my_policy.py" in text).split()
    assert command[0] == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=tmp_path, env=told, check=True, capture_output=True, text=True
    )
    assert "./my_policy.py:full=0.8" in done.stdout
