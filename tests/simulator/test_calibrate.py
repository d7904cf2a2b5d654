"""Calibration reads measurements honestly, finds the truth that made them, and says how wrong it is."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router.core.physics import coefficients, decode_step_s
from simulator.calibration.bands import coverage, widened
from simulator.calibration.consistency import consistent
from simulator.calibration.fit import COMMITTED, PRIOR, fit, predicted, seen
from simulator.calibration.measurements import Measurement, engine_key, parse
from simulator.calibration.report import errors, half, headline, rank_correlation
from simulator.calibration.write import tables_source
from simulator.commands.calibrate import leave_one_out
from tests.commands import calibrate

MEASURED = Path(__file__).parents[2].parent / "shared" / "data" / "engine_measurements.csv.gz"

ROW = {
    "source": "mine",
    "engine": "vLLM",
    "engine_version": "0.12.0",
    "card": "H100",
    "model": "Llama-3.1-8B-Instruct",
    "precision": "bf16",
    "tp": "1",
    "load_kind": "static_batch",
    "batch_or_concurrency": "4",
    "isl": "1000",
    "osl": "200",
    "itl_ms_mean": "8",
}


def one(**changes: str) -> Measurement:
    """The measurement of ROW with some columns changed."""
    told, skipped = parse([ROW | changes])
    assert not skipped, skipped
    return told[0].seen


def why_not(**changes: str) -> str:
    """Why ROW with some columns changed cannot be used."""
    told, skipped = parse([ROW | changes])
    assert not told
    return skipped[0].why


@pytest.mark.parametrize(
    ("name", "version", "key"),
    [
        ("vLLM", "0.18.0", "vllm"),
        ("vllm", "", "vllm"),
        ("vLLM", "0.6.3", "vllm-2024"),
        ("vLLM", "2024 (see paper)", "vllm-2024"),
        ("vLLM(modified)", "0.2-era (2023)", "vllm-2023"),
        ("trtllm", "1.0.0rc3", "tensorrt-llm"),
        ("TensorRT-LLM", "0.17", "tensorrt-llm-2024"),
        ("LMDeploy-TurboMind", "0.2.0", "lmdeploy"),
        ("SomethingNew", "7", "somethingnew"),
    ],
)
def test_an_engines_version_tells_its_era(name: str, version: str, key: str) -> None:
    """0.18 is after 0.8: versions are numbers, not decimals."""
    assert engine_key(name, version) == key


def test_an_upper_bound_is_never_taken_for_the_gap() -> None:
    """E2E over output hides the prefill: only the whole request is used."""
    m = one(itl_kind="UPPER BOUND e2e/osl (includes prefill)", e2e_ms="2000")
    assert np.isnan(m.tpot_s)
    assert m.e2e_s == 2.0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"note": "DO NOT FIT"}, "DO NOT FIT"),
        ({"scope": "per-POOL (prefill+decode workers)"}, "per-POOL"),
        ({"note": "attention_dp=8"}, "data-parallel"),
        ({"load_kind": "offline_max"}, "load_kind"),
        ({"card": "H1000"}, "no card"),
        ({"tp": "64", "model": "DeepSeek-V3"}, "a node's 8 cards"),
        ({"model": "Llama-3.1-405B"}, "does not fit"),
        ({"batch_or_concurrency": "0"}, "above 0"),
        ({"itl_ms_mean": ""}, "nothing was measured"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(changes: Mapping[str, str], why: str) -> None:
    """Nothing is dropped in silence."""
    assert why in why_not(**changes)


def test_a_queue_hides_the_batch() -> None:
    """More than half of a closed loop waits for a first token: nobody knows how many decoded. One user never queues."""
    loop = {"load_kind": "concurrency", "batch_or_concurrency": "512", "osl": "200", "itl_ms_mean": "8"}
    assert "batch is not known" in why_not(**loop, ttft_ms_mean="1700")
    assert one(**loop, ttft_ms_mean="1500").batch == 512
    assert one(**loop | {"batch_or_concurrency": "1"}, ttft_ms_mean="1700").unqueued


def test_a_measurement_told_twice_counts_once() -> None:
    """Under another name of the same model, say; another figure is another measurement."""
    again = ROW | {"model": "meta-llama/Llama-3.1-8B"}
    kept, skipped = consistent(parse([ROW, again, ROW | {"itl_ms_mean": "8.1"}])[0])
    assert [m.tpot_s for m in kept] == [0.008, 0.0081]
    assert [(each.line, each.why) for each in skipped] == [(3, "the same measurement as in an earlier row")]


def test_what_contradicts_itself_is_believed_in_neither_way() -> None:
    """One configuration at twice the TPOT differs in what no column names; other versions and formats may differ."""
    rows = [ROW, ROW | {"itl_ms_mean": "16"}, ROW | {"tp": "2"}]
    kept, skipped = consistent(parse(rows)[0])
    assert [m.shape.tp for m in kept] == [2]
    assert [each.line for each in skipped] == [2, 3]
    for unlike in ({"engine_version": "0.13.0"}, {"precision": "fp16"}, {"source": "others"}, {"osl": "300"}):
        assert len(consistent(parse([ROW, rows[1] | unlike])[0])[0]) == 2


def test_speculative_decoding_is_a_rate_of_acceptance() -> None:
    """Two drafts, each accepted half of the time, yield 1.75 tokens a step that computes three."""
    plain, drafting = predicted([one(), one(spec_drafted="2", spec_acceptance="0.5")], PRIOR)[0]
    assert plain / 1.75 < drafting < plain / 1.4
    assert "spec_acceptance" in why_not(spec_drafted="2", spec_acceptance="1.5")


def test_awq_is_launched_in_more_kernels_where_nothing_fuses_them() -> None:
    """An eager engine pays for it; one that replays graphs does not."""
    for engine, least, most in (("transformers", 1.2, 1.4), ("vllm", 0.98, 1.02)):
        fused, loose = predicted(
            [one(engine=engine, model="qwen2.5-0.5b", precision=p) for p in ("gptq", "awq")], PRIOR
        )[0]
        assert least < loose / fused < most


def test_fp4_on_a_card_without_it_is_unpacked() -> None:
    """Hopper has no FP4 units: gpt-oss runs there as MXFP4."""
    assert one(precision="fp4").shape.precision == "mxfp4"
    assert one(precision="fp4", card="B200").shape.precision == "fp4"


def test_experts_over_the_same_cards_are_not_more_cards() -> None:
    """A source that multiplies TP by EP has engines of 64 cards in nodes of 8; others' split experts stay."""
    row = {"source": "inferencemax_via_aic", "model": "DeepSeek-V3", "precision": "fp8", "card": "H200"}
    again = one(**row, tp="64", ep="8", note="attention_dp=1; moe_tp=8; ")
    assert (again.shape.tp, again.shape.ep) == (8, 8)
    plain = one(**row, tp="8", ep="8", note="attention_dp=1; moe_tp=1; ")
    assert (plain.shape.tp, plain.shape.ep) == (8, 8)
    split = one(model="Qwen3-235B-A22B", precision="fp8", tp="4", ep="2", note="attention_dp=1; moe_tp=2; ")
    assert (split.shape.tp, split.shape.ep) == (4, 2)


