"""The command ``autoscale``: advice on replicas."""

from argparse import Namespace

from router.autoscaler.loop import Autoscaler
from router.commands.shared import config_faults, log_to_stderr
from router.event_loop import run as run_loop
from router.gateway.config.plan import plan_file


def run(options: Namespace) -> None:
    """Advise once, or until a signal."""
    log_to_stderr(options.verbose)
    with config_faults():
        plan = plan_file(options.config)
    run_loop(Autoscaler(plan, options.key).run(once=options.once))
