"""Physics keeps to the floors of the hardware and to the shape of the roofline."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.cards import CARDS, card
from router.core.errors import DoesNotFit
from router.core.models import MODELS, model
from router.core.physics import (
    LINEAR,
    Shape,
    StepCoefficients,
    attention_pairs,
    cards_needed,
    coefficients,
    decode_step_s,
    ideal,
    kv_capacity_tokens,
    measured,
    prefill_s,
    speculative_tpot_s,
    step_s,
    step_terms,
    weight_bytes,
)
from router.core.step import experts_touched
from router.core.tables import ENGINES

names = st.sampled_from
shapes = st.builds(
    Shape,
    st.sampled_from(list(CARDS.values())),
    st.sampled_from(list(MODELS.values())),
    precision=st.sampled_from(["bf16", "fp16", "fp8", "int8", "int4", "fp4", "w8a16"]),
    engine=st.sampled_from([*ENGINES, "never-seen"]),
)
batches = st.integers(1, 512)
contexts = st.integers(0, 100_000)
prompts = st.integers(1, 100_000)


@pytest.mark.parametrize(("tp", "floor_s", "low_s", "high_s"), [(1, 20e-3, 23e-3, 27e-3), (2, 10e-3, 14e-3, 18e-3)])
def test_the_articles_example_comes_out(tp: int, floor_s: float, low_s: float, high_s: float) -> None:
    """6B FP16 on A10: floor 20 ms at TP1 and 10 ms at TP2; about 25 and 15 to 18 in truth."""
    six_b = replace(model("chatglm-6b"), params=6e9, active_params=6e9)
    shape = Shape(card("A10"), six_b, tp, precision="fp16")
    assert weight_bytes(six_b, "fp16") / tp / shape.card.bandwidth_bytes_per_s == pytest.approx(floor_s)
    assert low_s < decode_step_s(coefficients(shape), 1, 100) < high_s


@given(shapes, batches, contexts)
def test_a_step_is_never_faster_than_bandwidth_allows(shape: Shape, batch: int, context: int) -> None:
    """Active weights and KV cross the memory bus once a step, at the sheet's speed at best."""
    quantised = 0.5 * (shape.model.active_params - shape.model.embedding_params)
    kv = context * shape.model.kv_bytes_per_token * (1 - shape.model.windowed_share)
    if shape.precision in {"bf16", "fp16"}:
        quantised *= 4
    floor_s = 0.97 * (quantised + kv) / shape.card.bandwidth_bytes_per_s
    assert decode_step_s(coefficients(shape), batch, context) >= floor_s


@given(shapes, prompts)
def test_a_prompt_is_never_faster_than_compute_allows(shape: Shape, prompt: int) -> None:
    """Two FLOPs a parameter a token at the card's best peak."""
    flops = 2.0 * (shape.model.active_params - shape.model.embedding_params) * prompt
    assert prefill_s(coefficients(shape), prompt) >= flops / max(shape.card.flops_per_s.values())


@given(shapes, batches, contexts, prompts)
def test_more_work_is_never_faster(shape: Shape, batch: int, context: int, prompt: int) -> None:
    """Monotone in batch, context, prompt and cached context."""
    c = coefficients(shape)
    base = step_s(c, batch, context, prompt, context)
    assert step_s(c, batch + 1, context, prompt, context) >= base
    assert step_s(c, batch, context + 1, prompt, context) >= base
    assert step_s(c, batch, context, prompt + 1, context) >= base
    assert step_s(c, batch, context, prompt, context + 1) >= base
    assert prefill_s(c, prompt + 1) >= prefill_s(c, prompt) * (1 - 1e-9)


@given(shapes, batches, contexts, st.sampled_from([1, 2, 4]))
def test_tp_is_never_super_linear(shape: Shape, batch: int, context: int, tp: int) -> None:
    """Twice the cards never take less than half the time."""
    if shape.model.heads % (2 * tp):
        return
    one, two = (coefficients(replace(shape, tp=n)) for n in (tp, 2 * tp))
    assert 2 * decode_step_s(two, batch, context) >= decode_step_s(one, batch, context)
    assert 2 * prefill_s(two, 1000) >= prefill_s(one, 1000)


@given(shapes)
def test_every_term_has_an_error(shape: Shape) -> None:
    """The prior of a correction is proper for each coefficient."""
    sigma = coefficients(shape).sigma
    assert len(sigma) == len(LINEAR)
    assert all(0 < each < 2 for each in sigma)


def test_a_card_never_seen_has_wider_errors_than_a_measured_one() -> None:
    """Ascend and Kunlun are guesses, and say so."""
    known, guessed = (coefficients(Shape(card(n), model("llama-3-8b"), precision="fp16")) for n in ("h100", "kunlun"))
    assert guessed.sigma[0] > 1.5 * known.sigma[0]


