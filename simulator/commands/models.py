"""The command ``models``: the models of the built-in table, or those named."""

from argparse import Namespace

from rich.console import Console

from router.core.models import MODELS, model
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.report.catalogue import plain_model, print_models


def run(options: Namespace) -> None:
    """List them."""
    with plain_errors():
        models = [model(name) for name in options.names] or list(MODELS.values())
    if wants_table(options.json):
        print_models(Console(), models)
    if options.json is not None:
        write_json(options.json, [plain_model(each) for each in models])
