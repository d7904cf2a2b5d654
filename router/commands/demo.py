"""The command ``demo``: the gateway and three emulated engines."""

from argparse import Namespace

from router import demo
from router.event_loop import run as run_loop


def run(options: Namespace) -> None:
    """Serve until a signal."""
    run_loop(demo.run(options.port, options.speed))