def test_an_old_engine_is_slower_than_todays_on_the_same_card() -> None:
    """Llama-70B TP8 on H100 took 30.5 ms with a 2023 vLLM and 13.8 ms with 0.6."""
    shape = Shape(card("h100"), model("llama-2-70b"), tp=8)
    old, new = (decode_step_s(coefficients(replace(shape, engine=e)), 1, 500) for e in ("vllm-2023", "vllm"))
    assert old > 1.7 * new


def test_fp8_gains_less_than_half_the_bytes_suggest() -> None:
    """FP8 is not bf16 with half the bytes."""
    shape = Shape(card("h100"), model("llama-3-70b"), tp=4)
    half = coefficients(replace(shape, precision="fp8"))
    assert 0.5 < half.weights_s / coefficients(shape).weights_s < 0.75


def test_a_mixture_reads_more_experts_as_the_batch_grows() -> None:
    """One token reads its own experts, many read them all."""
    c = coefficients(Shape(card("h100"), model("mixtral-8x7b"), tp=4))
    one, many = (decode_step_s(c, b, 0) for b in (1, 64))
    assert one == pytest.approx(c.fixed_s + c.seq_s + c.experts_s * 2 / 8, rel=0.05)
    assert many > 2.0 * one


def test_a_latent_cache_is_not_split_by_tp_and_heads_are() -> None:
    """MLA copies its latent to every rank; GQA splits up to its KV heads."""
    mla, gqa = model("deepseek-v3"), model("llama-3-70b")
    each = [[ideal(Shape(card("h200"), m, tp=tp)).context_s for tp in (1, 8, 16)] for m in (mla, gqa)]
    assert each[0][0] == each[0][1]
    assert each[1][0] == pytest.approx(8 * each[1][1])
    assert each[1][1] == each[1][2]


def test_both_roofs_bind_where_they_meet() -> None:
    """At the knee a step takes more than either roof alone, and less than their sum."""
    c = coefficients(Shape(card("h100"), model("llama-3-8b")))
    knee = c.weights_s / c.gemm_token_s
    roof_s = step_s(c, 0, 0, knee) - c.fixed_s + c.weights_s
    assert 1.1 * c.weights_s < roof_s < 1.9 * c.weights_s


def test_all_reduce_over_pcie_costs_more_than_over_nvlink() -> None:
    """At 16 MB about nine times, so prefill of a TP2 pair shows it."""
    pair = [coefficients(Shape(card(n), model("llama-2-13b"), tp=2)) for n in ("a100-80g-pcie", "a100-80g-sxm")]
    over_pcie, over_nvlink = (c.token_s - c.gemm_token_s for c in pair)
    assert over_pcie > 5 * over_nvlink


def test_pipeline_stages_spread_the_batch_and_not_the_weights() -> None:
    """A token passes every stage, so batch 1 gains nothing; a big batch is split among stages."""
    one, two = (coefficients(Shape(card("a10"), model("llama-2-13b"), pp=pp)) for pp in (1, 2))
    assert decode_step_s(two, 1, 0) >= 0.99 * decode_step_s(one, 1, 0)
    assert decode_step_s(two, 64, 64_000) < decode_step_s(one, 64, 64_000)


def test_arrays_give_what_floats_give() -> None:
    """A hundred batches at once are the same hundred numbers."""
    c = coefficients(Shape(card("h100"), model("mixtral-8x7b"), tp=2))
    batch = np.array([1.0, 8.0, 300.0])
    together = step_s(c, batch, batch * 500, np.array([0.0, 512.0, 8192.0]), np.array([0.0, 0.0, 100.0]))
    alone = [step_s(c, b, b * 500, p, x) for b, p, x in ((1, 0, 0), (8, 512, 0), (300, 8192, 100))]
    assert together == pytest.approx(alone)


def test_terms_add_up_to_the_step() -> None:
    """What a correction scales term by term is the step itself."""
    c = coefficients(Shape(card("h100"), model("llama-3-8b")))
    terms = step_terms(c, 8, 4000, 512, attention_pairs(512, 100))
    assert sum(terms) == pytest.approx(step_s(c, 8, 4000, 512, 100))


def test_plain_coefficients_are_exactly_linear() -> None:
    """Without the roof's fields a step is a sum of products."""
    c = StepCoefficients(1e-2, 1e-4, 1e-6, 2e-4, 1e-8, 5e-3)
    assert step_s(c, 4, 1000, 100, 50) == pytest.approx(1e-2 + 4e-4 + 1e-3 + 2e-2 + 1e-8 * 100 * 100)


