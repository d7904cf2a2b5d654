"""The command ``validate``: the gateway's question about a policy, and the verdict."""

import sys
from argparse import Namespace

from simulator.validation.validate import run as run_validation


def run(_: Namespace) -> int:
    """Read the question from stdin, write the verdict to stdout."""
    return 0 if run_validation(sys.stdin, sys.stdout) else 1
