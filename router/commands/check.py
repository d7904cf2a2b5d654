"""The command ``check``: is this config good, does its store answer, and would its policies keep the SLO attainment?"""

import asyncio
import sys
from argparse import Namespace

from router.commands.shared import config_faults
from router.gateway.config.plan import Plan
from router.gateway.rollout.offered import offered
from router.gateway.rollout.validation import lines as replayed
from router.gateway.sources.sources import source_name
from router.gateway.state.servers import RedisServers


def run(options: Namespace) -> None:
    """Print what is good; every fault ends it, but not a store that fails: routers serve without it."""
    with config_faults():
        serving = offered(options.current, None)[0] if options.current else None
        plan, validation = offered(options.file, serving, options.trace)
    models = ", ".join(sorted({model for backend in plan.backends for model in backend.models}))
    count = len(plan.settings.backends)
    found = "".join(f" and those of {source_name(each)}" for each in plan.settings.discover)
    known = models or "read from the engines"
    lines = [f"{options.file}: OK, version {plan.version}: {count} backends{found}, models {known}"]
    against = options.current or "least_work"
    lines += [f"against {against}: {line}" for line in replayed(validation)]
    if plan.redis is not None:
        lines.append(f"shared state, pool {plan.settings.state.pool}: {_state(plan, plan.redis)}")
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _state(plan: Plan, servers: RedisServers) -> str:
    """What the store of the shared state looks like from here."""
    from router.gateway.state.survey import survey  # noqa: PLC0415 - its client library is slow to import, and few need it

    backends = {backend.name for backend in plan.settings.backends}
    return asyncio.run(survey(servers, plan.settings.state.pool, backends, plan.settings.state.timeout_s))
