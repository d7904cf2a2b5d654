"""The command ``epp``: an endpoint picker for Envoy and gateways like it, of a config."""

from argparse import Namespace

from router.arguments import Stop
from router.commands.shared import config_faults, log_to_stderr
from router.core.errors import CannotStart
from router.event_loop import run as run_loop
from router.gateway.rollout.offered import offered

try:
    from router.gateway.epp.app import EndpointPicker
except ImportError as error:
    raise Stop(f"headroom epp: {error}; install it with: pip install 'headroom-router[epp]'") from None


def run(options: Namespace) -> None:
    """Serve until a signal."""
    log_to_stderr(options.verbose)
    with config_faults():
        plan, _ = offered(options.config, None)
    if plan.settings.listen.workers > 1:
        raise Stop(
            f"{options.config}: listen.workers is {plan.settings.listen.workers}; an endpoint picker is one process: "
            "run several, with state.redis_url"
        )
    try:
        run_loop(EndpointPicker(plan, options.config).serve())
    except OSError as error:
        raise Stop(f"cannot serve: {error}") from None
    except CannotStart as error:
        raise Stop(f"cannot serve: {error}") from None
