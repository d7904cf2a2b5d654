"""The process's file descriptors: its limit is raised at start, and running out of them is no engine's failure.

Every client's connection takes one and every request in flight another. Must not depend on requests or backends.
"""

import os
import resource
from errno import EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM
from socket import gaierror
from typing import Final

_EXHAUSTED: Final = (EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL)  # the last: all ports to that address are taken
_RESERVED: Final = 256  # beside connections: listeners, files, probes, idle connections to engines
_ENGINES_SHARE: Final = 16  # one in so many is kept for connections to engines when clients' take all others
_LIMIT_MAX: Final = 2**20  # where the hard limit is none: the kernel's own default


def raise_limit() -> int:
    """Raise the soft limit to the hard one; gives what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _LIMIT_MAX if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return _LIMIT_MAX if soft == resource.RLIM_INFINITY else soft


def for_clients(limit: int) -> int:
    """The first descriptor that no client's connection may have: the kernel gives each the lowest that is free."""
    return limit - limit // _ENGINES_SHARE


def shortage(connections_max: int, limit: int) -> str:
    """What a limit that is too small means, for the log; empty where it is large enough."""
    needed = 2 * connections_max + _RESERVED
    if limit >= needed:
        return ""
    return (
        f"listen.connections_max: {connections_max} connections with a request each take up to {needed} file "
        f"descriptors, and this process may have {limit}: raise the hard limit (ulimit -Hn, LimitNOFILE) or lower "
        "connections_max; what is beyond it gets status 503"
    )


def exhausted(error: BaseException | None) -> bool:
    """Whether a connection failed because this process has no descriptor, port or memory left for it."""
    if isinstance(error, gaierror):  # a look-up needs descriptors too, and does not say that they were missing
        return not _any_left()
    if not isinstance(error, OSError):
        return False
    text = str(error)  # of several addresses, the errors of all
    return error.errno in _EXHAUSTED or any(f"[Errno {each}]" in text for each in _EXHAUSTED)


def _any_left() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno not in _EXHAUSTED
    return True
