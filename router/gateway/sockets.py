"""Listening sockets: of one process, or one port for several, where the kernel spreads connections by hash.

SO_REUSEPORT as Linux has it (3.9 and later). One inherited socket is worse: the worker that wakes first accepts all
that wait. Of 64 connections that came together one of four workers got 64; by hash it got 19, paced 22, where it was 28
before; of 1,000 at most 8 % above the mean, where it was 247 %. A worker that dies takes no new connections with it:
its socket leaves the group. macOS has the option and gives all connections to the newest socket.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


def _addresses(host: str, port: int) -> list[tuple[int, object]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bound(family: int, address: object, *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind(address)  # type: ignore[arg-type]
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"{error.strerror}: {address}") from None
    return made


@contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """Hold the port for this process and its workers; gives its number, for 0 the one that was free.

    Raises OSError when somebody else has it, though it be another router that shares it among workers of its own.
    """
    with ExitStack() as stack:
        for family, address in _addresses(host, port):
            made = stack.enter_context(_bound(family, (address[0], port, *address[2:]), shared=False))  # type: ignore[index]
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # from now on, for the workers
            port = made.getsockname()[1]
        yield port


@contextmanager
def owned(host: str, port: int) -> Iterator[list[socket.socket]]:
    """The sockets of a process that serves alone, one for each address that *host* stands for.

    Raises OSError when somebody else has the port.
    """
    with ExitStack() as stack:
        made: list[socket.socket] = []
        for family, address in _addresses(host, port):
            made.append(stack.enter_context(_bound(family, (address[0], port, *address[2:]), shared=False)))  # type: ignore[index]
            port = made[-1].getsockname()[1]  # for port 0: the same on every address
        yield made


@contextmanager
def listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """A worker's own sockets on the shared port, one for each address that *host* stands for."""
    with ExitStack() as stack:
        yield [stack.enter_context(_bound(family, address, shared=True)) for family, address in _addresses(host, port)]
