"""The command ``demo``: the gateway and three emulated engines."""

from argparse import Namespace

from router import demo
from router.arguments import Stop
from router.commands.table import DEMO_PORT
from router.event_loop import run as run_loop


def run(options: Namespace) -> None:
    """Serve until a signal."""
    try:
        run_loop(demo.run(options.port, DEMO_PORT, options.speed))
    except OSError as error:
        raise Stop(f"cannot start the demo: {error.strerror}") from None
