"""The command ``cards``: the accelerators of the built-in table, or those named."""

from argparse import Namespace

from rich.console import Console

from router.core.cards import CARDS, card
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.planning.prices import load_prices
from simulator.report.catalogue import plain_card, print_cards


def run(options: Namespace) -> None:
    """List them."""
    with plain_errors():
        cards = [card(name) for name in options.names] or list(CARDS.values())
        prices = load_prices(options.prices)
    if wants_table(options.json):
        print_cards(Console(), cards, prices)
    if options.json is not None:
        write_json(options.json, [plain_card(each, prices.of(each)) for each in cards])
