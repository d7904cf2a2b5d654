"""Lists of cards and models: facts with source and grade, prices with their date or as unknown."""

import json
from pathlib import Path

import pytest

from router.core.cards import CARDS, card
from router.core.models import MODELS
from simulator.planning.prices import Prices, load_prices
from tests.commands import simulator_command


def test_every_card_is_listed_with_source_and_grade() -> None:
    """And as many models."""
    cards = json.loads(simulator_command(["cards", "--json", "-"]).stdout)
    models = json.loads(simulator_command(["models", "--json", "-"]).stdout)
    assert [each["name"] for each in cards] == list(CARDS)
    assert [each["name"] for each in models] == list(MODELS)
    assert all(each["source"] and each["confidence"] in "ABCDE" for each in [*cards, *models])


def test_a_price_without_a_source_is_unknown() -> None:
    """One with a source has that and its date."""
    result = simulator_command(["cards", "l20", "h100", "--json", "-"])
    l20, h100 = json.loads(result.stdout)
    assert l20["price"] is None
    assert h100["price"] == {
        "usd_per_hour": 2.99, "source": "dstackai/benchmarks, USD an hour of a node / 8", "date": "2024-11",
    }  # fmt: skip
    assert "unknown" in simulator_command(["cards", "l20"]).stdout


def test_a_price_that_the_card_table_quotes_is_known() -> None:
    """A row that names a source of its price has that source here too."""
    for each in CARDS.values():
        if any(word in each.source for word in ("price", "AWS")):
            assert Prices().of(each).known, each.name


def test_prices_of_the_user(tmp_path: Path) -> None:
    """A bare number or an entry with date and source; any spelling of the card."""
    path = tmp_path / "prices.yaml"
    path.write_text("prices:\n  L20: 0.9\n  h100: {usd_per_hour: 2, date: 2026-11-01, source: our contract}\n")
    prices = load_prices(path)
    assert prices.of(card("l20")).usd_per_hour == 0.9
    assert prices.of(card("l20")).known
    assert prices.of(card("h100-sxm")).date == "2026-11-01"
    assert prices.of(card("h100-sxm")).source.endswith("our contract")
    assert not prices.of(card("a10")).known


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prices: {l21: 1}", ":1: prices: no card named 'l21'"),
        ("prices:\n  l20: -1", ":2: prices.l20.usd_per_hour"),
        ("prices:\n  l20: cheap", ":2: prices.l20"),
        ("prices:\n  l20: .nan", ":2: prices.l20.usd_per_hour"),
        ("prices: {}", "needs at least one entry"),
        ("l20: 1", "unknown key"),
    ],
)
def test_a_bad_price_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    """File, line, key."""
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    result = simulator_command(["cards", "--prices", str(path)])
    assert result.exit_code == 2
    assert message in result.stderr
