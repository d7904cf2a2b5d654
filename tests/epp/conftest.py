"""The picker's tests run on the loop that serves in production."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop's, on which gRPC runs there too."""
    return {"uvloop": uvloop.new_event_loop}
