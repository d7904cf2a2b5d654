"""The gateway's tests run on the loop that serves in production."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, whose transports differ from asyncio's in when they write and what they report."""
    return {"uvloop": uvloop.new_event_loop}
