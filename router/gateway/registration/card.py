"""Which accelerator this machine has, by the vendor's own tool, as a row of the table of cards.

Must not guess: a product that is no row, or a row with another memory, is no card at all, and forecasts then begin with
wide errors.
"""

import asyncio
import re
from contextlib import suppress
from typing import Final

from router.core.cards import card
from router.core.errors import UnknownCard

_COMMAND: Final = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S: Final = 10.0
_MEMORY_ERROR: Final = 0.12  # tools state more than engines can use
_MIB: Final = 2**20


async def card_here(command: tuple[str, ...] = _COMMAND) -> str:
    """The name of the card that all GPUs of this machine are; empty where there is none, or several kinds."""
    with suppress(OSError, TimeoutError):
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                text, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        cards = {card_of_line(line) for line in text.decode(errors="replace").splitlines() if line.strip()}
        return cards.pop() if len(cards) == 1 and process.returncode == 0 else ""
    return ""


def card_of_line(line: str) -> str:
    """The card of one line ``NVIDIA H100 80GB HBM3, 81559``; empty where none fits."""
    product, _, mib = line.rpartition(",")
    words = re.sub(r"sxm\d", "sxm", product.lower().replace("-", " "))
    parts = [word for word in words.split() if word not in {"nvidia", "tesla", "geforce"}]
    for count in range(len(parts), 0, -1):
        try:
            found = card("-".join(parts[:count]))
        except UnknownCard:
            continue
        stated = int(mib) * _MIB if mib.strip().isdigit() else 0
        return found.name if abs(stated / found.memory_bytes - 1.0) < _MEMORY_ERROR else ""
    return ""
