"""When a worker listens: once its sources have given their first sets, and their engines have been read and checked.

The other workers serve meanwhile. Each wait is bounded: a source that fails, or an engine that does not answer, keeps
no worker from what it can serve. Must not depend on what the gateway does with a request.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress

from router.gateway.app import Gateway
from router.gateway.sources.sources import FIRST_SETS_S

_log = logging.getLogger("headroom")


async def until_informed(gateway: Gateway, first_sets_s: float = FIRST_SETS_S) -> None:
    """Return when the worker can serve what it is there for, or when a limit is over, which is logged."""
    late = await _until_none(lambda: gateway.sources.unanswered, first_sets_s)
    if late:
        _log.warning(
            "no first set of backends from %s within %g s; serving without them until there is one",
            ", ".join(late),
            first_sets_s,
        )
    timeout_s = gateway.plan.settings.scrape.timeout_s
    await _until_none(lambda: gateway.discovery.untried, timeout_s)
    await _until_none(lambda: _unchecked(gateway), timeout_s)


def _unchecked(gateway: Gateway) -> list[str]:
    return [name for name, watch in gateway.engines.watches.items() if watch.health is None]


async def _until_none(left: Callable[[], Collection[str]], within_s: float) -> Collection[str]:
    """Wait until nothing is left, at most so long; what is left then."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while left():  # noqa: ASYNC110 - of several parts, none of which has an event for it
                await asyncio.sleep(0.01)
    return left()