def test_a_prompt_in_chunks_attends_to_all_before_it() -> None:
    """Chunks add steps and lose no pair."""
    c = StepCoefficients(1e-2, 0.0, 0.0, 1e-4, 1e-8, 5e-3)
    whole, chunked = (prefill_s(c, 1000, chunk_tokens=n) for n in (1000, 300))
    assert whole == pytest.approx(5e-3 + 1e-2 + 0.1 + 1e-8 * 1000 * 500)
    assert chunked == pytest.approx(whole + 3 * 1e-2)


@pytest.mark.parametrize(("tokens", "chunk"), [(-1, 10), (10, 0)])
def test_an_impossible_prompt_is_refused(tokens: int, chunk: int) -> None:
    """Negative prompts and empty chunks are mistakes of the caller."""
    with pytest.raises(ValueError, match="prompt_tokens"):
        prefill_s(StepCoefficients(1, 0, 0, 0, 0, 0), tokens, chunk)


def test_speculation_divides_by_the_tokens_a_step_yields() -> None:
    """Acceptance 0.5 of two drafts yields 1.75 tokens a step."""
    assert speculative_tpot_s(0.0175, 0.5, 2) == pytest.approx(0.01)
    assert speculative_tpot_s(0.01, 0.0, 4, draft_cost=0.1) == pytest.approx(0.014)
    with pytest.raises(ValueError, match="acceptance"):
        speculative_tpot_s(0.01, 1.5, 2)


def test_tp_must_divide_the_heads() -> None:
    """28 heads do not go on 8 cards."""
    with pytest.raises(DoesNotFit, match="28 heads"):
        Shape(card("a100"), model("qwen2.5-7b"), tp=8)
    with pytest.raises(DoesNotFit, match="PP 99"):
        Shape(card("a100"), model("qwen2.5-7b"), pp=99)


def test_an_unknown_precision_is_refused_with_those_there_are() -> None:
    """The error lists what may be written."""
    with pytest.raises(ValueError, match=r"int3.*bf16"):
        Shape(card("a100"), model("qwen2.5-7b"), precision="int3")


@pytest.mark.parametrize(
    ("name", "on", "stored", "expected"),
    [
        ("chatglm-6b", "a10", "fp16", (1, 1)),
        ("llama-2-70b", "a100", "fp16", (2, 1)),
        ("llama-2-70b", "a10", "int4", (2, 1)),
        ("llama-2-70b", "a10", "int8", (4, 1)),
        ("bloom-176b", "a100", "bf16", (8, 1)),
        ("bloom-176b", "a10", "fp16", (8, 3)),
    ],
)
def test_cards_needed_is_weights_over_memory_in_whole_powers(
    name: str, on: str, stored: str, expected: tuple[int, int]
) -> None:
    """Beyond a node's eight cards come pipeline stages."""
    assert cards_needed(model(name), card(on), stored) == expected


def test_what_fits_on_no_number_of_cards_is_said_so() -> None:
    """One card a node and few layers: no placement."""
    alone = replace(card("t4"), memory_bytes=4e9, cards_per_node=1)
    with pytest.raises(DoesNotFit, match="for its weights alone"):
        cards_needed(model("bloom-176b"), alone, "fp16")


def test_kv_capacity_is_what_an_engine_leaves_after_its_own_needs() -> None:
    """Llama-3-8B holds about 27.9k blocks of 16 on an H100; memory x 0.9 - weights is far too many on 24 GB."""
    h100 = kv_capacity_tokens(Shape(card("h100"), model("llama-3-8b")))
    assert h100 == pytest.approx(446_000, rel=0.03)
    small = Shape(card("a10"), model("llama-3-8b"))
    naive = (24e9 * 0.9 - 16.06e9) / 131_072
    assert 1.2 < naive / kv_capacity_tokens(small) < 2.0


def test_kv_capacity_comes_in_whole_blocks_and_grows_with_cards() -> None:
    """More cards, smaller KV elements and more of the memory all hold more."""
    shape = Shape(card("a100"), model("llama-2-70b"), tp=4)
    base = kv_capacity_tokens(shape)
    assert base % 16 == 0
    assert kv_capacity_tokens(shape, block_tokens=128) % 128 == 0
    assert kv_capacity_tokens(replace(shape, tp=8)) > 2 * base
    assert kv_capacity_tokens(replace(shape, kv_precision="fp8")) == pytest.approx(2 * base, abs=16)
    assert kv_capacity_tokens(shape, 0.95) > base


def test_what_leaves_no_room_for_kv_does_not_fit() -> None:
    """The error says where and how much was left."""
    with pytest.raises(DoesNotFit, match=r"0\.0 GB left"):
        kv_capacity_tokens(Shape(card("a10"), model("llama-2-13b")))
    with pytest.raises(ValueError, match="memory_utilization"):
        kv_capacity_tokens(Shape(card("a10"), model("llama-3-8b")), memory_utilization=1.5)


