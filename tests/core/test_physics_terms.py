"""Terms that a batch-1 dense model on a data-centre GPU of one vendor does not show."""

from dataclasses import replace

import pytest

from router.core.cards import CARDS, card
from router.core.coefficients import efficiency, row_names
from router.core.models import model
from router.core.physics import (
    Shape,
    cards_needed,
    coefficients,
    decode_step_s,
    ideal,
    kv_capacity_tokens,
    prefill_s,
    step_s,
    weight_bytes,
)
from router.core.tables import FAMILIES


def decode_s(shape: Shape, batch: int, context_each: int = 1000) -> float:
    """A decode step."""
    return float(decode_step_s(coefficients(shape), batch, batch * context_each))


def test_latent_attention_is_read_by_every_rank_and_computed_by_heads() -> None:
    """128 heads on one card do 242 FLOPs a byte; eight ranks do 16 heads each, on a tile of 64."""
    one, eight, sixteen = (ideal(Shape(card("h200"), model("deepseek-v3"), tp)) for tp in (1, 8, 16))
    assert one.context_s == eight.context_s
    assert one.context_flop_s == 2 * eight.context_flop_s == 2 * sixteen.context_flop_s
    assert ideal(Shape(card("h200"), model("llama-3-70b"), 8)).context_flop_s == 0
    intensity = one.context_flop_s * 989e12 / (one.context_s * 4800e9)
    assert intensity == pytest.approx(242, rel=0.01)


def test_latent_prompts_score_the_position_too() -> None:
    """QK^T over 192 elements and PV over 128, where a plain head has 128 in both."""
    mla = model("deepseek-v3")
    latent, plain = (ideal(Shape(card("h200"), replace(mla, latent_kv=flag), 8)).pair_s for flag in (True, False))
    assert latent / plain == pytest.approx((192 + 128) / (128 + 128))


def test_fp8_of_2024_quantises_activations_layer_by_layer() -> None:
    """About 26 us a layer in vLLM of 2024; today it is fused with the norm before."""

    def quantising_s(engine: str) -> float:
        fp8, plain = (efficiency(engine, "hopper", "nvlink", stored).layer_s for stored in ("fp8", "bf16"))
        return fp8 - plain

    assert 18e-6 < quantising_s("vllm-2024") < 34e-6
    assert 1e-6 < quantising_s("vllm") < 6e-6


def test_experts_in_native_fp4_are_read_as_they_lie() -> None:
    """Block scales are applied in the matrix units: well above the half of the sheet of formats that are unpacked."""
    native = efficiency("vllm", "blackwell", "nvlink", "fp4").experts_read
    unpacked = efficiency("vllm", "blackwell", "nvlink", "mxfp4").experts_read
    assert 0.58 < native < 0.8
    assert native > 1.2 * unpacked


def test_young_kernels_fall_behind_with_the_batch() -> None:
    """vLLM of 2024 on MI300X: near its bandwidth alone, a third as fast as believed of NVIDIA's kernels at 64."""
    shape = Shape(card("mi300x"), model("llama-2-7b"), engine="vllm-2024")
    like_hopper = replace(shape, card=replace(shape.card, family="hopper"))
    alone, many = (decode_s(shape, b) / decode_s(like_hopper, b) for b in (1, 64))
    assert 1.2 < alone < 2.0
    assert many > 1.5 * alone
    today = replace(shape, engine="vllm")
    assert decode_s(today, 64) < 0.7 * decode_s(shape, 64)
    assert row_names("vllm-2023", "cdna", "", "bf16")["family"] == "cdna-2024"
    assert row_names("vllm", "cdna", "", "bf16")["family"] == "cdna"


def test_launches_that_no_graph_saves_bound_intels_gpus() -> None:
    """A 7B model streams on a Max 1550 in 6 ms at its sheet; 32 layers of launches take 64."""
    shape = Shape(card("max-1550"), model("llama-2-7b"), engine="vllm-2024")
    assert 0.06 < decode_s(shape, 1) < 0.12
    assert decode_s(shape, 64) > 2 * decode_s(shape, 1)


