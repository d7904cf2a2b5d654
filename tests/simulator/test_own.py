"""Corrections follow a user's own measurements as far as they go, and are refused where they do not help."""

import csv
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router.config.backend import Backend, card_of, resolve
from router.config.profile import read_profile
from router.core.cards import card
from router.core.errors import ConfigError
from router.core.models import model
from router.core.physics import Shape, coefficients, decode_step_s, ideal
from router.core.profile import NO_PROFILE, Profile
from router.gateway.config.plan import plan_file
from simulator.calibration.files import read
from simulator.calibration.fit import COMMITTED, predicted, seen
from simulator.calibration.measurements import Measurement
from simulator.calibration.own import ENOUGH, Found, find
from simulator.calibration.profile_file import profile_text
from simulator.pool import Member
from simulator.pool_file import load_pool
from tests.commands import calibrate

HEADING = "engine,card,model,precision,tp,load_kind,batch_or_concurrency,isl,osl,ttft_ms_mean,itl_ms_mean"


def rows(count: int, slower: float, noise: float = 0.03, on: str = "mi300x") -> list[Measurement]:
    """Static batches of Llama 3 on one card, which takes *slower* times what the tables say."""
    draw = np.random.default_rng(5)
    made = [
        Measurement(
            source="mine",
            shape=Shape(card(on), model(("llama-3-8b", "qwen2.5-14b")[n % 2]), (1, 2, 4)[n % 3]),
            batch=float(2 ** (n % 7)),
            prompt_tokens=float((128, 1024, 4096)[n % 3]),
            output_tokens=256.0,
            lockstep=True,
            tpot_s=1.0,
            ttft_s=1.0,
            e2e_s=float("nan"),
        )
        for n in range(count)
    ]
    tpot_s, ttft_s = predicted(made, COMMITTED)[:2] * slower * np.exp(draw.normal(0, noise, (2, count)))
    return [replace(m, tpot_s=float(a), ttft_s=float(b)) for m, a, b in zip(made, tpot_s, ttft_s, strict=True)]


def found(measured: list[Measurement]) -> Found:
    """Their corrections."""
    return find(measured, seen(measured))


@pytest.fixture(scope="module")
def slow() -> Found:
    """Of twenty rows of an engine that takes twice what is predicted."""
    return found(rows(20, 2.0))


def test_twenty_rows_of_ones_own_move_the_forecast(slow: Found) -> None:
    """A card of a family that nobody calibrated: half off before, within 15 % after, also on rows left out."""
    assert slow.before[0] == pytest.approx(0.5, abs=0.05)
    assert slow.after[0] < 0.1
    assert slow.left_out[0] < 0.15
    assert slow.helps


def test_more_rows_move_it_further() -> None:
    """Nine rows are believed less than eighty."""
    few, many = (found(rows(count, 2.0)) for count in (9, 80))
    assert many.left_out[0] < min(0.06, few.left_out[0])
    assert many.profile.band < few.profile.band


def test_what_was_measured_is_predicted_with_the_band_seen(slow: Found) -> None:
    """The same setup gets the corrections and the band; another card of the family a part; another family nothing."""

    def ratio(on: str, profile: Profile) -> float:
        shape = Shape(card(on), model("llama-3-8b"))
        return float(decode_step_s(coefficients(shape, profile), 8, 8000) / decode_step_s(coefficients(shape), 8, 8000))

    shape = Shape(card("mi300x"), model("llama-3-8b"))
    assert ratio("mi300x", slow.profile) == pytest.approx(2.0, rel=0.15)
    assert 1.1 < ratio("mi325x", slow.profile) < ratio("mi300x", slow.profile)
    assert coefficients(shape, slow.profile).sigma[0] == slow.profile.band < coefficients(shape).sigma[0]
    assert coefficients(shape, NO_PROFILE) == coefficients(shape)


def test_a_member_with_corrections_goes_to_other_processes(slow: Found) -> None:
    """Seeds are played in processes of their own."""
    for profile in (NO_PROFILE, slow.profile):
        member = Member("a", "mi300x", profile=profile)
        assert pickle.loads(pickle.dumps(member)).prior == member.prior


def test_no_correction_breaks_the_floor_of_the_sheet() -> None:
    """A factor that would read faster than the bandwidth stops at it."""
    shape = Shape(card("h100"), model("llama-3-8b"))
    quick = Profile({("card", "h100-sxm"): (-3.0,) * 6}, {("card", "h100-sxm"): 9}, 0.1)
    c, best = coefficients(shape, quick), ideal(shape)
    assert c.weights_s == best.weights_s
    assert c.context_s == best.context_s
    assert c.gemm_token_s == best.gemm_token_s