@given(st.floats(0.004, 0.5), st.floats(0, 2000))
def test_tokens_touch_no_more_experts_than_even_routing_and_no_fewer_than_one_token(
    share: float, tokens: float
) -> None:
    """Popular experts are found again: fewer new ones a token, never none."""
    touched = float(experts_touched(share, tokens))
    assert touched <= 1 - (1 - share) ** tokens + 1e-9
    assert touched >= share * min(tokens, 1.0) - 1e-9


def test_launches_hide_behind_the_card_or_the_card_behind_them() -> None:
    """The slower of host and card bounds the step: 20 ms of launches add little to 100 ms of reading."""
    plain = StepCoefficients(0.1, 0, 0, 0, 0, 0, weights_s=0.1)
    assert decode_step_s(replace(plain, launch_s=0.02), 1, 0) == pytest.approx(0.1, rel=0.01)
    quick = StepCoefficients(0.01, 0, 0, 0, 0, 0, weights_s=0.01, launch_s=0.1)
    assert decode_step_s(quick, 1, 0) == pytest.approx(0.1, rel=0.01)


def test_a_step_with_prompts_is_launched_kernel_by_kernel() -> None:
    """A short prompt adds the launch, a long one its computing; a step of decoding sequences alone is a graph."""
    c = StepCoefficients(0.01, 0, 0, 1e-4, 0, 0, weights_s=0.01, gemm_token_s=1e-4)
    eager = replace(c, eager_s=0.02)
    assert decode_step_s(eager, 8, 800) == decode_step_s(c, 8, 800)
    assert step_s(eager, 8, 800, 10) - decode_step_s(c, 8, 800) == pytest.approx(0.02, rel=0.01)
    assert step_s(eager, 8, 800, 8000) == pytest.approx(float(step_s(c, 8, 800, 8000)), rel=0.01)
    assert coefficients(Shape(card("h100"), model("llama-3-8b"), engine="tensorrt-llm")).eager_s > 0.005


def test_latent_attention_needs_further_kernels() -> None:
    """DeepSeek-V3 projects down and absorbs: more launches a layer, whatever the batch."""
    deepseek = model("deepseek-v3")
    latent, plain = (
        coefficients(Shape(card("h200"), replace(deepseek, latent_kv=latent), 8, precision="fp8")).fixed_s
        for latent in (True, False)
    )
    assert 61 * 10e-6 < latent - plain < 61 * 60e-6


def test_fp8_is_block_scaled_for_models_published_so() -> None:
    """DeepSeek-V3 and Qwen3 quantise activations as they run; Llama's FP8 has one scale a tensor."""
    assert Shape(card("h100"), model("qwen3-32b"), precision="fp8").stored == "fp8-block"
    assert Shape(card("h100"), model("llama-3-70b"), 2, precision="fp8").stored == "fp8"
    assert Shape(card("h100"), model("qwen3-32b"), precision="bf16").stored == "bf16"


def test_experts_cut_into_slivers_are_read_slower_than_experts_dealt_whole() -> None:
    """Expert parallelism keeps them wide; for a dense model it makes no difference."""
    cut, whole = (
        ideal(Shape(card("h200"), model("gpt-oss-120b"), 8, precision="mxfp4", ep=ep)).experts_s for ep in (1, 8)
    )
    assert 1.1 * whole < cut < 1.3 * whole
    dense = [ideal(Shape(card("h200"), model("llama-3-70b"), 8, ep=ep)) for ep in (1, 8)]
    assert dense[0] == dense[1]


def test_decoding_gets_less_of_a_link_than_a_prompt() -> None:
    """Some kilobytes a sequence do not fill a link as a prompt's megabytes do."""
    shape = Shape(card("h100"), model("llama-3-70b"), 8)
    c = coefficients(shape)
    assert c.seq_s > 1.5 * (c.token_s - c.gemm_token_s)


def test_what_was_measured_stands_in_place_of_the_tables() -> None:
    """The rest stays; a name or a number that cannot be is refused."""
    prior = coefficients(Shape(card("a10"), model("llama-3-8b")))
    told = measured(prior, {"fixed_s": 0.05})
    assert (told.fixed_s, told.seq_s) == (0.05, prior.seq_s)
    with pytest.raises(ValueError, match="no coefficient 'stages'; expected one of fixed_s"):
        measured(prior, {"stages": 2.0})
    with pytest.raises(ValueError, match="seq_s: expected seconds of at least 0"):
        measured(prior, {"seq_s": -1.0})
