"""The command ``serve``: the gateway of a config or of some addresses, in one process or several."""

from argparse import Namespace
from errno import EADDRINUSE

from router.arguments import Stop, WrongUse
from router.commands.shared import config_faults, log_to_stderr, scaled
from router.commands.table import SERVE_PORT
from router.core.errors import CannotStart, ConfigError
from router.event_loop import run as run_loop
from router.gateway.app import Gateway
from router.gateway.discovery.initial import backends_of, short_config
from router.gateway.rollout.offered import offered
from router.gateway.serving import serve
from router.gateway.telemetry import process_log
from router.gateway.workers.parent import Parent


def run(options: Namespace) -> None:
    """Serve until a signal."""
    if (options.config is None) == (not options.backend):
        raise WrongUse("give either --config FILE or --backend URL", "headroom serve")
    if options.config is not None and options.port is not None:
        raise WrongUse(f"--port: goes with --backend; in {options.config} it is listen.port", "headroom serve")
    log_to_stderr(options.verbose)
    if options.config is not None:
        _serve(options, f"set another `listen.port` in {options.config}")
        return
    try:
        backends = backends_of(options.backend)
    except ValueError as error:
        raise Stop(f"--backend: {error}") from None
    with short_config(backends, SERVE_PORT if options.port is None else options.port) as options.config:
        _serve(options, "choose another with --port")


def _serve(options: Namespace, other_port: str) -> None:
    with config_faults():
        plan, validation = offered(options.config, None)
    count = options.workers or plan.settings.listen.workers
    process_log.install(plan.settings.log.format)
    try:
        if count > 1:
            more = ["--verbose"] if options.verbose else []
            run_loop(Parent(plan, validation, options.config, count, *more).run())
        else:
            gateway = Gateway(plan, options.config)
            run_loop(scaled(gateway, serve(gateway)))
    except ConfigError as error:
        raise Stop("\n".join(error.lines)) from None
    except OSError as error:
        advice = f"; {other_port}" if error.errno == EADDRINUSE else ""
        raise Stop(f"cannot serve: {error}{advice}") from None
    except CannotStart as error:
        raise Stop(f"cannot serve: {error}") from None
