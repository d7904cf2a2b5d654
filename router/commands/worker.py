"""The command ``worker``: one of the processes that ``serve --workers`` starts."""

import socket
from argparse import Namespace

from router.arguments import Stop
from router.commands.shared import log_to_stderr, scaled
from router.core.errors import ConfigError
from router.event_loop import run as run_loop
from router.gateway.telemetry import process_log
from router.gateway.worker_identity import WorkerIdentity
from router.gateway.workers.member import worker


def run(options: Namespace) -> None:
    """Serve on the parent's port until a signal, or the end of the parent."""
    log_to_stderr(options.verbose, f"worker {options.slot}: ")
    place = WorkerIdentity(options.folder, options.slot, options.slots, options.name)
    try:
        with socket.socket(fileno=options.parent) as pair:
            made = worker(options.config, place)
            process_log.install(made.gateway.plan.settings.log.format, str(options.slot))
            run_loop(scaled(made.gateway, made.serve(options.port, pair)))
    except (OSError, ConfigError) as error:
        raise Stop(f"worker {options.slot} cannot serve: {error}") from None
