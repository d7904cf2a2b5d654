"""The command ``autoscale``: advice on replicas, applied by the target of the config."""

import os
from argparse import Namespace

from router.autoscaler.loop import Autoscaler
from router.commands.shared import config_faults, log_to_stderr
from router.core.errors import ConfigError
from router.event_loop import run as run_loop
from router.gateway.config.plan import Plan, plan_file
from router.targets import Target


def run(options: Namespace) -> None:
    """Advise once, or until a signal."""
    log_to_stderr(options.verbose)
    with config_faults():
        plan = plan_file(options.config)
        target = _target(plan)
    run_loop(Autoscaler(plan, target, options.key).run(once=options.once))


def _target(plan: Plan) -> Target:
    """The target of the config, with its secrets from the environment."""
    try:
        return plan.target.make(os.environ)
    except ValueError as error:
        raise ConfigError([f"autoscale.target: {error}"]) from None