def test_rows_that_agree_on_nothing_make_no_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Left-out rows are predicted worse than by the tables: refused, with a status, and nothing is written."""
    noisy = rows(24, 1.0, noise=0.0)
    draw = np.random.default_rng(1).choice([0.75, 1.0, 1.0, 1.0, 2.5], len(noisy))
    path = write(
        tmp_path, [replace(m, tpot_s=m.tpot_s * f, ttft_s=m.ttft_s / f) for m, f in zip(noisy, draw, strict=True)]
    )
    assert calibrate([str(path), "--profile", str(tmp_path / "p.yaml")]) == 2
    assert "refused: the corrections make rows that were left out worse" in capsys.readouterr().out
    assert not (tmp_path / "p.yaml").exists()


def write(folder: Path, measured: list[Measurement], itl_ms: float | None = None) -> Path:
    """The rows as a CSV."""
    path = folder / "mine.csv"
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(HEADING.split(","))
        for m in measured:
            s = m.shape
            load = ("static_batch", int(m.batch), int(m.prompt_tokens), int(m.output_tokens))
            times = (m.ttft_s * 1e3, itl_ms or m.tpot_s * 1e3)
            lines.writerow(("vllm", s.card.name, s.model.name, s.precision, s.tp, *load, *times))
    return path


def test_the_command_writes_a_profile_that_router_and_pool_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a CSV to a router's and a pool's forecast, by the file's own folder."""
    path = write(tmp_path, rows(20, 2.0))
    assert calibrate([str(path), "--profile", str(tmp_path / "profile.yaml")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"median error: of the tables (49|50|51)\.\d%", said)
    assert "on rows left out of finding the corrections" in said
    backend = "{name: a, card: mi300x, model: llama-3-8b, models: [m]%s}"
    for name, extra in (("router.yaml", ", url: 'http://127.0.0.1:1'"), ("pool.yaml", "")):
        text = f"profile: profile.yaml\nbackends:\n  - {backend % extra}\n"
        (tmp_path / name).write_text(text)
    shape = Shape(card("mi300x"), model("llama-3-8b"))
    expected = coefficients(shape, read_profile(tmp_path / "profile.yaml"))
    assert expected.fixed_s > 1.5 * coefficients(shape).fixed_s
    assert plan_file(tmp_path / "router.yaml").backends[0].prior == expected
    assert load_pool(tmp_path / "router.yaml").members[0].prior == expected
    assert load_pool(tmp_path / "pool.yaml").members[0].prior == expected


def test_a_gap_below_the_floor_is_left_out_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Microseconds in a column of milliseconds, or another card than is stated."""
    path = write(tmp_path, rows(10, 1.0)[:1], itl_ms=0.9)
    assert calibrate([str(path)]) == 2
    assert f"{path}:2: 0.9 ms a token is less than the " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("128,64,2,25,,", "a first token after 2 ms is earlier than the 16.1 ms that reading the weights once takes"),
        ("8000,64,60,25,,", "a first token after 60 ms is earlier than half of the"),
        ("128,100,,14,UPPER BOUND,800", "800 ms for 100 tokens is less than the 1.61e+03 ms that reading weights"),
    ],
)
def test_a_row_below_any_floor_is_left_out_by_line(
    row: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first token before the weights are read or the prompt is computed; a reply faster than its tokens."""
    path = tmp_path / "mine.csv"
    heading = (
        "engine,card,model,precision,load_kind,batch_or_concurrency,isl,osl,ttft_ms_mean,itl_ms_mean,itl_kind,e2e_ms"
    )
    good = "128,64,40,25,,"
    path.write_text("\n".join([heading, *(f"vllm,a30,llama-3-8b,bf16,static_batch,1,{each}" for each in (good, row))]))
    assert calibrate([str(path)]) == 0
    said = capsys.readouterr()
    assert f"{path}:3: {why}" in said.err
    assert "1 rows used, 1 left out" in said.out


def test_a_row_may_state_the_precision_of_its_kv_cache(tmp_path: Path) -> None:
    """Its shape has it, so its context is half as many bytes; one that is unknown is named."""
    path = tmp_path / "mine.csv"
    heading = "engine,card,model,precision,kv_precision,load_kind,batch_or_concurrency,itl_ms_mean"
    lines = [f"vllm,h100,llama-3-8b,bf16,{each},static_batch,8,9" for each in ("", "fp8", "fp7")]
    path.write_text("\n".join([heading, *lines]))
    measured, skipped = read(path)
    assert [m.shape.kv_precision for m in measured] == [None, "fp8"]
    assert [(each.line, "fp7" in each.why) for each in skipped] == [(4, True)]


def test_few_rows_are_said_to_be_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables are judged by them all the same; a profile is not written."""
    path = write(tmp_path, rows(3, 1.0))
    assert calibrate([str(path)]) == 0
    assert calibrate([str(path), "--profile", str(tmp_path / "p.yaml")]) == 2
    assert f"3 usable rows; a profile needs at least {ENOUGH}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("tables: ", "tables: of-before-"), "corrects the tables of-before-"),
        (("headroom_profile: 1", "headroom_profile: 2"), "profile.yaml:3: headroom_profile"),
        (("overhead: ", "overhed: "), "no term 'overhed'; did you mean 'overhead'?"),
        (("overhead: ", "overhead: -"), "greater than or equal to 0"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(change: tuple[str, str], why: str, slow: Found, tmp_path: Path) -> None:
    """By place, and one for other tables whole."""
    path = tmp_path / "profile.yaml"
    path.write_text(profile_text(slow.profile).replace(*change))
    with pytest.raises(ConfigError, match=why.replace("?", r"\?")):
        read_profile(path)
    (tmp_path / "router.yaml").write_text(
        "profile: profile.yaml\nbackends:\n  - {name: a, url: 'http://127.0.0.1:1'}\n"
    )
    with pytest.raises(ConfigError, match=r"router.yaml:1: profile"):
        plan_file(tmp_path / "router.yaml")


def test_a_card_given_in_place_has_the_kernels_of_a_family() -> None:
    """A row of facts in YAML; an unknown family is refused with the nearest."""
    facts = {"memory_gib": 48, "bandwidth_gb_per_s": 864, "tflops": {"bf16": 181}, "family": "ada"}
    given = Backend.model_validate({"name": "a", "card": facts, "model": "llama-3-8b"})
    assert card_of(given.card).family == "ada"
    assert not isinstance(resolve(given, ()), list)
    with pytest.raises(ValueError, match="did you mean 'ada'"):
        Backend.model_validate({"name": "a", "card": facts | {"family": "adaa"}})