def test_a_checkpoint_with_scales_for_kv_has_an_fp8_cache() -> None:
    """Those that NVIDIA publishes, in any engine; those of others in TensorRT-LLM alone."""
    assert one(model="nvidia/Llama-3.1-8B-Instruct-FP8", precision="fp8").shape.kv_precision == "fp8"
    assert one(precision="fp8").shape.kv_precision is None
    assert one(precision="fp8", engine="trtllm").shape.kv_precision == "fp8"
    assert one(model="nvidia/Llama-3.1-8B-Instruct", precision="bf16").shape.kv_precision is None


def test_llama_cpp_formats_have_rows_of_their_own() -> None:
    """ggml's blocks carry a 16-bit scale for 32 weights, and are unpacked within the product."""
    stored = {name: one(engine="llama.cpp", precision=name).shape.stored for name in ("q4_0", "q5_1", "q8_0")}
    assert stored == {"q4_0": "q4", "q5_1": "q5", "q8_0": "q8"}


def test_a_static_batch_is_expected_as_the_core_predicts_it() -> None:
    """One mechanism: calibration and forecast read the same step, behind which four streams' sending all but hides."""
    m = one()
    tpot_s = predicted([m], COMMITTED)[0, 0]
    assert tpot_s == pytest.approx(decode_step_s(coefficients(m.shape), 4, 4 * 1100), rel=1e-4)


def test_a_closed_loop_is_slowed_by_the_prompts_of_others() -> None:
    """The same users, once together and once joining and leaving."""
    static, loop = one(batch_or_concurrency="64"), one(batch_or_concurrency="64", load_kind="concurrency")
    together, apart = predicted([static, loop], PRIOR)[0]
    assert apart > 1.3 * together


