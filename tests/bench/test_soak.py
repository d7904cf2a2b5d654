"""What a minute of mixed load with clients who leave at random leaves behind: nothing. `make bench` prints it.

Longer: `python -m tests.bench.soak --seconds 600`.
"""

import pytest

from tests.bench.soak import report, soak

pytestmark = pytest.mark.benchmark

SECONDS = 60.0
GROWTH_MIB_MAX = 12.0  # the journal's last thousand requests and the like fill up


async def test_nothing_is_left_of_a_minute_of_clients_who_come_and_go() -> None:
    """In flight back to zero, files back to the start, memory flat, and every reply that was waited for was whole."""
    found = await soak(SECONDS)
    print(f"\n{report(found)}")
    assert found["in_flight"] == 0.0
    assert found["files_after"] <= found["files_before"]
    assert found["memory_mib"][-1] - found["memory_mib"][1] < GROWTH_MIB_MAX
    assert not [what for what in found["visits"] if what.endswith(("cut", "without [DONE]", "Error"))]
