"""The systemd unit: the directives exist, what it runs exists, and its limits fit the config's defaults."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from router.commands.table import PROGRAM
from router.config.settings import Listen, PolicyValidation
from router.gateway.descriptors import shortage
from router.gateway.workers.parent import GRACE_S

UNIT = Path(__file__).parents[2] / "deploy/systemd/headroom.service"
ANALYZE = shutil.which("systemd-analyze")


def directives() -> dict[str, str]:
    """The last value of each; comments and headings are left out."""
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line and line[0] not in "#["]
    assert all(equals for _, equals, _ in pairs)
    return {name: value for name, _, value in pairs}


def test_its_limits_fit_the_defaults_of_the_config() -> None:
    """Descriptors of all connections, a drain to its end, a validation before the first start."""
    unit = directives()
    assert shortage(Listen().connections_max, int(unit["LimitNOFILE"])) == ""
    assert int(unit["TimeoutStopSec"]) > Listen().drain_s + 2 * GRACE_S
    assert int(unit["TimeoutStartSec"]) > PolicyValidation().seconds_max


def test_it_starts_a_command_that_there_is() -> None:
    """By the name that the wheel installs."""
    program, command, option, _ = directives()["ExecStart"].split()
    assert program.rpartition("/")[2] == PROGRAM.name
    assert command in {each.name for each in PROGRAM.commands}
    assert option == "--config"


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed (Debian: apt-get install systemd)")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    """With a program that is there in place of the one that is to be installed."""
    text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", UNIT.read_text(encoding="utf-8"))
    unit = tmp_path / UNIT.name
    unit.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, ours) == (0, []), done.stderr