def test_what_was_sat_out_before_the_first_token_is_not_met_again() -> None:
    """An engine that runs prompts first made a request wait for those of others; with chunks in between it meets them
    while it decodes."""
    loop = {"load_kind": "concurrency", "batch_or_concurrency": "32", "isl": "4000", "itl_ms_mean": "50"}
    left = []
    for engine in ("sglang", "vllm"):
        soon, late = predicted([one(**loop, engine=engine, ttft_ms_mean=ttft) for ttft in ("150", "1500")], PRIOR)[0]
        left.append(late / soon)
    assert left[0] < left[1] - 0.05


def test_short_prompts_come_in_groups_and_share_a_launch() -> None:
    """Sixteen prompts of 64 tokens make about as many steps with prompts as one of 1024, each of them launched."""
    loop = {"load_kind": "concurrency", "batch_or_concurrency": "32", "osl": "400", "engine": "trtllm"}
    short, long, none = predicted(
        [one(**loop, isl=n) for n in ("64", "1024")] + [one(**loop | {"load_kind": "static_batch"}, isl="64")], PRIOR
    )[0]
    launch_s = 32 * PRIOR["engine"]["tensorrt-llm"].eager_layer_s
    assert 0 < short - none < 3 * launch_s / 400
    assert long - none > 15 * launch_s / 400


def test_those_who_wait_are_not_in_the_batch() -> None:
    """By Little's law a long first token means few run."""
    short, long = (
        one(batch_or_concurrency="512", load_kind="concurrency", ttft_ms_mean=ttft, itl_ms_mean="300")
        for ttft in ("100", "50000")
    )
    few, many = predicted([long, short], PRIOR)[0]
    assert few < 0.5 * many


def test_a_server_sends_only_so_many_tokens_a_second() -> None:
    """A small model on many cards is as fast as its API server: past that, more users are slower for each."""
    few, many = predicted([one(tp="8", batch_or_concurrency=users) for users in ("64", "512")], PRIOR)[0]
    stream_s = PRIOR["engine"]["vllm"].stream_s
    assert few < 2 * 64 * stream_s + 0.005
    assert many >= 512 * stream_s


def test_a_derived_pace_is_judged_apart() -> None:
    """From throughput it may hide what a gap between tokens does not."""
    m = one(itl_kind="derived batch/tok_s")
    assert np.isnan(m.tpot_s)
    assert m.derived_tpot_s == 0.008
    assert seen([m])[3, 0] == 0.008


def test_where_only_the_mean_is_derived_the_median_is_direct() -> None:
    """A source's percentiles were measured though its mean was computed."""
    m = one(itl_kind="p50 reported; mean derived (includes prefill)", itl_ms_p50="7")
    assert m.tpot_s == 0.007


def test_layers_split_over_cards_work_one_card_at_a_time() -> None:
    """llama.cpp and Accelerate: memory of several cards, the TPOT of one."""
    m = one(engine="llama.cpp", tp="1", pp="4", model="Llama-2-70B", precision="fp16")
    assert (m.shape.tp, m.shape.pp) == (1, 1)
    assert "does not fit 1 x" in why_not(engine="llama.cpp", tp="1", pp="1", model="Llama-2-70B", precision="fp16")


def test_a_capped_card_keeps_its_bandwidth_and_loses_compute() -> None:
    """A power cap slows prompts, hardly decode (Splitwise, arXiv 2311.18677)."""
    pair = [one(card=name, ttft_ms_mean="100", isl="4000") for name in ("H100", "H100-powercapped")]
    tpot, ttft = predicted(pair, PRIOR)[:2]
    assert tpot[1] < 1.1 * tpot[0]
    assert ttft[1] > 1.2 * ttft[0]


def test_a_band_is_as_wide_as_the_errors_of_what_was_left_out() -> None:
    """An engine whose left-out errors are three times its sigma is promised no better."""
    measured = [one(batch_or_concurrency=str(b), source=f"source {b % 5}") for b in range(1, 401)]
    sigma = PRIOR["engine"]["vllm"].sigma
    off = np.random.default_rng(1).normal(0, 3 * sigma, len(measured))
    wide = widened(PRIOR, measured, off)["engine"]
    assert wide["vllm"].sigma > 2 * sigma
    once = widened(PRIOR, [replace(m, source="one") for m in measured], off)["engine"]
    assert sigma < once["vllm"].sigma < wide["vllm"].sigma
    assert once["sglang"] == PRIOR["engine"]["sglang"]


