"""The command ``fit``: how many cards of each kind hold a model at each precision, and the KV left beside it."""

from argparse import Namespace

from rich.console import Console

from router.core.cards import CARDS, card
from router.core.coefficients import precision
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.planning.fitting import PRECISIONS, SIZES, fits, sized
from simulator.report.fitting import plain_fit, print_fit, print_fit_notes


def run(options: Namespace) -> None:
    """Fit every model on every card."""
    with plain_errors():
        models = [sized(name) for name in options.model or SIZES]
        cards = [card(name) for name in options.cards] or [each for each in CARDS.values() if each.family != "cpu"]
        precisions = options.precision or list(PRECISIONS)
        for name in (*precisions, options.kv_precision or "bf16"):
            precision(name)
    memory, kv = options.memory_utilization, options.kv_precision
    tables = [(of, fits(of.model, cards, precisions, options.kv_tokens, memory, kv)) for of in models]
    if wants_table(options.json):
        console = Console()
        for of, rows in tables:
            print_fit(console, of, precisions, rows)
        print_fit_notes(console, options.kv_tokens, options.kv_precision)
    if options.json is not None:
        write_json(options.json, [plain_fit(of, precisions, rows) for of, rows in tables])
