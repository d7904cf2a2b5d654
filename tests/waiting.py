"""Waiting for what another task or process does: a condition with a bound, never a fixed time."""

import asyncio
from collections.abc import Awaitable, Callable

WITHIN_S = 120.0  # only so that a test that hangs ends: a machine may be busy with other things


async def until(condition: Callable[[], object]) -> None:
    """Return once *condition* holds; TimeoutError after ``WITHIN_S``."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - any condition, not one event
            await asyncio.sleep(0.001)


async def until_async(condition: Callable[[], Awaitable[object]], every_s: float = 0.005) -> None:
    """The same for a condition that has to be requested, so often."""
    async with asyncio.timeout(WITHIN_S):
        while not await condition():  # noqa: ASYNC110 - any condition, not one event
            await asyncio.sleep(every_s)
