"""Work over all backends in parts, between which the event loop serves streams.

A config of a thousand backends would otherwise stop every stream for as long as all of it takes. Must not depend on
what the work is.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final, TypeVar

PART: Final = 32  # backends between two turns of the event loop: some 10 ms of the most that is done for one

Item = TypeVar("Item")


async def in_turns(items: Iterable[Item], part: int = PART) -> AsyncIterator[Item]:
    """The items one by one; after each *part* of them the event loop has a turn. Items are read as they are needed."""
    for number, item in enumerate(items, 1):
        yield item
        if number % part == 0:
            await asyncio.sleep(0)
