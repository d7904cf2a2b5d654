"""The command ``top``: a running gateway's fleet, live in the terminal."""

from argparse import Namespace

from router.arguments import Stop
from router.event_loop import run as run_loop
from router.top import show


def run(options: Namespace) -> None:
    """Draw until a signal."""
    try:
        run_loop(show(options.url, options.key))
    except ConnectionError as error:
        raise Stop(str(error)) from None
