"""The addresses by which a proxy finds backends: IP and port, whatever the config calls them.

A proxy takes no names. Those of a config are looked up before it takes effect, and again and again; an address stays
until another is found. Must not depend on gRPC.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from ipaddress import ip_address
from math import inf
from typing import Final

from router.gateway.protocols.target import Target
from router.urls import host_port

LOOK_UP_S: Final = 10.0
UNKNOWN_S: Final = 1.0  # while a name has no address, or a proxy does not reach it
_log = logging.getLogger("headroom")


def ip_of(text: str) -> str:
    """The IP address that *text* is, in its usual form; empty: it is none."""
    try:
        return str(ip_address(text.strip("[]")))
    except ValueError:
        return ""


Resolve = Callable[[str], Awaitable[Collection[str]]]


class Addresses:
    """Of the targets that *targets* returns."""

    def __init__(self, resolve: Resolve | None = None) -> None:
        """*resolve*: gives the addresses of a name, raises OSError or UnicodeError; None: this machine's resolver."""
        self._resolve = resolve or _resolved
        self.targets: Callable[[], Iterable[Target]] = tuple
        self._by_host: dict[str, str] = {}  # a host of the config: an IP address, empty: none is known
        self._coming: frozenset[str] = frozenset()  # hosts of the config that is about to take effect
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._logged: set[str] = set()  # names without an address
        self._unreachable_s: dict[str, float] = {}  # when a host was last looked up for that, on the loop's clock

    def endpoint(self, target: Target) -> str:
        """``IP:port`` of a target; empty: its name has not been resolved."""
        found = self._by_host.get(target.host)
        if found is None:
            found = ip_of(target.host)
            self._by_host[target.host] = found
        if not found:
            return ""
        return host_port(found, target.port)

    def among(self, endpoints: Iterable[str]) -> tuple[str, ...]:
        """The names of the targets that are in a list of ``IP:port``, or of IP addresses whose every port is meant."""
        wanted = {_usual(each) for each in endpoints}
        return tuple(
            target.name
            for target in self.targets()
            if (own := self.endpoint(target)) and (own in wanted or self._by_host[target.host] in wanted)
        )

    async def run(self) -> None:
        """Look names up, for ever."""
        while True:
            await self.look_up()
            unknown = any(not self.endpoint(target) for target in self.targets())
            await asyncio.sleep(UNKNOWN_S if unknown else LOOK_UP_S)

    async def look_up(self) -> None:
        """Look up every name once, and forget those that are there no more."""
        hosts = {target.host for target in self.targets()}
        for host in self._by_host.keys() - hosts - self._coming:
            del self._by_host[host]
            self._logged.discard(host)
            self._unreachable_s.pop(host, None)
        await asyncio.gather(*map(self._look_up_once, _names(hosts)))

    async def prepare(self, hosts: Collection[str], within_s: float) -> None:
        """Look up those names that have no address yet, for at most so long."""
        self._coming = frozenset(hosts)
        await self.find(hosts, within_s)

    async def find(self, hosts: Iterable[str], within_s: float) -> None:
        """The same, of hosts that are in the config already."""
        unknown = [host for host in _names(hosts) if not self._by_host.get(host)]
        if unknown:
            await asyncio.wait(set(map(self._look_up_once, unknown)), timeout=within_s)

    def look_again(self, hosts: Iterable[str]) -> None:
        """Look names up soon: what they stand for may have moved."""
        for host in _names(hosts):
            self._look_up_once(host)

    def unreachable(self, host: str) -> None:
        """A proxy has no connection there: look its name up again, once a second however many requests fail for it."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._unreachable_s.get(host, -inf) >= UNKNOWN_S:
            self._unreachable_s[host] = now_s
            self.look_again((host,))

    def close(self) -> None:
        """Look nothing up any more."""
        for task in tuple(self._looking.values()):
            task.cancel()

    def _look_up_once(self, host: str) -> asyncio.Task[None]:
        """The look-up of a name that is under way, or a new one."""
        task = self._looking.get(host)
        if task is None:
            task = self._looking[host] = asyncio.get_running_loop().create_task(self._look_up(host))
            task.add_done_callback(lambda _: self._looking.pop(host, None))
        return task

    async def _look_up(self, host: str) -> None:
        try:
            found = await self._resolve(host)
        except (OSError, UnicodeError) as error:
            if not self._by_host.get(host) and host not in self._logged:
                self._logged.add(host)
                _log.warning("host %s of a backend's url: %s; no request is sent there until it is known", host, error)
            return
        addresses = sorted(found, key=lambda each: (":" in each, each))
        if addresses and self._by_host.get(host) not in addresses:
            self._by_host[host] = addresses[0]
            self._logged.discard(host)


async def _resolved(host: str) -> set[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None)
    return {str(address[0]) for _, _, _, _, address in found}


def _names(hosts: Iterable[str]) -> list[str]:
    return sorted(host for host in hosts if not ip_of(host))


def _usual(endpoint: str) -> str:
    """An ``IP:port`` or an IP address in the form that ``endpoint`` has."""
    whole = ip_of(endpoint)
    if whole:
        return whole
    host, _, port = endpoint.strip().rpartition(":")
    found = ip_of(host)
    return host_port(found, port)
