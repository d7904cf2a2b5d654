"""The addresses by which a proxy finds backends."""

import pytest

from router.gateway.epp.addresses import Addresses
from router.gateway.protocols.target import Target


def of(*targets: Target) -> Addresses:
    """The addresses of these."""
    made = Addresses()
    made.targets = lambda: targets
    return made


async def test_an_address_is_an_ip_and_a_port() -> None:
    """IPv6 in brackets; a name once it was looked up."""
    named = Target("c", "localhost", 9)
    found = of(Target("a", "10.0.0.1", 80), Target("b", "::1", 81), named)
    assert found.endpoint(Target("a", "10.0.0.1", 80)) == "10.0.0.1:80"
    assert found.endpoint(Target("b", "::1", 81)) == "[::1]:81"
    assert found.endpoint(named) == ""
    await found.look_up()
    assert found.endpoint(named) in {"127.0.0.1:9", "[::1]:9"}


async def test_a_name_that_nobody_has_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """And its backend has no address."""
    found = of(Target("a", "nobody.invalid", 80))
    await found.look_up()
    assert found.endpoint(Target("a", "nobody.invalid", 80)) == ""
    assert "nobody.invalid" in caplog.text


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["10.0.0.1:80"], ("a",)),
        (["10.0.0.1"], ("a", "b")),
        (["[::1]:80", " 10.0.0.1:81 "], ("b", "c")),
        (["0:0::1"], ("c",)),
        (["10.0.0.2:80", "", ":", "x:80"], ()),
    ],
)
def test_backends_are_found_by_their_addresses(given: list[str], names: tuple[str, ...]) -> None:
    """An address without a port means every port of it."""
    found = of(Target("a", "10.0.0.1", 80), Target("b", "10.0.0.1", 81), Target("c", "::1", 80))
    assert found.among(given) == names