def test_a_compiler_that_fuses_a_layer_pays_few_launches() -> None:
    """Gaudi 2 replays whole layers and links all chips to all: about 0.64 of what a card of no known kind takes."""
    shape = Shape(card("gaudi2"), model("llama-3-70b"), 8)
    assert 0.5 < decode_s(shape, 1) / decode_s(replace(shape, card=replace(shape.card, family="?", link="?")), 1) < 0.75


@pytest.mark.parametrize("name", ["rtx-4090", "rtx-3090"])
@pytest.mark.parametrize("stored", ["fp16", "q4", "q8"])
def test_ggml_runs_prompts_on_geforce_at_about_the_listed_compute(name: str, stored: str) -> None:
    """It accumulates FP16 in FP16, at twice the figure with FP32 accumulation: 0.9 to 1.35 of that is measured."""
    on, runs = card(name), model("llama-2-7b")
    took_s = prefill_s(coefficients(Shape(on, runs, precision=stored, engine="llamacpp")), 2048, 2048)
    listed_s = 2 * (runs.params - runs.embedding_params) * 2048 / on.flops_per_s["fp16"]
    assert 0.75 < listed_s / took_s < 1.35
    assert Shape(on, runs, precision="fp16").stored == "fp16"


def test_triton_streams_tokens_through_more_processes() -> None:
    """A gap is longer alone, and longer still with many."""
    shape = Shape(card("h100"), model("llama-3-8b"))
    more = [
        decode_s(replace(shape, engine="triton"), b) - decode_s(replace(shape, engine="tensorrt-llm"), b)
        for b in (1, 64)
    ]
    assert 0.8e-3 < more[0] < 2.5e-3
    assert more[1] > more[0] + 2e-3


def test_a_first_token_of_a_mixture_takes_sglang_longer_than_its_step() -> None:
    """150 to 340 ms were measured at low load; those that decode meanwhile wait no longer for it."""
    shape = Shape(card("h200"), model("deepseek-v3"), 8, precision="fp8", engine="sglang")
    c = coefficients(shape)
    assert 0.15 < prefill_s(c, 1024) < 0.36
    assert step_s(c, 1, 1000, 1024) < 0.1


def test_linear_attention_and_looped_experts_cost_launches() -> None:
    """Qwen3.5 has three layers of linear attention for one of full; transformers runs 64 experts one after another."""
    hybrid = model("qwen3.5-397b-a17b")
    with_it, without = (
        coefficients(Shape(card("h200"), replace(hybrid, linear_share=share), 8, precision="fp8")).fixed_s
        for share in (0.75, 0.0)
    )
    assert 45 * 20e-6 < with_it - without < 45 * 90e-6
    loop = Shape(card("a100"), model("qwen2-57b-a14b"), 2, engine="transformers")
    assert decode_s(loop, 1) > 0.12
    assert decode_s(replace(loop, engine="vllm"), 1) < 0.05


def test_memory_held_back_follows_the_largest_step_of_the_card() -> None:
    """An engine profiles 2048 tokens of 256 sequences on a small card, 8192 of 1024 on a large one."""

    def held_gb(name: str) -> float:
        shape = Shape(card(name), model("llama-3-8b"))
        kv = kv_capacity_tokens(shape) * shape.model.kv_bytes_per_token
        return (0.9 * shape.card.memory_bytes - weight_bytes(shape.model, "bf16") - kv) / 1e9

    assert held_gb("l4") == pytest.approx(1.2, abs=0.1)
    assert held_gb("a10") == pytest.approx(1.2, abs=0.1)
    assert held_gb("h100") == pytest.approx(2.55, abs=0.15)


def test_a_domain_of_72_cards_is_one_node() -> None:
    """What eight cards cannot hold is split over sixteen of an NVL72, not over stages."""
    assert cards_needed(model("kimi-k2"), card("gb200"), "bf16") == (16, 1)
    assert cards_needed(model("kimi-k2"), card("b200"), "bf16") == (8, 2)
    assert card("GB300").cards_per_node == 72


def test_every_card_but_guesses_has_a_family_of_its_own() -> None:
    """A card is one row of facts; what its family's kernels reach is a row of the tables."""
    assert {each.family for each in CARDS.values()} <= set(FAMILIES)
