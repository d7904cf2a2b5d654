"""The memory table of the article, and the laws of what fits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.cards import CARDS, card
from router.core.models import MODELS, model
from router.core.physics import Shape, weight_bytes
from simulator.planning.fitting import PRECISIONS, SIZES, fits, plain_bytes, sized
from simulator.planning.layouts import growing, kv_left, smallest
from tests.commands import simulator_command

ARTICLE_GB = {
    "7B": (28, 14, 7, 7, 3.5),
    "13B": (52, 26, 13, 13, 6.5),
    "34B": (136, 68, 34, 34, 17),
    "72B": (288, 144, 72, 72, 36),
    "130B": (520, 260, 130, 130, 65),
    "176B": (704, 352, 176, 176, 88),
    "260B": (1040, 520, 260, 260, 130),
}
"""FP32, FP16, FP8, INT8, INT4: parameters x bytes."""


@pytest.mark.parametrize("size", SIZES)
def test_weights_are_parameters_times_bytes(size: str) -> None:
    """The article's rule; the model that stands for the size has within 15 % of it."""
    of = sized(size)
    found = tuple(of.billions * plain_bytes(stored) for stored in PRECISIONS)
    assert found == pytest.approx(ARTICLE_GB[size])
    assert weight_bytes(of.model, "fp16") / 1e9 == pytest.approx(ARTICLE_GB[size][1], rel=0.15)


@pytest.mark.parametrize(
    ("size", "name", "stored", "cards", "tp", "pp"),
    [
        ("7B", "A10", "fp16", 1, 1, 1),  # 14 of 24 GB
        ("7B", "A10", "fp32", 2, 2, 1),  # 28 GB
        ("13B", "A10", "fp16", 2, 2, 1),  # 26 GB
        ("13B", "A30", "int8", 1, 1, 1),  # 13 of 24 GB
        ("34B", "L20", "fp16", 2, 2, 1),  # 68 of 2 x 48 GB
        ("34B", "A800", "fp16", 1, 1, 1),  # 68 of 80 GB
        ("72B", "A800", "fp16", 4, 4, 1),  # 144 GB and 2.6 MB of KV a token
        ("72B", "H20", "fp16", 2, 2, 1),
        ("130B", "A800", "fp16", 4, 4, 1),
        ("176B", "A800", "fp16", 8, 8, 1),
        ("176B", "A10", "fp16", 24, 8, 3),  # beyond a node: pipeline stages
        ("260B", "H20", "fp16", 8, 8, 1),
        ("260B", "Kunlun", "fp16", 24, 8, 3),
    ],
)
def test_cards_by_size(size: str, name: str, stored: str, cards: int, tp: int, pp: int) -> None:
    """Enough memory for the weights, for one conversation of KV, and for what an engine holds back."""
    on, of = card(name), sized(size).model
    [[fit]] = fits(of, [on], [stored])
    assert (fit.cards, fit.tp, fit.pp) == (cards, tp, pp)
    assert cards * on.memory_bytes > weight_bytes(of, stored)


shapes = st.builds(
    Shape,
    st.sampled_from(list(CARDS.values())),
    st.sampled_from(list(MODELS.values())),
    precision=st.sampled_from(PRECISIONS),
)


@given(shapes, st.floats(1.0, 4.0), st.integers(1, 100_000))
def test_more_memory_never_fits_less(shape: Shape, more: float, kv_tokens: int) -> None:
    """A card that differs in memory alone needs no further card, and on as many it holds at least as much KV."""
    larger = replace(shape, card=replace(shape.card, memory_bytes=shape.card.memory_bytes * more))
    before, after = smallest(shape, kv_tokens), smallest(larger, kv_tokens)
    assert kv_left(larger) >= kv_left(shape)
    if before is not None:
        assert after is not None
        assert after[0].tp * after[0].pp <= before[0].tp * before[0].pp


@given(shapes)
def test_layouts_grow(shape: Shape) -> None:
    """Each layout has more cards than the one before, TP divides the heads and stays in a node."""
    found = list(growing(shape.card, shape.model))
    cards = [tp * pp for tp, pp in found]
    assert cards == sorted(set(cards))
    assert all(shape.model.heads % tp == 0 and tp <= shape.card.cards_per_node for tp, _ in found)


def test_the_command_shows_sizes_and_models(tmp_path: Path) -> None:
    """By default every size on every card; a model by its name; JSON beside the table."""
    out = tmp_path / "fit.json"
    whole = simulator_command(["fit", "--json", str(out)])
    assert whole.exit_code == 0, whole.output
    tables = json.loads(out.read_text())
    assert [table["size"] for table in tables] == list(SIZES)
    assert all(set(table["cards"]) == {*CARDS} - {"cpu"} for table in tables)
    assert "72 x 2 = 144 GB" in whole.stdout
    one = simulator_command(["fit", "--model", "qwen2.5-14b", "--cards", "a10", "--precision", "fp16,awq"])
    assert "qwen2.5-14b" in one.stdout
    assert "AWQ" in one.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "72Q"], "no model named '72Q'"),
        (["--cards", "a11"], "no card named 'a11'"),
        (["--precision", "fp7"], "no precision named 'fp7'"),
        (["--cards", ","], "--cards"),
    ],
)
def test_what_is_unknown_is_one_line(words: list[str], message: str) -> None:
    """And status 2."""
    result = simulator_command(["fit", *words])
    assert result.exit_code == 2
    assert message in result.stderr


def test_every_size_has_a_model() -> None:
    """Of the table."""
    assert all(model(name) for name in SIZES.values())
