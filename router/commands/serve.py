"""The command ``serve``: the gateway of a config, in one process or several."""

from argparse import Namespace
from errno import EADDRINUSE

from router.arguments import Stop
from router.commands.shared import config_faults, log_to_stderr
from router.core.errors import CannotStart
from router.event_loop import run as run_loop
from router.gateway.app import Gateway
from router.gateway.rollout.offered import offered
from router.gateway.serving import serve
from router.gateway.workers.parent import Parent


def run(options: Namespace) -> None:
    """Serve until a signal."""
    log_to_stderr(options.verbose)
    with config_faults():
        plan, validation = offered(options.config, None)
    count = options.workers or plan.settings.listen.workers
    try:
        if count > 1:
            more = ["--verbose"] if options.verbose else []
            run_loop(Parent(plan, validation, options.config, count, *more).run())
        else:
            run_loop(serve(Gateway(plan, options.config)))
    except OSError as error:
        advice = f"; set another `listen.port` in {options.config}" if error.errno == EADDRINUSE else ""
        raise Stop(f"cannot serve: {error}{advice}") from None
    except CannotStart as error:
        raise Stop(f"cannot serve: {error}") from None
