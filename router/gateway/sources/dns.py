"""Backends from DNS, as the headless Service of Kubernetes or Consul gives them: every address is a backend.

With a port, the addresses of a name: its A records, where it has none its AAAA records, so that a pod with both is one
backend. Without, its SRV records: each target's addresses, on the record's port. Read again when the least TTL of what
was read is over. That there is no such name may be a typing error or a resolver that has just started: a failure. That
a name which had records has none is believed once every answer for ``EMPTY_S`` has said so: one wrong answer must not
take a whole pool away, and replicas that have really ended are down by their own health checks. Must not be imported
unless it is used: dnspython may be missing.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from time import monotonic
from typing import Final

from dns import nameserver, rdatatype
from dns.asyncresolver import Resolver
from dns.exception import DNSException
from dns.rdata import Rdata
from dns.resolver import NXDOMAIN

from router.core.errors import NoSuchName, SourceFailed
from router.gateway.sources.endpoint import Endpoint, Source, name_of
from router.urls import host_port

TTL_S_MIN: Final = 1.0  # a record with a TTL of 0 is not read without end
TTL_S_MAX: Final = 300.0
EMPTY_S: Final = 30.0  # for which HAProxy holds the last good answer by default, where there is none ("hold nx")
_DNS_PORT: Final = 53


class DnsRecords(Source):
    """The records of one name."""

    def __init__(
        self,
        name: str,
        port: int | None,
        scheme: str,
        servers: Sequence[tuple[str, int]] = (),
        timeout_s: float = 5.0,
        ttl_s_min: float = TTL_S_MIN,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """*servers*: addresses with ports; none: those of this machine (``/etc/resolv.conf``), with its search list.

        ``timeout_s``: of one question, with all its repetitions.
        """
        self._name, self._port, self._scheme, self._servers = name, port, scheme, servers
        self._timeout_s, self._ttl_s_min, self._clock = timeout_s, ttl_s_min, clock
        self._had = False  # whether the last set that was given has an endpoint
        self._empty_since_s: float | None = None  # since when every answer is without records

    async def sets(self) -> AsyncGenerator[tuple[Endpoint, ...], None]:
        """As often as the TTL says."""
        resolver = self._resolver()
        while True:
            reading = _Reading(resolver, self._timeout_s)
            found = await (
                self._of_services(reading) if self._port is None else self._of_addresses(reading, self._port)
            )
            self._doubt(found)
            yield tuple(sorted(found, key=lambda each: each.name))
            await asyncio.sleep(min(max(reading.ttl_s, self._ttl_s_min), TTL_S_MAX))

    def _doubt(self, found: Sequence[Endpoint]) -> None:
        """Raises SourceFailed for an answer without records that has not been repeated for long enough."""
        now_s = self._clock()
        if found:
            self._had, self._empty_since_s = True, None
            return
        if self._empty_since_s is None:
            self._empty_since_s = now_s
        empty_s = now_s - self._empty_since_s
        if self._had and empty_s < EMPTY_S:
            raise SourceFailed(f"{self._name} had records and has none, which counts after {EMPTY_S:g} s")
        self._had = False

    def _resolver(self) -> Resolver:
        try:
            resolver = Resolver(configure=not self._servers)
        except DNSException as error:
            raise SourceFailed(f"no DNS server is configured on this machine: {error}") from None
        if self._servers:
            resolver.nameservers = [nameserver.Do53Nameserver(host, port) for host, port in self._servers]
        return resolver

    async def _of_addresses(self, reading: "_Reading", port: int) -> list[Endpoint]:
        addresses = await reading.addresses(self._name)
        return [self._endpoint(name_of(f"{address}-{port}"), address, port) for address in addresses]

    async def _of_services(self, reading: "_Reading") -> list[Endpoint]:
        found: list[Endpoint] = []
        missing: NoSuchName | None = None
        for record in await reading.records(self._name, rdatatype.SRV):
            target, port = record.target.to_text(omit_final_dot=True), record.port  # type: ignore[attr-defined]
            if target == ".":  # there is decidedly no such service (RFC 2782)
                continue
            try:
                addresses = await reading.addresses(f"{target}.")
            except NoSuchName as gone:  # a record that outlives its replica must not hide the others
                missing = gone
                continue
            for address in addresses:
                name = name_of(f"{target}-{port}" if len(addresses) == 1 else f"{target}-{address}-{port}")
                # A certificate bears the name; and there the name has one address, for it is one replica.
                host = target if self._scheme == "https" and len(addresses) == 1 else address
                found.append(self._endpoint(name, host, port))
        if missing is not None and not found:
            raise missing
        return found

    def _endpoint(self, name: str, host: str, port: int) -> Endpoint:
        return Endpoint(name, f"{self._scheme}://{host_port(host, port)}")


class _Reading:
    """One reading of all that a set is made of. ``ttl_s``: how long the shortest-lived part of it is good."""

    def __init__(self, resolver: Resolver, timeout_s: float) -> None:
        self._resolver, self._timeout_s = resolver, timeout_s
        self.ttl_s = TTL_S_MAX

    async def addresses(self, name: str) -> list[str]:
        """The IPv4 addresses of a name; where there is none, the IPv6 ones. Raises SourceFailed."""
        found = await self.records(name, rdatatype.A) or await self.records(name, rdatatype.AAAA)
        return [record.address for record in found]  # type: ignore[attr-defined]

    async def records(self, name: str, kind: rdatatype.RdataType) -> Sequence[Rdata]:
        """The records of a name, none where it exists without. Raises SourceFailed."""
        try:
            answer = await self._resolver.resolve(
                name, kind, raise_on_no_answer=False, lifetime=self._timeout_s, search=True
            )
        except NXDOMAIN:
            raise NoSuchName(f"there is no name {name}") from None
        except (DNSException, OSError, UnicodeError) as error:
            raise SourceFailed(f"{name}: {' '.join(str(error).split()) or type(error).__name__}"[:300]) from None
        self.ttl_s = min(self.ttl_s, answer.chaining_result.minimum_ttl)
        return tuple(answer.rrset) if answer.rrset is not None else ()
