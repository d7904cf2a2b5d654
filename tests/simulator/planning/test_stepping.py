"""A step line by line: the article's floor, and parts that sum to what the router expects."""

import json
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.cards import CARDS, card
from router.core.models import MODELS, model
from router.core.physics import Shape, coefficients, decode_step_s
from router.core.profile import TERMS, Profile, tables_version
from router.core.tables import ENGINES
from simulator.calibration.profile_file import profile_text
from simulator.planning.stepping import Question, best, nominal_billions, parts_s, steps
from tests.commands import simulator_command

CHATGLM = Question(model("chatglm-6b"), card("a10"), "fp16", "vllm", 1, 512)


@pytest.mark.parametrize(("tp", "gb", "floor_ms"), [(1, 12, 20), (2, 6, 10), (4, 3, 5)])
def test_the_articles_arithmetic(tp: int, gb: float, floor_ms: float) -> None:
    """6 x 2 = 12 GB; 12 / 600 = 20 ms; TP 2 10 ms. An engine takes longer."""
    [step] = steps(CHATGLM, [tp])
    assert step.read_bytes == pytest.approx(gb * 1e9)
    assert step.floor_s == pytest.approx(floor_ms / 1e3)
    assert step.floor_s < step.expected_s < 3 * step.floor_s


@given(
    st.sampled_from(list(CARDS.values())),
    st.sampled_from(list(MODELS.values())),
    st.sampled_from([1, 2]),
    st.sampled_from(["fp16", "fp8", "int8", "int4"]),
    st.sampled_from(list(ENGINES)),
    st.integers(1, 256),
)
def test_parts_sum_to_the_step(on, of, tp, stored, engine, batch) -> None:  # type: ignore[no-untyped-def]
    """None is negative, and together they are what the router expects."""
    shape = Shape(on, of, tp, precision=stored, engine=engine)
    parts = parts_s(shape, batch, batch * 700.0)
    assert sum(parts.values()) == pytest.approx(float(decode_step_s(coefficients(shape), batch, batch * 700.0)))
    assert min(parts.values()) >= -1e-12
    assert parts["communication"] == 0 or tp > 1


@pytest.mark.parametrize(
    ("name", "billions"),
    [("chatglm-6b", 6), ("qwen2.5-14b", 14), ("llama-3.1-405b", 405), ("qwen3-30b-a3b", 3.35), ("mixtral-8x7b", 12.88),
     ("phi-3-mini", 3.82)],
)  # fmt: skip
def test_billions_as_the_name_has_them(name: str, billions: float) -> None:
    """Of a mixture of experts the active ones; of a name without a size those of its config."""
    assert nominal_billions(model(name)) == pytest.approx(billions)


def test_the_best_tp_holds_the_context() -> None:
    """A TP whose cards lack the memory is not the best, however fast its step were."""
    large = Question(model("qwen-72b"), card("a800"), "fp16", "vllm", 1, 1_000)
    found = steps(large, [1, 2, 4, 8])
    chosen = best(large, found)
    assert chosen is not None
    assert chosen.tp == 8
    assert best(large, found[:1]) is None


def test_a_tp_that_cannot_be_says_why() -> None:
    """It does not divide the heads, or exceeds a node."""
    assert "does not divide" in steps(CHATGLM, [3])[0].problem
    assert "more than the 8 cards" in steps(CHATGLM, [16])[0].problem


HEAD = "source,engine,engine_version,card,model,precision,tp,load_kind,batch_or_concurrency,isl,osl,itl_ms_mean\n"


