"""Generated workloads: the statistics they promise, sessions that grow, clients that wait for answers."""

from itertools import pairwise
from math import log
from pathlib import Path
from statistics import fmean, pstdev

import pytest

import policies
from simulator.pool import BUILT_IN
from simulator.run.play import RunResult, play
from simulator.workload.arrivals import Arrival, Shaping
from simulator.workload.generators import PUBLISHED, UNIT_TOKENS, ClosedLoop, Sessions, generate, parse_recipe

HOW = Shaping("llama-3-8b")


def made(text: str, seed: int = 0) -> list[Arrival]:
    return list(generate(parse_recipe(text), HOW, seed))


def gaps(arrivals: list[Arrival]) -> list[float]:
    at = [arrival.request.arrived_s for arrival in arrivals]
    return [b - a for a, b in pairwise(at)]


def played(text: str) -> RunResult:
    routing, admission = policies.find("routing", "least_work"), policies.find("admission", "deadline")
    return play(generate(parse_recipe(text), HOW, 0), BUILT_IN, routing, admission, 0)


@pytest.mark.parametrize(
    ("text", "cv"), [("gen:poisson:rate=20,requests=20000", 1), ("gen:gamma:rate=20,requests=20000,cv=3", 3)]
)
def test_gaps_have_the_rate_and_the_variation_asked_for(text: str, cv: float) -> None:
    """Mean gap 50 ms; coefficient of variation 1 for Poisson, as asked for gamma."""
    found = gaps(made(text))
    assert fmean(found) == pytest.approx(0.05, rel=0.1)
    assert pstdev(found) / fmean(found) == pytest.approx(cv, rel=0.1)


def test_a_day_has_its_peak() -> None:
    """Most requests come in the half of the period in which the sine is up."""
    at = [a.request.arrived_s % 1000 for a in made("gen:diurnal:rate=10,requests=10000,peak=2,period=1000")]
    up = sum(s < 500 for s in at) / len(at)
    assert up == pytest.approx(0.5 + 1 / 3.1416, abs=0.03)


def test_lengths_have_the_published_means() -> None:
    """Azure's chats: prompts of 1,155 and replies of 211 tokens on average."""
    arrivals = made("gen:poisson:requests=20000")
    assert fmean(a.request.prompt_tokens for a in arrivals) == pytest.approx(1155, rel=0.05)
    assert fmean(a.output_tokens for a in arrivals) == pytest.approx(211, rel=0.05)
    assert set(PUBLISHED) == {"azure-conv", "azure-code"}


def test_lengths_can_be_drawn_from_a_trace_or_fixed(tmp_path: Path) -> None:
    """Pairs stay pairs."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"arrived_s": 0, "prompt_tokens": 7, "output_tokens": 3}\n')
    assert {(a.request.prompt_tokens, a.output_tokens) for a in made(f"gen:poisson:lengths={path},requests=5")} == {
        (7, 3)
    }
    assert {(a.request.prompt_tokens, a.output_tokens) for a in made("gen:poisson:prompt=9,output=2")} == {(9, 2)}


def test_lengths_spread_about_the_means_that_were_given() -> None:
    """Log-normal, with the standard deviation of the logarithm asked for."""
    arrivals = made("gen:poisson:prompt=800,output=200,sigma=0.5,requests=20000")
    for mean, found in (
        (800, [arrival.request.prompt_tokens for arrival in arrivals]),
        (200, [arrival.output_tokens for arrival in arrivals]),
    ):
        assert fmean(found) == pytest.approx(mean, rel=0.02)
        assert pstdev([log(one) for one in found]) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["poisson", "gamma", "diurnal", "closed", "sessions"])
def test_the_seed_replays_a_workload(kind: str) -> None:
    """The same seed gives the same requests, another seed others."""
    text = f"gen:{kind}:requests=50"
    assert made(text, 1) == made(text, 1)
    assert made(text, 1) != made(text, 2)


def test_closed_clients_wait_for_their_answers() -> None:
    """Four clients: never more than four requests at once, and all that were asked for come."""
    run = played("gen:closed:clients=4,requests=60,think=0.1")
    assert len(run.table) == 60
    events = [(at, 1) for at in run.table.column("arrived_s")] + [(at, -1) for at in run.table.column("ended_s")]
    level = highest = 0
    for _, change in sorted(events):
        level += change
        highest = max(highest, level)
    assert highest == 4


def test_turns_of_a_session_come_after_each_other_and_find_what_was_said() -> None:
    """A later turn's prompt begins with all before it; on one engine all of it, reply included, is in the cache."""
    workload = generate(parse_recipe("gen:sessions:rate=0.05,requests=30,turns=5,system=256"), HOW, 3)
    assert isinstance(workload, Sessions)
    routing, admission = policies.find("routing", "session_affinity"), policies.find("admission", "deadline")
    run = play(workload, BUILT_IN, routing, admission, 0)
    assert len(run.table) == 30
    cached, prompts = run.table.column("cached_tokens"), run.table.column("prompt_tokens")
    assert cached.sum() > 0.5 * prompts.sum()
    assert (cached <= prompts).all()


def test_the_system_prompt_is_everybodys() -> None:
    """First units of two sessions are the same, later ones are not."""
    first, second = made("gen:sessions:rate=1,requests=2,turns=1,system=512")[:2]
    shared = 512 // UNIT_TOKENS
    assert first.request.prefix[:shared] == second.request.prefix[:shared]
    assert not set(first.request.prefix[shared:]) & set(second.request.prefix[shared:])
    assert len(first.known_prefix) >= len(first.request.prefix)


def test_how_many_is_known_beforehand() -> None:
    """For progress bars."""
    closed = generate(parse_recipe("gen:closed:requests=7"), HOW, 0)
    assert isinstance(closed, ClosedLoop)
    assert len(closed) == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gen:poison", "a kind among poisson"),
        ("gen:poisson:rat=1", "did you mean 'rate'"),
        ("gen:poisson:rate=fast", "rate: could not convert"),
        ("gen:poisson:rate=0", "rate must be above 0"),
        ("gen:poisson:zz=3", "expected one of rate"),
        ("gen:poisson:prompt=3", "given together"),
        ("gen:poisson:sigma=0.5", "sigma must be 0 or more, and goes with prompt"),
        ("gen:diurnal:peak=99", "peak must be 1 to"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(text: str, expected: str) -> None:
    """With the kinds and keys there are."""
    with pytest.raises(ValueError, match=expected):
        parse_recipe(text)


def test_lengths_from_nowhere_are_refused() -> None:
    """Neither published nor a file."""
    with pytest.raises(ValueError, match="azure-conv, azure-code or a trace file"):
        made("gen:poisson:lengths=/nowhere")
