"""The command ``replay-record``: does a fresh core decide as recorded?"""

import sys
from argparse import Namespace

from router.arguments import Stop
from router.core.errors import RecordError
from router.gateway.telemetry.recorder import differences


def run(options: Namespace) -> int:
    """Print every decision that differs."""
    try:
        found = list(differences(options.file))
    except (RecordError, OSError) as error:
        raise Stop(str(error)) from None
    for line, event, answer in found:
        where = f"{options.file}:{line}: {event['event']}"
        sys.stdout.write(f"{where}\n  recorded: {event['answer']}\n  now:      {answer}\n")
    sys.stdout.write(f"{len(found)} differences\n")
    return 1 if found else 0
