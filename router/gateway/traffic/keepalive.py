"""TCP keep-alive towards engines: a host that is gone without a word is noticed, however long a reply may be silent.

A whole reply sends nothing until it is generated, so silence is no evidence; but the kernel of a host that is there
answers probes even while its engine computes. Must not depend on what the connection carries.
"""

import asyncio
import socket
from contextlib import suppress
from typing import Final

IDLE_S: Final = 15  # silence before the first probe
INTERVAL_S: Final = 5
PROBES: Final = 3  # unanswered: the connection is dead, half a minute after the last byte
UNACKNOWLEDGED_S: Final = IDLE_S + INTERVAL_S * PROBES  # the same for bytes that were sent

_OPTIONS: Final = tuple(
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (
        ("TCP_KEEPIDLE", IDLE_S),
        ("TCP_KEEPINTVL", INTERVAL_S),
        ("TCP_KEEPCNT", PROBES),
        ("TCP_USER_TIMEOUT", UNACKNOWLEDGED_S * 1000),
    )
    if hasattr(socket, name)  # macOS has other names, and two hours until the first probe
)


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Have the kernel probe the other side of a connection that is silent."""
    connected = transport.get_extra_info("socket")
    if connected is None:
        return
    with suppress(OSError):  # it is closed already, which is reported by itself
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for level, option, value in _OPTIONS:
            connected.setsockopt(level, option, value)
