"""Cards are data-sheet facts that a name in any spelling finds."""

import pytest

from router.core import cards
from router.core.cards import CARDS, Card, card
from router.core.errors import UnknownCard
from router.core.models import model
from router.core.physics import Shape, coefficients, kv_capacity_tokens

ARTICLE = ["H20", "L20", "A10", "A30", "A800", "H800", "910", "910A", "910B", "Kunlun", "A100", "L40s", "4090"]


@pytest.mark.parametrize("name", ARTICLE)
def test_every_card_of_the_article_is_found_by_its_common_name(name: str) -> None:
    """An operator writes the name people use."""
    assert card(name).name in CARDS


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("A100-SXM-80GB", "a100-80g-sxm"),
        ("NVIDIA H100", "h100-sxm"),
        ("Ascend-910B?", "ascend-910b"),
        ("Ascend-910C(Atlas A3)", "ascend-910c"),
        ("Kunlun-R200", "kunlun-2-pcie"),
    ],
)
def test_spellings_of_measurement_files_find_the_card(spelling: str, name: str) -> None:
    """Case, maker, brackets and doubts do not matter."""
    assert card(spelling).name == name


def test_an_unknown_card_is_refused_with_the_nearest_names() -> None:
    """The error says what was probably meant."""
    with pytest.raises(UnknownCard, match="h100-sxm"):
        card("h100-smx")


@pytest.mark.parametrize("each", CARDS.values(), ids=str)
def test_a_sheet_is_sane(each: Card) -> None:
    """Bytes, seconds and FLOP/s: a slip of a thousand shows."""
    assert 10e9 < each.memory_bytes < 400e9
    assert 10e9 < each.bandwidth_bytes_per_s < 10e12
    assert 0.1e12 < each.flops_per_s["fp16"] < 10e15
    assert 1e9 < each.link_bytes_per_s <= 0.5 * each.bandwidth_bytes_per_s
    assert each.source
    assert each.confidence in "ABCD"


@pytest.mark.parametrize("name", ["V100", "T4"])
def test_cards_without_bf16_do_not_claim_it(name: str) -> None:
    """Volta and Turing compute fp16 only."""
    assert "bf16" not in card(name).flops_per_s


def test_a_card_of_an_operator_is_checked() -> None:
    """Nonsense is refused by field."""
    with pytest.raises(ValueError, match="bandwidth_bytes_per_s"):
        Card("mine", 1e9, 0.0, {"fp16": 1e12}, "pcie", 1e9, 8, 1.0, "me", "D")
    with pytest.raises(ValueError, match="flops_per_s"):
        Card("mine", 1e9, 1e9, {}, "pcie", 1e9, 8, 1.0, "me", "D")


def test_a_new_card_is_one_row() -> None:
    """A row as CONTRIBUTING describes it passes what every card is held to, and gives step times and KV capacity."""
    row = cards._card("toy-48", 48, 864, cards._flops(181, 362), "pcie", 32, 0.9, "toy", "D", "a made-up sheet")
    test_a_sheet_is_sane(row)
    shape = Shape(row, model("qwen2.5-7b"))
    assert 0 < coefficients(shape).fixed_s < 1
    assert 100_000 < kv_capacity_tokens(shape) < 1_000_000


@pytest.mark.parametrize("each", CARDS.values(), ids=str)
def test_every_card_gives_step_times(each: Card) -> None:
    """For a model small enough for all of them, a family without a row of the efficiency tables included."""
    assert 0 < coefficients(Shape(each, model("qwen2.5-0.5b"), precision="fp16")).fixed_s < 1
