"""Which accelerator this machine has, by the vendors' own tools, as a row of the table of cards.

Must not guess: a product that is no row, or a row with another memory, is no card at all, and forecasts then begin with
wide errors. A tool that hangs, as one does beside a card that has failed, is ended in bounded time.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from router.core.cards import card
from router.core.errors import UnknownCard
from router.gateway.registration.accelerators import TOOLS, Accelerator, Tool

_TIMEOUT_S: Final = 10.0
_ENDED_S: Final = 1.0  # that a killed tool may take to end: one that waits for a driver does not
_MEMORY_ERROR: Final = 0.12  # tools state more than engines can use
_MAKERS: Final = frozenset({"nvidia", "tesla", "geforce", "amd", "instinct", "radeon", "intel"})


async def card_here(tools: Sequence[Tool] = TOOLS, timeout_s: float = _TIMEOUT_S) -> str:
    """The name of the card that all accelerators of this machine are; empty where there is none, or several kinds."""
    found = await asyncio.gather(*(_reported(tool, timeout_s) for tool in tools))
    cards = {card_of(each) for accelerators in found for each in accelerators}
    return cards.pop() if len(cards) == 1 else ""


async def _reported(tool: Tool, timeout_s: float) -> list[Accelerator]:
    """What a tool reports; nothing where it is not there, fails or hangs."""
    try:
        process = await asyncio.create_subprocess_exec(
            *tool.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return []
    try:
        async with asyncio.timeout(timeout_s):
            text, _ = await process.communicate()
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started, which may have its output open
        with suppress(TimeoutError):
            async with asyncio.timeout(_ENDED_S):
                await process.wait()
        return []
    return tool.read(text.decode(errors="replace")) if process.returncode == 0 else []


def card_of(accelerator: Accelerator) -> str:
    """Its card; empty where none fits."""
    for product in accelerator.products:
        words = product.lower().replace("-", " ").split()
        parts = [word for word in words if word not in _MAKERS]
        for count in range(len(parts), 0, -1):
            if (name := _named("-".join(parts[:count]), accelerator.memory_bytes)) is not None:
                return name
    return ""


def _named(spelling: str, memory_bytes: int) -> str | None:
    """The card of that spelling, empty where it has another memory; None: there is no such card."""
    for each in (spelling, *(spelling.replace(f"sxm{digit}", "sxm") for digit in "2345" if f"sxm{digit}" in spelling)):
        with suppress(UnknownCard):
            found = card(each)
            return found.name if abs(memory_bytes / found.memory_bytes - 1.0) < _MEMORY_ERROR else ""
    return None
