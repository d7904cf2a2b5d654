"""A validation beside traffic: what processor time it gets, and that it gets some on a machine that is never idle."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from router.gateway.rollout.priority import communicate
from router.search_path import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no SCHED_IDLE")

STARTED = """
import os, resource
from simulator.background import lower_priority
os.setuid({user})
lower_priority()
print(os.sched_getscheduler(0) == os.SCHED_IDLE, os.getpriority(os.PRIO_PROCESS, 0))
"""
WAITS = """
import os
print(input(), flush=True)
while (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)) != (os.SCHED_OTHER, 0):
    pass
"""
NOBODY = 65_534


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can raise a priority")
@pytest.mark.parametrize(("user", "expected"), [(0, "True 0"), (NOBODY, "False 10")])
def test_idle_time_alone_is_for_those_who_can_be_raised(user: int, expected: str) -> None:
    """A process that could not leave SCHED_IDLE would never end on a busy machine."""
    command = [sys.executable, "-P", "-c", STARTED.format(user=user)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.strip() == expected


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can raise a priority")
def test_the_share_grows_to_that_of_others() -> None:
    """It ends once it has it."""
    with _child(WAITS) as waits:
        os.sched_setscheduler(waits.pid, os.SCHED_IDLE, os.sched_param(0))
        assert communicate(waits, "asked\n", 60.0, ((0.01, 10), (0.02, 0))) == ("asked\n", "")


def test_no_output_within_the_limit_is_an_error() -> None:
    """Whatever its share."""
    with _child("import signal; signal.pause()") as waits, pytest.raises(subprocess.TimeoutExpired):
        communicate(waits, "", 0.01)


@contextmanager
def _child(source: str) -> Iterator["subprocess.Popen[str]"]:
    """Python that runs *source*, killed at the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-P", "-c", source], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as made:
        try:
            yield made
        finally:
            made.kill()
