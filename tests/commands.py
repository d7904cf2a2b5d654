"""The command line as a process of its own."""

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[Process]:
    """``python -m router ARGUMENTS``, killed at the end if it is still there."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "router", *arguments, stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
