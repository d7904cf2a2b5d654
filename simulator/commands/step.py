"""The command ``step``: one decode step line by line, by TP."""

from argparse import Namespace

from rich.console import Console

from router.config.profile import read_profile
from router.core.cards import card
from router.core.coefficients import precision
from router.core.models import model
from router.core.profile import NO_PROFILE
from router.engines import find
from simulator.calibration.files import read
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.planning.stepping import Question, best, steps
from simulator.report.stepping import plain_steps, print_steps


def run(options: Namespace) -> None:
    """Compute and show it."""
    with plain_errors():
        precision(options.precision), precision(options.kv_precision or "bf16")
        of = Question(
            model(options.model),
            card(options.card),
            options.precision,
            find(options.engine).prior,
            options.batch,
            options.context,
            read_profile(options.profile) if options.profile else NO_PROFILE,
            options.kv_precision,
        )
        measured = read(options.measurements)[0] if options.measurements else []
        found = steps(of, options.tp, measured)
    chosen = best(of, found)
    if wants_table(options.json):
        print_steps(Console(), of, found, chosen)
    if options.json is not None:
        write_json(options.json, plain_steps(of, found, chosen))
