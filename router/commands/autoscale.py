"""The command ``autoscale``: advice on replicas, applied by the target of the config."""

from argparse import Namespace

from router.autoscaler.process import advise_once
from router.autoscaler.process import run as run_autoscaler
from router.commands.shared import config_faults, log_to_stderr
from router.event_loop import run as run_loop
from router.gateway.config.plan import plan_file


def run(options: Namespace) -> None:
    """Advise once, or until a signal."""
    log_to_stderr(options.verbose)
    with config_faults():
        plan = plan_file(options.config)
        work = advise_once if options.once else run_autoscaler
        run_loop(work(plan, options.config, options.key))
