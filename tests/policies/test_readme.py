"""The page about policies says what the code does: its tables, its example, its config."""

import os
import random
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import policies
from policies._contract import check_routing

ROOT = Path(__file__).parents[2]
README = (ROOT / "policies" / "README.md").read_text(encoding="utf-8")
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
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "policy = " in block)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 20
    namespace = {"__name__": "example"}
    exec(code, namespace)
    check_routing(namespace["policy"](), random.Random(0))


def test_the_page_can_be_followed_to_the_letter(tmp_path):
    """The file saved, its check run, the command typed: from a checkout, nothing else at hand."""
    blocks = re.findall(r"```(python|bash)\n(.*?)```", README, re.DOTALL)
    code, check = (text for language, text in blocks if language == "python")
    (tmp_path / "my_policy.py").write_text(code, encoding="utf-8")
    told = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, env=told, check=True)
    command = next(text for language, text in blocks if "./my_policy.py" in text).split()
    assert command[0] == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=tmp_path, env=told, check=True, capture_output=True, text=True
    )
    assert "./my_policy.py:full=0.8" in done.stdout