def test_measured_rows_stand_beside_it(tmp_path: Path) -> None:
    """Rows of the same card, model and TP, by batch; the best TP named; JSON has every figure."""
    rows = tmp_path / "mine.csv"
    rows.write_text(
        HEAD
        + "me,vllm,0.12,a10,chatglm-6b,fp16,1,static_batch,1,100,100,26.5\n"
        + "me,vllm,0.12,a10,chatglm-6b,fp16,2,static_batch,1,100,100,16\n"
        + "me,vllm,0.12,l4,chatglm-6b,fp16,1,static_batch,1,100,100,50\n"
    )
    out = tmp_path / "step.json"
    line = ["step", "--model", "chatglm-6b", "--card", "a10", "--tp", "1,2,4", "--measurements", str(rows)]
    result = simulator_command([*line, "--json", str(out)])
    assert result.exit_code == 0, result.output
    for text in ("12/600 = 20.00 ms", "6/600 = 10.00 ms", "26.50 ms (1)", "16.00 ms (1)", "TP 4 (best)"):
        assert text in result.stdout
    facts = json.loads(out.read_text())
    assert facts["best_tp"] == 4
    assert [len(step["measured"]) for step in facts["steps"]] == [1, 1, 0]


SLOW = Profile(
    logs={("card", "a10"): tuple(log(2) if term == "read" else 0.0 for term in TERMS)},
    rows={("card", "a10"): 30},
    band=0.1,
    facts={"tables": tables_version(), "rows": 30},
)
"""A10s whose weights take twice as long to read."""


def test_a_profile_corrects_the_parts() -> None:
    """Those that it corrects, and so their sum."""
    [plain], [slow] = steps(CHATGLM, [1]), steps(replace(CHATGLM, profile=SLOW), [1])
    assert plain.parts_s is not None
    assert slow.parts_s is not None
    assert slow.parts_s["weights"] == pytest.approx(2 * plain.parts_s["weights"], rel=0.01)
    assert slow.parts_s["KV cache"] == pytest.approx(plain.parts_s["KV cache"])
    whole_s = decode_step_s(coefficients(Shape(card("a10"), model("chatglm-6b"), precision="fp16"), SLOW), 1, 512)
    assert slow.expected_s == pytest.approx(float(whole_s))


def test_the_command_takes_a_profile(tmp_path: Path) -> None:
    """A file as calibration writes it; another one is refused."""
    path = tmp_path / "profile.yaml"
    path.write_text(profile_text(SLOW))
    line = ["step", "--model", "chatglm-6b", "--card", "a10", "--tp", "1", "--json", "-", "--profile"]
    [step] = json.loads(simulator_command([*line, str(path)]).stdout)["steps"]
    assert step["expected_s"] == pytest.approx(steps(replace(CHATGLM, profile=SLOW), [1])[0].expected_s, rel=1e-3)
    path.write_text("nothing: 1")
    assert simulator_command([*line, str(path)]).exit_code == 2


@pytest.mark.parametrize("words", [["--card", "a11"], ["--tp", "0"], ["--precision", "fp7"], ["--engine", "vlm"]])
def test_what_cannot_be_is_refused(words: list[str]) -> None:
    """Status 2 and one line."""
    result = simulator_command(["step", "--model", "chatglm-6b", "--card", "a10", *words])
    assert result.exit_code == 2
    assert words[1] in result.stderr


def test_a_kv_cache_of_8_bits_reads_half_and_holds_twice() -> None:
    """By the command's option too; a precision that is unknown is refused."""
    plain = Question(model("llama-3-8b"), card("a10"), "fp16", "vllm", 8, 2_000)
    [full], [half] = steps(plain, (1,)), steps(replace(plain, kv_precision="fp8"), (1,))
    assert full.parts_s is not None
    assert half.parts_s is not None
    assert half.parts_s["KV cache"] < 0.6 * full.parts_s["KV cache"]
    assert half.kv_tokens > 1.9 * full.kv_tokens
    line = ["step", "--model", "llama-3-8b", "--card", "a10", "--tp", "1"]
    assert "tokens each in fp8" in simulator_command([*line, "--kv-precision", "fp8"]).stdout
    for words in (
        line,
        ["fit", "--model", "7B", "--cards", "a10"],
        ["plan", "--model", "llama-3-8b", "--slo", "ttft=1s"],
    ):
        refused = simulator_command([*words, "--kv-precision", "fp7"])
        assert refused.exit_code == 2
