"""Why a call to Redis failed, from the errors of its client and of sockets. Must not depend on what was called."""

import ssl
from collections.abc import Iterator
from typing import Final

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from router.core.errors import StateFault, StoreGone

_CHAIN_MOST: Final = 10
_SHOWN_MOST: Final = 300  # characters of an error's text: a server's own may repeat all that was sent

# The first that fits, of an error and then of those that led to it.
_FAULTS: Final[tuple[tuple[tuple[type[BaseException], ...], StateFault], ...]] = (
    (
        (AuthenticationError, AuthorizationError, NoPermissionError, AuthenticationWrongNumberOfArgsError),
        StateFault.DENIED,
    ),
    ((ReadOnlyError,), StateFault.READ_ONLY),
    ((OutOfMemoryError,), StateFault.FULL),
    ((BusyLoadingError,), StateFault.LOADING),
    ((MasterNotFoundError, ClusterDownError, SlotNotCoveredError), StateFault.NO_PRIMARY),
    ((ssl.SSLError,), StateFault.TLS),
    ((RedisTimeoutError, TimeoutError), StateFault.TIMEOUT),
    ((ConnectionRefusedError,), StateFault.REFUSED),
)
_GENERAL: Final[tuple[tuple[tuple[type[BaseException], ...], StateFault], ...]] = (
    ((RedisConnectionError, OSError), StateFault.UNREACHABLE),
    ((RedisError, RedisClusterException), StateFault.INVALID),
)


def store_gone(error: BaseException, where: str) -> StoreGone:
    """The error as the store's callers get it; ``where``: the server."""
    text = " ".join((str(error) or type(error).__name__).split())
    return StoreGone(f"{where}: {text[:_SHOWN_MOST]}", fault_of(error))


def fault_of(error: BaseException) -> StateFault:
    """The reason of a failure; INTERNAL for what neither Redis's client nor a socket raises."""
    for table in (_FAULTS, _GENERAL):
        for each in _chain(error):
            for kinds, fault in table:
                if isinstance(each, kinds):
                    return fault
    return StateFault.INTERNAL


def is_of_the_link(result: object) -> bool:
    """Whether a command's result is an error of the connection or of the topology; else it concerns the command alone.

    Redirections are followed by the client: one that is left over means that its map of the cluster is old.
    """
    if not isinstance(result, Exception):
        return False
    return not isinstance(result, ResponseError) or isinstance(result, (ClusterDownError, AskError, TryAgainError))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it."""
    each: BaseException | None = error
    for _ in range(_CHAIN_MOST):
        if each is None:
            return
        yield each
        each = each.__cause__ or each.__context__
