"""A minute of every fault at once, and what is left of it: nothing. `make bench` prints it.

Longer: `python -m tests.bench.fault_run --seconds 480`.
"""

import pytest

from tests.bench.fault_run import fault_run, faults_of, report

pytestmark = pytest.mark.benchmark

SECONDS = 60.0


async def test_nothing_is_left_of_a_minute_of_faults() -> None:
    """Requests in flight, files, memory and the sums of tokens."""
    found = await fault_run(SECONDS, seed=1, clients=12)
    print(f"\n{report(found)}")
    assert not faults_of(found)
