"""The planner: the cheapest that attains, why others lose, and files that start."""

import json
import shlex
from argparse import ArgumentParser
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import pytest

from router.core.cards import Card, card
from router.core.models import model
from router.core.profile import TERMS, Profile, tables_version
from router.gateway.config.plan import plan_file
from simulator.calibration.profile_file import profile_text
from simulator.commands import planning_options
from simulator.commands.plan import words
from simulator.experiment import Source
from simulator.planning.demand import Demand, demand_of
from simulator.planning.families import Family
from simulator.planning.files import replayed, write
from simulator.planning.fluid import bound
from simulator.planning.goals import goals_of
from simulator.planning.plan import Effort, Plan, frontier, plan
from simulator.planning.prices import Price, Prices
from simulator.planning.search import Bracket, Played
from simulator.planning.trial import Load, Trial, trial
from simulator.planning.variants import Choices, Mix, variants
from simulator.pool import Member, Pool
from simulator.pool_file import load_pool
from simulator.report.plan_page import page
from simulator.report.planning import plain_plan
from tests.commands import simulator_command

GOALS = goals_of(["ttft=1s@0.97,tpot=60ms@0.97"], 0.97)
SOURCE = Source(("gen:poisson:rate=6,requests=250",))


class Here(Executor):
    """Runs each task when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def demand() -> Demand:
    pool = Pool((Member("a", "a10"),), GOALS.classes)
    return demand_of(list(SOURCE.arrivals(pool, 0)))


def load() -> Load:
    return Load(SOURCE, GOALS, "slo_headroom", "deadline", ("llama-3-8b",))


def choices(*cards: Card, prices: Prices | None = None) -> Choices:
    return Choices(model("llama-3-8b"), cards, (1, 2), (1,), ("fp16",), ("vllm",), prices or Prices())


def found(of: Choices, effort: Effort | None = None) -> Plan:
    return plan(of, demand(), load(), effort or Effort(seeds=3, answers=2), Here(), lambda done: None)


@pytest.fixture(scope="module")
def planned() -> Plan:
    """Llama 3 8B on A10, L20 and A800 at 6 requests a second."""
    return found(choices(card("a10"), card("l20"), card("a800"), card("t4")))


def test_answers_attain_and_the_cheapest_is_first(planned: Plan) -> None:
    """Under every seed; each candidate is either an answer or loses for a reason."""
    assert planned.complete
    costs = [answer.mix.usd_per_hour for answer in planned.answers]
    assert costs == sorted(costs)
    assert len(costs) >= 2
    assert all(one.met for answer in planned.answers for one in answer.played.trials)
    assert len({*(answer.mix.label for answer in planned.answers)}) == len(costs)
    assert all(loser.why for loser in planned.losers)
    dearer = [loser.mix for loser in planned.losers if loser.mix is not None]
    assert all(mix.order > planned.answers[0].mix.order for mix in dearer)


def test_the_winner_attains_under_another_seed(planned: Plan) -> None:
    """That the search did not play."""
    for answer in planned.answers[:2]:
        again = trial(load().case(answer.mix, 77), GOALS)
        assert again.met, again


def test_one_replica_fewer_of_the_winner_does_not_attain(planned: Plan) -> None:
    """Of any of its makes."""
    parts = planned.answers[0].mix.parts
    for n, (variant, count) in enumerate(parts):
        fewer = tuple(part for part in (*parts[:n], (variant, count - 1), *parts[n + 1 :]) if part[1])
        cases = [load().case(Mix(fewer), seed) for seed in range(3)]
        assert not Played(Mix(fewer), tuple(trial(case, GOALS) for case in cases)).met


def test_a_loser_says_why(planned: Plan) -> None:
    """What never attains by physics, what does not fit, what is dearer."""
    why = {loser.label: loser.why for loser in planned.losers}
    assert "long prompts cannot be prefilled in 1 s" in why["t4 TP2 fp16 vllm"]
    assert "leave no room for KV" in why["t4 fp16 vllm"]
    assert any("dearer than" in each or "no cheaper than" in each for each in why.values())


def test_a_dearer_identical_card_never_ranks_above() -> None:
    """Two cards that differ in name and price alone: the cheaper wins, and the dearer is behind it."""
    both = replace(card("l20"), name="l20-a"), replace(card("l20"), name="l20-b")
    for dearer in (1.01, 3.0):
        prices = Prices({"l20-a": Price(dearer, "test"), "l20-b": Price(1.0, "test")})
        of = replace(choices(*both, prices=prices), tp=(1,))
        ranked = found(of, Effort(seeds=2, answers=2, mixes=False))
        assert [answer.mix.parts[0][0].card.name for answer in ranked.answers] == ["l20-b", "l20-a"]
        assert len({answer.mix.replicas for answer in ranked.answers}) == 1


def test_another_choice_never_makes_the_answer_dearer(planned: Plan) -> None:
    """The cheapest among fewer cards is no cheaper than among more."""
    fewer = found(choices(card("l20"), card("a800")))
    assert planned.answers[0].mix.usd_per_hour <= fewer.answers[0].mix.usd_per_hour + 1e-9


def test_the_files_start(planned: Plan, tmp_path: Path) -> None:
    """The pool attains in a replay; the gateway takes the other as its config."""
    best = planned.answers[0]
    write(tmp_path / "out", best.mix, load(), "plan ...")
    pool = load_pool(tmp_path / "out" / "pool.yaml")
    priced = [site.backend.price_per_hour for site in pool.sites(0)]
    assert priced == [site.backend.price_per_hour for site in load().pool(best.mix).sites(0)]
    assert pool.classes == GOALS.classes
    case = replace(load().case(best.mix, 0), pool=pool)
    assert trial(case, GOALS).met
    started = plan_file(tmp_path / "out" / "router.yaml", {})
    assert len(started.backends) == best.mix.replicas
    assert simulator_command(
        ["replay", "gen:poisson:rate=6,requests=20", "--pool", str(tmp_path / "out" / "router.yaml")]
    ).exit_code == 0  # fmt: skip


def test_the_page_and_the_data_name_everything(planned: Plan) -> None:
    """Every answer and loser; the frontier drawn; nothing fetched."""
    text = page(planned)
    data = plain_plan(planned)
    for label in [*(a.mix.label for a in planned.answers), *(each.label for each in planned.losers)]:
        assert label in text
        assert label in json.dumps(data)
    assert "Frontier" in text
    assert text.count("<circle") >= len(planned.every)
    assert not any(word in text for word in ("http://", "https://", "<script", "@import", "url("))
    assert "an example of the card table: a10" in text or "an example of the card table: a800" in text


def test_a_profile_makes_a_plan_and_goes_with_its_files(tmp_path: Path) -> None:
    """Cards that are slower than the tables have it serve less; replay and gateway read the same corrections."""
    slow = Profile(
        logs={("card", "a10"): (log(2),) * len(TERMS)},
        rows={("card", "a10"): 30},
        band=0.1,
        facts={"tables": tables_version(), "rows": 30},
    )
    [plain, *_], _ = variants(choices(card("a10")))
    [corrected, *_], _ = variants(replace(choices(card("a10")), profile=slow))
    assert bound(corrected, demand()).whole.rate_per_s < 0.7 * bound(plain, demand()).whole.rate_per_s
    path = tmp_path / "profile.yaml"
    path.write_text(profile_text(slow))
    write(tmp_path / "out", Mix(((corrected, 1),)), load(), "plan ...", path)
    [site] = load_pool(tmp_path / "out" / "pool.yaml").sites(0)
    assert site.backend.prior.context_s == pytest.approx(corrected.prior.context_s, rel=1e-3)
    assert load().pool(Mix(((corrected, 1),))).sites(0)[0].backend.prior == corrected.prior
    assert plan_file(tmp_path / "out" / "router.yaml", {}).backends


# ---- the search, with scripted runs ---------------------------------------------------


def scripted(margin: float, seed: int = 0) -> Trial:
    return Trial(seed, {"ttft": 0.97 + margin}, margin, 100, False, {"ttft": 1.0}, 100.0)


def played(*margins: float) -> Played:
    variant = variants(choices(card("l20")))[0][0]
    return Played(Mix(((variant, 1),)), tuple(scripted(each, n) for n, each in enumerate(margins)))


def test_attaining_by_chance_is_not_enough() -> None:
    """Every seed has to attain, and by their spread a further one."""
    assert played(0.02, 0.021, 0.019).met
    assert not played(0.02, -0.001, 0.02).met
    assert not played(0.02, 0.0001, 0.03).met
    assert played(0.02, 0.01).met
    assert played(0.0).met


@pytest.mark.parametrize("least", [1, 5, 40])
@pytest.mark.parametrize("needed", [1, 3, 17, 61])
def test_a_bracket_closes_at_the_smallest_that_attains(least: int, needed: int) -> None:
    """Whatever the steps by which it grew; it ends where more replicas no longer help."""
    family = Family(bound(variants(choices(card("l20")))[0][0], demand()), least)
    bracket = Bracket(family, least - 1)
    runs = 0
    while bracket.next:
        count = bracket.next
        bracket.add(count, played(0.01 if count >= needed else -0.9 * 0.5**count))
        runs += 1
    reached = needed <= family.most
    assert bracket.high == (max(least, needed) if reached else 0)
    assert bracket.hopeless is not reached
    assert runs < 25


def test_a_family_that_more_replicas_do_not_help_is_left(planned: Plan) -> None:
    """One that stays as far from the goal as it was."""
    bracket = Bracket(Family(bound(variants(choices(card("l20")))[0][0], demand()), 20), 19)
    runs = 0
    while bracket.next:
        bracket.add(bracket.next, played(-0.2))
        runs += 1
    assert bracket.hopeless
    assert runs < 8


def test_the_frontier_has_no_candidate_that_another_beats(planned: Plan) -> None:
    """Dearer only where it attains more."""
    line = frontier(planned.every)
    assert all(a.mix.order < b.mix.order and a.margin < b.margin for a, b in pairwise(line))


def test_a_budget_that_is_used_up_is_stated() -> None:
    """And what is undecided is called so."""
    short = found(choices(card("a10"), card("l20")), Effort(seeds=3, answers=9, budget=1, mixes=False))
    assert not short.complete
    assert len(short.every) <= 4
    assert "the budget ended it" in page(short)
    assert plain_plan(short)["complete"] is False


# ---- the command -----------------------------------------------------------------------

LINE = ["plan", "--model", "llama-3-8b", "--traffic", "gen:poisson:requests=200", "--rate", "3", "--jobs", "1"]


def test_the_command_ranks_and_writes(tmp_path: Path) -> None:
    """Table, JSON, page and the winner's files."""
    out = tmp_path / "plan.json"
    result = simulator_command([
        *LINE, "--slo", "ttft=1s@0.95,tpot=60ms", "--goal", "0.95", "--cards", "l20,l4", "--precision", "fp16",
        "--tp", "1", "--pp", "1", "--seeds", "2", "--answers", "1", "--json", str(out), "--html",
        str(tmp_path / "plan.html"), "--write", str(tmp_path / "won"),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads(out.read_text())
    assert facts["load"]["rate_per_s"] == 3
    assert facts["answers"][0]["candidate"] in result.stdout
    assert (tmp_path / "won" / "pool.yaml").exists()
    assert "<svg" in (tmp_path / "plan.html").read_text()


def test_the_winner_and_the_runner_up_are_written_with_the_line_that_plays_them(tmp_path: Path) -> None:
    """Each attains by that very line, under seeds that the search did not play; engines have their start commands."""
    won = tmp_path / "won"
    result = simulator_command([
        *LINE, "--slo", "ttft=1s@0.9,tpot=80ms@0.9", "--goal", "0.9", "--cards", "l20", "--precision", "fp16",
        "--tp", "1", "--pp", "1", "--seeds", "1", "--answers", "2", "--engines", "vllm@0.9,sglang",
        "--no-mixed", "--limit", "60", "--write", str(won),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    for folder in (won, won / "2"):
        words = next(line for line in (folder / "pool.yaml").read_text().splitlines() if "simulator replay" in line)
        out = tmp_path / "out.json"
        played = simulator_command([*shlex.split(words)[4:], "--seeds", "2", "--jobs", "1", "--json", str(out)])
        assert played.exit_code == 0, played.output
        assert json.loads(out.read_text())["intervals"]["slo_headroom"]["attainment"][0] > 0.6
        config = folder / "router.yaml"
        assert len(plan_file(config, {}).backends) >= 1
        assert any(line.startswith("#   l20") and " --port 8001" in line for line in config.read_text().splitlines())


@pytest.mark.parametrize(
    ("traffic", "more"),
    [
        ("gen:closed:clients=20,think=1s,requests=80,prompt=300,output=60", []),
        ("gen:agents:steps=3,tool=1s,think=2s,requests=80,prompt=300,output=60,system=256", ["--rate", "4"]),
    ],
)
def test_traffic_that_follows_from_replies_is_planned_for(tmp_path: Path, traffic: str, more: list[str]) -> None:
    """What attains does under every seed, fewer do not; costs are of the tokens that came about."""
    out = tmp_path / "plan.json"
    result = simulator_command([
        "plan", "--model", "llama-3-8b", "--traffic", traffic, *more, "--slo", "ttft=1s@0.95,tpot=60ms@0.95",
        "--goal", "0.95", "--cards", "l20", "--precision", "fp16", "--tp", "1", "--pp", "1", "--seeds", "1",
        "--answers", "1", "--jobs", "1", "--json", str(out),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads(out.read_text())
    assert facts["load"]["follows_from_replies"] is True
    assert "they follow from replies" in result.stdout
    answer = facts["answers"][0]
    assert all(run["requests_per_s"] >= 0.8 * facts["load"]["rate_per_s"] for run in answer["runs"])
    assert answer["usd_per_million_output_tokens"] > 0


def test_a_version_of_an_engine_is_planned_with(tmp_path: Path) -> None:
    """Its step times and its scheduler, in the files too."""
    older, newer = (variants(replace(choices(card("a10")), engines=(name,)))[0][0] for name in ("vllm@0.4", "vllm"))
    assert older.prior != newer.prior
    write(tmp_path, Mix(((older, 1),)), load(), "plan ...")
    [site] = load_pool(tmp_path / "pool.yaml").sites(0)
    assert site.backend.prior == older.prior
    assert not site.limits.reserve_prompt


@pytest.mark.parametrize(
    ("engine", "kv_precision", "words"),
    [
        ("vllm", "fp8", " --kv-cache-dtype fp8"),
        ("sglang", "fp8", " --kv-cache-dtype fp8_e4m3"),  # its flag has no fp8
        ("vllm", "int8", "  # KV in int8"),  # and no engine's has int8
        ("tensorrt-llm", "fp8", "  # KV in fp8"),
    ],
)
def test_engines_are_started_with_the_precision_of_kv_that_was_planned(
    tmp_path: Path, engine: str, kv_precision: str, words: str
) -> None:
    """By a flag in the engine's own words, else it is named; the emulated engine in its place has it too."""
    of = replace(choices(card("a10")), engines=(engine,), kv_precision=kv_precision)
    write(tmp_path, Mix(((variants(of)[0][0], 1),)), load(), "plan ...")
    lines = (tmp_path / "router.yaml").read_text().splitlines()
    assert next(line for line in lines if "--port 8001" in line and "simulator" not in line).endswith(words)
    assert f" --kv-precision {kv_precision} " in next(line for line in lines if "simulator serve" in line)


def test_the_line_that_found_an_answer_has_all_that_decided_it() -> None:
    """Typed again it is the same command, but for where results go."""
    parser = ArgumentParser()
    planning_options.plan(parser)
    typed = [
        "--model", "llama-3-8b", "--traffic", "a b.csv", "c.csv", "--slo", "chat@0.5:ttft=1s@0.9", "--slo",
        "b@0.5:e2e=9s", "--rate", "12.345678", "--limit", "90", "--skip-bad", "--goal", "0.9", "--cards", "l20,a10",
        "--tp", "1,2", "--pp", "1", "--precision", "fp8", "--kv-precision", "fp8", "--engines", "vllm@0.9,sglang",
        "--cards-most", "4", "--prices", "p.yaml", "--profile", "q.yaml", "--no-mixed", "--policy", "least_work",
        "--admission", "deadline:held_max=9", "--seed", "3", "--seeds", "2", "--answers", "1", "--budget", "900",
    ]  # fmt: skip
    for given in (typed, typed[:7]):
        options = parser.parse_args(given)
        assert parser.parse_args(shlex.split(words(options))[4:]) == options
    assert words(options).endswith("--slo chat@0.5:ttft=1s@0.9")


def test_bad_lines_are_skipped_in_the_replay_of_a_plan_too() -> None:
    """The line that plays it again has what the plan was made with."""
    skipping = replace(load(), source=replace(SOURCE, skip_bad=True))
    assert "--skip-bad" in replayed(skipping, Path("pool.yaml"))
    assert "--skip-bad" not in replayed(load(), Path("pool.yaml"))


def test_nothing_attains_is_status_1() -> None:
    """With the reason of each."""
    result = simulator_command([*LINE, "--slo", "tpot=1ms", "--cards", "l4", "--precision", "fp16", "--tp", "1"])
    assert result.exit_code == 1
    assert "nothing attains the SLO" in result.stdout
    assert "a step of one sequence takes" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slo", "ttft=1s", "--cards", "l21"], "no card named 'l21'"),
        (["--slo", "ttft=1s@2"], "expected a share"),
        (["--slo", "ttft=1s", "--traffic", "gen:closed"], "give clients="),
        (["--slo", "ttft=1s", "--engines", "vlm"], "vlm"),
        (["--slo", "ttft=1s", "--precision", "fp7"], "no precision named 'fp7'"),
        (["--slo", "ttft=1s", "--policy", "none"], "none"),
        (["--slo", "ttft=1s", "--traffic", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--slo", "ttft=1s", "--prices", "nowhere.yaml"], "nowhere.yaml"),
        (["--slo", "ttft=1s", "--rate", "0"], "--rate"),
        (["--slo", "ttft=1s", "--html", "nowhere/plan.html"], "there is no folder nowhere"),
        (["--slo", "ttft=1s", "--write", "README.md"], "README.md is no folder"),
        (["--slo", "ttft=1s", "--write", "nowhere/won"], "there is no folder nowhere"),
        ([], "--slo"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(words: list[str], message: str) -> None:
    """Status 2 and what was expected."""
    result = simulator_command([*LINE, *words])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(("rate", "requests", "per_s"), [(["--rate", "2"], 600, 2.0), ([], 1440, 8.0)])
def test_of_a_long_trace_three_minutes_are_played(tmp_path: Path, rate: list[str], requests: int, per_s: float) -> None:
    """At its own rate, or at the one that is asked for; 600 requests at least."""
    trace = tmp_path / "long.jsonl"
    trace.write_text(
        "".join(f'{{"arrived_s": {n / 8}, "prompt_tokens": 100, "output_tokens": 10}}\n' for n in range(2_000))
    )
    result = simulator_command([
        "plan", "--model", "llama-3-8b", "--traffic", str(trace), *rate, "--slo", "tpot=1ms", "--cards", "l4",
        "--tp", "1", "--pp", "1", "--precision", "fp16", "--jobs", "1", "--json", "-",
    ])  # fmt: skip
    facts = json.loads(result.stdout)["load"]
    assert facts["requests"] == requests
    assert facts["rate_per_s"] == pytest.approx(per_s)
