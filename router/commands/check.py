"""The command ``check``: is this config good, and would its policies keep the SLO attainment?"""

import sys
from argparse import Namespace

from router.commands.shared import config_faults
from router.gateway.rollout.offered import offered


def run(options: Namespace) -> None:
    """Print what is good; every fault ends it."""
    with config_faults():
        serving = offered(options.current, None)[0] if options.current else None
        plan, validation = offered(options.file, serving, options.trace)
    models = ", ".join(sorted({model for backend in plan.backends for model in backend.models}))
    count = len(plan.settings.backends)
    lines = [
        f"{options.file}: OK, version {plan.version}: {count} backends, models {models or 'read from the engines'}"
    ]
    for replay in validation.replays:
        attainment = f"SLO attainment {replay['candidate']:.1%}, of {options.current or 'least_work'}"
        lines.append(f"{replay['requests']} requests of {replay['workload']}: {attainment} {replay['current']:.1%}")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
