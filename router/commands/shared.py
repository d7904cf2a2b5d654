"""What several commands do alike: faults of a config as lines, logs on stderr."""

import logging
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from router.arguments import Stop
from router.core.errors import ConfigError

if TYPE_CHECKING:
    from router.gateway.app import Gateway


@contextmanager
def config_faults() -> Iterator[None]:
    """A bad config ends the command with a line a fault."""
    try:
        yield
    except ConfigError as error:
        raise Stop("\n".join(error.lines)) from None


def log_to_stderr(verbose: bool, who: str = "") -> None:
    """Plain lines for machines, coloured ones for a terminal; *who* begins each message."""
    terminal = sys.stderr.isatty()
    handler = _terminal_handler() if terminal else logging.StreamHandler(sys.stderr)
    form = f"{who}%(message)s" if terminal else f"%(asctime)s %(levelname)s %(name)s: {who}%(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=[handler], datefmt="%Y-%m-%dT%H:%M:%S%z")
    logging.getLogger("httpx").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # a log in the watched folder would feed itself
    if verbose:
        logging.getLogger("headroom").setLevel(logging.DEBUG)


def _terminal_handler() -> logging.Handler:
    from rich.console import Console  # noqa: PLC0415 - a service on a server has no use for it
    from rich.logging import RichHandler  # noqa: PLC0415 - the same

    return RichHandler(console=Console(stderr=True, soft_wrap=True, highlight=False), show_path=False)


async def scaled(gateway: "Gateway", serving: Coroutine[Any, Any, None]) -> None:
    """Serve, with the autoscaler inside where the config has it there."""
    if not gateway.plan.settings.autoscale.inside:
        await serving
        return
    from router.autoscaler.inside import Inside  # noqa: PLC0415 - other routers start without it

    try:
        inside = Inside(gateway)
    except ConfigError:
        serving.close()
        raise
    await inside.beside(serving)
