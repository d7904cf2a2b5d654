"""The addresses by which a proxy finds backends."""

import asyncio

import pytest

from router.gateway.epp.addresses import Addresses, Resolve
from router.gateway.protocols.target import Target
from tests.waiting import until


def of(*targets: Target, resolve: Resolve | None = None) -> Addresses:
    """The addresses of these."""
    made = Addresses(resolve)
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


async def test_names_of_a_config_to_come_are_known_before_it_is_there() -> None:
    """And kept, though no target has them yet; an address is none to be looked up."""
    found = of(Target("a", "10.0.0.1", 80))
    await found.prepare({"localhost", "10.0.0.2"}, 60.0)
    await found.look_up()
    assert found.endpoint(Target("c", "localhost", 9)) in {"127.0.0.1:9", "[::1]:9"}
    await found.prepare(set(), 60.0)
    await found.look_up()
    assert found.endpoint(Target("c", "localhost", 9)) == ""


async def test_a_name_is_looked_up_once_at_a_time() -> None:
    """Whoever waits for it, and however slow the resolver is; another name does not wait for it."""
    asked, answered = list[str](), asyncio.Event()

    async def resolve(host: str) -> list[str]:
        asked.append(host)
        if host == "slow":
            await answered.wait()
        return ["10.0.0.9"]

    slow, quick = Target("a", "slow", 80), Target("b", "quick", 80)
    found = of(slow, quick, resolve=resolve)
    waiting = [asyncio.create_task(found.find(["slow"], 60.0)) for _ in range(3)]
    all_of_them = asyncio.create_task(found.look_up())
    await until(lambda: found.endpoint(quick) == "10.0.0.9:80")
    assert sorted(asked) == ["quick", "slow"]
    answered.set()
    await asyncio.gather(*waiting, all_of_them)
    assert found.endpoint(slow) == "10.0.0.9:80"


async def test_an_address_stays_until_the_name_stands_for_another() -> None:
    """A resolver that fails takes nothing away, and the order of its answers is of no account."""
    answers: list[list[str]] = [["10.0.0.2", "10.0.0.1"], [], ["10.0.0.9", "10.0.0.1"], ["::1", "10.0.0.9"]]

    async def resolve(_: str) -> list[str]:
        if not answers[0]:
            raise OSError("no answer")
        return answers[0]

    target = Target("a", "name", 80)
    found = of(target, resolve=resolve)
    seen = []
    while answers:
        await found.look_up()
        seen.append(found.endpoint(target))
        answers.pop(0)
    assert seen == ["10.0.0.1:80", "10.0.0.1:80", "10.0.0.1:80", "10.0.0.9:80"]


async def test_a_host_that_many_requests_find_unreachable_is_looked_up_once() -> None:
    """The resolver does not get a question for each of them; another host has its own."""
    asked = list[str]()

    async def resolve(host: str) -> list[str]:
        asked.append(host)
        return ["10.0.0.9"]

    found = of(Target("a", "one", 80), Target("b", "two", 80), resolve=resolve)
    for host in ("one", "one", "two", "10.0.0.1"):
        found.unreachable(host)
        await until(lambda: not found._looking)
    assert asked == ["one", "two"]


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
