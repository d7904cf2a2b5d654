"""The addresses by which a proxy finds backends: IP and port, whatever the config calls them.

A proxy takes no names. Those of the config are looked up again and again; an address stays until another is found.
Must not depend on gRPC.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Final

from router.gateway.protocols.target import Target

LOOK_UP_S: Final = 10.0
_log = logging.getLogger("headroom")


def ip_of(text: str) -> str:
    """The IP address that *text* is, in its usual form; empty: it is none."""
    try:
        return str(ip_address(text.strip("[]")))
    except ValueError:
        return ""


class Addresses:
    """Of the targets that *targets* returns."""

    def __init__(self) -> None:
        self.targets: Callable[[], Iterable[Target]] = tuple
        self._by_host: dict[str, str] = {}  # a host of the config: an IP address, empty: none is known

    def endpoint(self, target: Target) -> str:
        """``IP:port`` of a target; empty: its name has not been resolved."""
        found = self._by_host.get(target.host)
        if found is None:
            found = ip_of(target.host)
            self._by_host[target.host] = found
        if not found:
            return ""
        return f"[{found}]:{target.port}" if ":" in found else f"{found}:{target.port}"

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
            await asyncio.sleep(LOOK_UP_S)

    async def look_up(self) -> None:
        """Look up every name once."""
        hosts = {target.host for target in self.targets()}
        for host in self._by_host.keys() - hosts:
            del self._by_host[host]
        for host in sorted(host for host in hosts if not ip_of(host)):
            await self._look_up(host)

    async def _look_up(self, host: str) -> None:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None)
        except (OSError, UnicodeError) as error:
            if not self._by_host.get(host):
                _log.warning("host %s of a backend's url: %s; no request is sent there until it is known", host, error)
            return
        addresses = sorted({str(address[0]) for _, _, _, _, address in found}, key=lambda each: (":" in each, each))
        if addresses and self._by_host.get(host) not in addresses:
            self._by_host[host] = addresses[0]


def _usual(endpoint: str) -> str:
    """An ``IP:port`` or an IP address in the form that ``endpoint`` has."""
    whole = ip_of(endpoint)
    if whole:
        return whole
    host, _, port = endpoint.strip().rpartition(":")
    found = ip_of(host)
    return f"[{found}]:{port}" if ":" in found else f"{found}:{port}"
