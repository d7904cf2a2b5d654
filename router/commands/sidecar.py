"""The command ``sidecar``: engines' metrics into Redis."""

from argparse import Namespace

from router.arguments import Stop
from router.commands.shared import config_faults, log_to_stderr
from router.event_loop import run as run_loop
from router.gateway.config.plan import plan_file
from router.gateway.sidecar import sidecar


def run(options: Namespace) -> None:
    """Read and publish until a signal."""
    log_to_stderr(options.verbose)
    with config_faults():
        plan = plan_file(options.config)
    if plan.redis is None:
        raise Stop(f"{options.config}: state.redis_url or state.redis is missing: a sidecar publishes to Redis")
    run_loop(sidecar(plan, options.config))
