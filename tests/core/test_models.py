"""Models are shapes that a name in any spelling finds, and whose KV follows from their heads."""

import pytest

from router.core.errors import UnknownModel
from router.core.models import MODELS, Model, make_model, model


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-3.1-70B", "llama-3-70b"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama-3-8b"),
        ("Qwen2-72B-Instruct", "qwen2.5-72b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("Falcon 180B", "falcon-180b"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("bigscience/bloom-7b1", "bloom-7b"),
        ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b"),
    ],
)
def test_spellings_of_hubs_find_the_model(spelling: str, name: str) -> None:
    """Owner, case and the tails of a release do not matter."""
    assert model(spelling).name == name


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    """The error says what was probably meant."""
    with pytest.raises(UnknownModel, match="llama-3-8b"):
        model("llama-3-9b")


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("llama-2-7b", 524_288),
        ("llama-3-8b", 131_072),
        ("chatglm2-6b", 28_672),
        ("deepseek-v3", 70_272),
        ("bloom-176b", 4_014_080),
    ],
)
def test_kv_bytes_follow_from_heads(name: str, kv_bytes: int) -> None:
    """MHA, GQA, MQA and MLA as published."""
    assert model(name).kv_bytes_per_token == kv_bytes


@pytest.mark.parametrize("each", MODELS.values(), ids=lambda each: each.name)
def test_a_published_shape_is_sane(each: Model) -> None:
    """Parameters agree with layers x hidden^2, so a slip of a digit shows."""
    blocks = each.active_params - each.embedding_params - each.vocab * each.hidden
    assert 5 < blocks / (each.layers * each.hidden**2) < 50 or each.experts
    assert each.expert_params < each.params
    assert each.kv_bytes_per_token < 1e7


@pytest.mark.parametrize(("name", "billions"), [("qwen3-30b-a3b", 28.99), ("mixtral-8x7b", 45.1), ("deepseek-v3", 654)])
def test_expert_parameters_follow_from_total_and_active(name: str, billions: float) -> None:
    """(total - active) are the idle experts; the whole is experts / idle of it."""
    assert model(name).expert_params / 1e9 == pytest.approx(billions, rel=0.01)


def test_an_operators_model_needs_only_what_cannot_be_derived() -> None:
    """KV heads and head size default to the plain transformer."""
    mine = make_model("mine", 7e9, 32, 4096, 32)
    assert (mine.kv_heads, mine.head_dim, mine.kv_bytes_per_token) == (32, 128, 524_288)
    assert mine.active_params == mine.params


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"layers": 0}, "layers"),
        ({"kv_heads": 64}, "kv_heads"),
        ({"active_params": 8e9}, "active_params"),
        ({"experts": 4, "experts_per_token": 5}, "experts_per_token"),
    ],
)
def test_an_impossible_shape_is_refused_by_field(changes: dict[str, float], place: str) -> None:
    """The error names what to mend."""
    given = {"params": 7e9, "layers": 32, "hidden": 4096, "heads": 32} | changes
    with pytest.raises(ValueError, match=place):
        make_model("mine", **given)  # type: ignore[arg-type]
