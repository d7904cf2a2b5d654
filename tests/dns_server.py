"""A small DNS server on a real UDP socket, and on TCP for what is too long for it."""

import asyncio
from types import TracebackType
from typing import Self, cast

from dns import flags, message, rcode, rdatatype, rrset

_UDP_MAX = 1232


class DnsServer:
    """Records by name and type: ``server.records["a.", "A"] = (ttl_s, ["10.0.0.1"])``.

    A name in ``names`` exists without records; any other does not exist. ``code``: what every question gets instead.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self.names: set[str] = set()
        self.code: rcode.Rcode | None = None
        self.silent = False
        self.asked: list[tuple[str, str]] = []
        self.over_tcp = 0
        self.port = 0

    @property
    def at(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def answer(self, wire: bytes) -> message.Message:
        question = message.from_wire(wire)
        made = message.make_response(question, recursion_available=True)
        name, kind = question.question[0].name, question.question[0].rdtype
        text, kind_text = name.to_text(), rdatatype.to_text(kind)
        self.asked.append((text, kind_text))
        if self.code is not None:
            made.set_rcode(self.code)
        elif (text, kind_text) in self.records:
            ttl_s, values = self.records[text, kind_text]
            made.answer.append(rrset.from_text(name, ttl_s, "IN", kind, *values))
        elif text not in self.names | {known for known, _ in self.records}:
            made.set_rcode(rcode.NXDOMAIN)
        return made

    def datagram_received(self, transport: asyncio.DatagramTransport, wire: bytes, sender: tuple[str, int]) -> None:
        if self.silent:
            return
        made = self.answer(wire)
        whole = made.to_wire()
        if len(whole) > _UDP_MAX:
            made.answer.clear()
            made.flags |= flags.TC
            whole = made.to_wire()
        transport.sendto(whole, sender)

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.over_tcp += 1
        size = int.from_bytes(await reader.readexactly(2), "big")
        whole = self.answer(await reader.readexactly(size)).to_wire()
        writer.write(len(whole).to_bytes(2, "big") + whole)
        await writer.drain()
        writer.close()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._tcp, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Udp(self), local_addr=self.at)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._udp.close()
        self._server.close()
        await self._server.wait_closed()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # uvloop's are of another class

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.datagram_received(self._transport, data, addr)
