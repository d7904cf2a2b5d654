"""The command ``init``: a config for engines of which the addresses are known, written from what they report."""

import asyncio
import sys
from argparse import Namespace

from router.arguments import Stop
from router.gateway.discovery.initial import commented


def run(options: Namespace) -> None:
    """Print the config; name the engines that did not answer on stderr. Exit status 1 when none did."""
    try:
        text, missing = asyncio.run(commented(options.backend, options.timeout))
    except ValueError as error:
        raise Stop(f"--backend: {error}") from None
    sys.stdout.write(text)
    sys.stderr.write("".join(f"{why}\n" for why in missing))
    if len(missing) == len(options.backend):
        raise Stop("no engine answered: the config has addresses alone")