def test_the_next_source_is_further_off_than_those_that_were_seen() -> None:
    """Three sources, each with a bias of its own: the band holds a fourth, not only the spread within each."""
    measured = [replace(m, source=name) for name in ("low", "fair", "high") for m in world(1.0) * 40]
    off = np.repeat([-0.5, 0.0, 0.9], len(measured) // 3) + np.random.default_rng(1).normal(0, 0.02, len(measured))
    wide = widened(PRIOR, measured, off)
    assert wide["engine"]["sglang"].sigma > PRIOR["engine"]["sglang"].sigma
    assert wide["family"]["hopper"].sigma > PRIOR["family"]["hopper"].sigma
    same = widened(PRIOR, measured, np.zeros(len(measured)))
    assert same["engine"]["sglang"] == PRIOR["engine"]["sglang"]


def test_no_part_says_how_wide_its_own_band_is() -> None:
    """Errors of one source count against a band that the others' errors made."""
    calm, wild = ([replace(m, source=name) for m in world(1.0) * 20] for name in ("calm", "wild"))
    draw = np.random.default_rng(1)
    off = np.concatenate([draw.normal(0, 0.1, len(calm)), draw.normal(0, 1.0, len(wild))])
    found = coverage(PRIOR, [*calm, *wild], off, lambda m: m.source)
    assert found["calm"][1] > 0.95
    assert found["wild"][1] < 0.5
    assert found["everything"][0] == len(off)


def test_the_headline_gives_a_large_source_one_vote() -> None:
    """By row and by source."""
    measured = [replace(m, source=name) for name, times in (("big", 10), ("small", 1)) for m in world(1.0) * times]
    rows = np.full((4, len(measured)), np.nan)
    rows[0] = 1.0
    said = rows * [1.1 if m.source == "big" else 1.3 for m in measured]
    first = headline(errors(measured, rows, said))[0]
    assert first == "TPOT: 66 rows of 2 sources, median 10.0%, p90 10.0%; median of the sources' medians 20.0%"


def test_only_a_first_token_that_waited_for_nobody_is_judged() -> None:
    """A queued first token says more of the load than of the engine."""
    alone = one(ttft_ms_mean="50", load_kind="concurrency", batch_or_concurrency="1")
    queued = one(ttft_ms_mean="50", load_kind="concurrency", batch_or_concurrency="8")
    assert seen([alone])[1, 0] == 0.05
    assert np.isnan(seen([queued])[1, 0])


def world(slower: float) -> list[Measurement]:
    """Measurements of an engine whose decode takes *slower* times what the tables say."""
    plain = [one(batch_or_concurrency=str(b), card=c) for b in (1, 8, 64) for c in ("H100", "A100")]
    tpots = predicted(plain, PRIOR)[0] * slower
    return [replace(m, tpot_s=float(tpot)) for m, tpot in zip(plain, tpots, strict=True)]


def test_a_fit_moves_towards_what_was_measured() -> None:
    """A world a fifth slower than the tables is predicted better after the fit, in every row."""
    measured = world(1.2)
    before, after = (np.abs(predicted(measured, t)[0] / seen(measured)[0] - 1) for t in (PRIOR, fit(measured)))
    assert (after < 0.7 * before).all()


def test_a_fit_leaves_what_no_measurement_reads() -> None:
    """Kunlun was not measured: its row stays the prior."""
    assert fit(world(1.2))["family"]["kunlun"] == PRIOR["family"]["kunlun"]


def test_outliers_do_not_bend_the_tables() -> None:
    """One row ten times too slow among twelve moves nobody much."""
    honest = world(1.0) * 2
    bent = fit([*honest, replace(honest[0], tpot_s=10 * honest[0].tpot_s)])
    assert predicted(honest, bent)[0] == pytest.approx(seen(honest)[0], rel=0.03)


def test_what_is_left_out_is_not_seen() -> None:
    """Each part is judged by tables fitted to the others alone."""
    measured = [replace(m, source=s) for s in ("a", "b") for m in world(1.0)]
    given: list[set[str]] = []

    def fitted(others: object) -> object:
        given.append({m.source for m in others})  # type: ignore[attr-defined]
        return PRIOR

    leave_one_out(measured, lambda m: m.source, fitted)  # type: ignore[arg-type]
    assert given == [{"b"}, {"a"}]


def test_errors_are_told_by_group() -> None:
    """Median, p90 and bias of what was said against what was seen."""
    measured = world(1.0)
    rows = np.ones((4, len(measured)))
    found = errors(measured, rows, rows * 1.1)
    everything = next(e for e in found if e.group == "all" and e.quantity == "TPOT")
    assert [everything.count, everything.median, everything.bias] == pytest.approx([6, 0.1, 0.1])
    assert {e.name for e in found if e.group == "card"} == {"h100-sxm", "a100-80g-sxm"}


def test_errors_by_kind_of_model_and_by_batch() -> None:
    """The groups in which a missing term shows."""
    measured = [one(), one(model="Mixtral-8x7B", tp="2"), one(model="DeepSeek-V3", tp="8", precision="fp8")]
    measured += [one(batch_or_concurrency=b) for b in ("1", "16", "17", "129")]
    found = {(e.group, e.name) for e in errors(measured, np.ones((4, 7)), np.ones((4, 7)))}
    assert {name for group, name in found if group == "model"} == {"dense", "MoE", "MoE, latent KV"}
    assert {name for group, name in found if group == "batch"} == {"1", "2 to 16", "17 to 128", "more than 128"}


def test_halves_share_no_configuration() -> None:
    """Another batch, TP or precision of one engine, card and model is in the same half; other models are in both."""
    assert len({half(one(batch_or_concurrency=b, tp=tp)) for b in "148" for tp in "12"}) == 1
    assert {half(one(model=name)) for name in ("qwen-7b", "qwen-14b", "yi-6b", "yi-34b", "mistral-7b")} == {"A", "B"}


def test_rank_correlation_knows_order_and_ties() -> None:
    """1 in order, -1 reversed, nan without pairs."""
    up = np.array([1.0, 2.0, 2.0, 5.0, np.nan])
    assert rank_correlation(up, 3 * up) == pytest.approx(1)
    assert rank_correlation(up, -up) == pytest.approx(-1)
    assert np.isnan(rank_correlation(up[:1], up[:1]))


def test_written_tables_are_python_that_says_the_same() -> None:
    """What is committed is what was fitted, to three digits."""
    space: dict[str, Mapping[str, object]] = {}
    exec(tables_source(PRIOR, "nothing"), space)
    assert set(space["ENGINES"]) == set(PRIOR["engine"])
    assert space["PRECISIONS"]["mxfp4"] == PRIOR["precision"]["mxfp4"]


def test_the_command_reads_fits_reports_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user's own CSV with the few columns it needs."""
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows([ROW, ROW | {"tp": "3"}])
    assert calibrate([str(path), "--write", str(tmp_path / "tables.py")]) == 0
    said = capsys.readouterr().out
    assert "1 rows used, 1 left out" in said
    assert "TP 3 does not divide" in said
    assert "h100-sxm" in said
    assert "mine (1)" in (tmp_path / "tables.py").read_text()


def test_a_file_with_nothing_to_fit_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and where the columns are described."""
    (tmp_path / "empty.csv").write_text("source,engine\nme,vllm\n")
    assert calibrate([str(tmp_path / "empty.csv")]) == 2
    assert "measurements.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("no_column.csv", b"source,engine\nme,vllm\n", "no_column.csv:1: no column card"),
        ("binary.csv", b"\xff\xfe\x00", "binary.csv: 'utf-8' codec"),
        ("cut.csv.gz", b"\x1f\x8b\x08\x00", "cut.csv.gz: "),
    ],
)
def test_a_file_that_is_none_says_where(
    name: str, content: bytes, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and status 2, no traceback."""
    (tmp_path / name).write_bytes(content)
    assert calibrate([str(tmp_path / name)]) == 2
    assert told in capsys.readouterr().out
    assert calibrate([str(tmp_path / "absent.csv")]) == 2
    assert "No such file" in capsys.readouterr().out


def test_a_number_that_is_none_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest is used all the same."""
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows([ROW, ROW | {"itl_ms_mean": "fast"}])
    assert calibrate([str(path), "--as-is"]) == 0
    said = capsys.readouterr()
    assert f"{path}:3: itl_ms_mean 'fast': expected a number" in said.err
    assert "1 rows used, 1 left out" in said.out


@pytest.mark.skipif(not MEASURED.exists(), reason="the measurements lie beside the repository, not in it")
def test_the_committed_tables_predict_the_measurements(capsys: pytest.CaptureFixture[str]) -> None:
    """In sample: a change of physics that loses the fit shows here."""
    assert calibrate([str(MEASURED), "--as-is"]) == 0
    lines = capsys.readouterr().out.splitlines()
    tpot = next(line for line in lines if line.startswith("all") and " TPOT " in line)
    order = next(line for line in lines if line.startswith("rank correlation") and "TPOT" in line)
    assert float(tpot.split()[4].rstrip("%")) < 10
    assert float(order.split()[-1]) > 0.94
