"""The picker behind the real Envoy attains what the gateway does, before the same two unequal engines."""

from pathlib import Path

from tests.bench import picker as bench
from tests.real import picker


async def test_attainment_is_the_gateways_own(tmp_path: Path) -> None:
    """At most a point less, under a load that a choice without a forecast cannot serve. Prints what each takes."""
    with picker.up(picker.home(), *bench.parts(tmp_path)) as running:
        found = await bench.measured(running, 1, 40.0, bench.RATE)
    print(*(each.line() for each in found), sep="\n")  # noqa: T201
    blind, gateway, through_envoy = found
    assert blind.attainment < 0.95
    assert bench.difference(through_envoy, gateway)[0] >= -0.01
