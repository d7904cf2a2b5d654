"""Generated workloads: the statistics they promise, sessions that grow, clients that wait for answers."""

import gzip
from dataclasses import replace
from heapq import heappop, heappush
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import fmean, pstdev

import pytest

import policies
from simulator.errors import BadLine
from simulator.pool import BUILT_IN
from simulator.run.play import RunResult, play
from simulator.workload.arrival_times import NIGHT, day
from simulator.workload.arrivals import Arrival, Shaping
from simulator.workload.generators import PUBLISHED, UNIT_TOKENS, Agents, ClosedLoop, Sessions, generate, parse_recipe
from tests.refusals import refused

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


@pytest.mark.parametrize("kind", ["poisson", "gamma", "diurnal", "closed", "sessions", "agents"])
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


# ---- days ------------------------------------------------------------------------


@pytest.mark.parametrize("peak", [1.0, 1.5, 2.0, 3.0, 10.0])
def test_the_peak_of_a_day_is_exactly_what_is_asked_for(peak: float) -> None:
    """Mean 1, maximum ``peak``, and no hour of silence."""
    shape, points = day(peak), 20_000
    rates = [shape.rate(n / points) for n in range(points)]
    assert fmean(rates) == pytest.approx(1.0, rel=1e-6)
    assert max(rates) == pytest.approx(peak, rel=1e-6)
    assert min(rates) >= min(1.0, NIGHT) - 1e-9


@pytest.mark.parametrize("peak", [3, 10])
def test_a_drawn_day_has_its_peak_its_night_and_its_whole_length(peak: int) -> None:
    """A hundred bins of one period: the fullest has ``peak`` times the mean, none is empty, the last has requests."""
    at = [a.request.arrived_s for a in made(f"gen:diurnal:rate=100,peak={peak},period=1000")]
    counts = [0] * 100
    for at_s in at:
        counts[int(at_s // 10)] += 1
    assert len(at) == 100_000
    assert max(counts) / fmean(counts) == pytest.approx(peak, rel=0.06)
    assert min(counts) > 0.1 * fmean(counts)
    assert gaps(made(f"gen:diurnal:rate=100,peak={peak},period=1000"))[0] >= 0.0


def test_a_day_lasts_as_long_as_its_requests_or_has_as_many_as_it_lasts() -> None:
    """One of the two is enough; both that contradict each other are refused."""
    assert parse_recipe("gen:diurnal:rate=2,period=1h").requests == 7_200
    assert parse_recipe("gen:diurnal:rate=2,requests=400").period == 200.0
    assert parse_recipe("gen:diurnal:rate=2,requests=9000,period=1h").requests == 9_000
    with pytest.raises(ValueError, match="1000 requests at rate=2 last 500 s, less than a period of 3600 s"):
        parse_recipe("gen:diurnal:rate=2,requests=1000,period=1h")


def test_a_limit_cuts_a_day_and_does_not_shorten_it() -> None:
    """The first requests of the same day."""
    recipe = parse_recipe("gen:diurnal:rate=10,period=1000")
    whole = [a.request.arrived_s for a in generate(recipe, HOW, 0)]
    cut = [a.request.arrived_s for a in generate(recipe, replace(HOW, limit=100), 0)]
    start_s = whole[0]
    assert cut == whole[:100]
    assert start_s == 0.0


# ---- curves ----------------------------------------------------------------------

CURVE = "workload,t_s,total_rate_rps\nchat,0,2\nchat,100,20\nchat,200,0\nother,0,1\nother,100,1\n"
CLIENT = "0,1.5,8.59,Weibull,0.375,0.396\n600,0,0,,0,0\n1200,0.25,6.0,Weibull,0.49,3.38\n"


def test_a_curve_is_followed_window_by_window(tmp_path: Path) -> None:
    """2, 20 and 0 requests per second for 100 s each; a rate given scales all of it to that mean."""
    path = tmp_path / "curve.csv"
    path.write_text(CURVE)
    at = [a.request.arrived_s for a in made(f"gen:curve:rates={path},workload=chat")]
    early, late = sum(s < 100 for s in at), sum(s >= 100 for s in at)
    assert early == pytest.approx(200, rel=0.25)
    assert late == pytest.approx(2000, rel=0.1)
    assert max(at) <= 200.0
    scaled = made(f"gen:curve:rates={path},workload=chat,rate=100,start=100,span=50")
    assert len(scaled) == pytest.approx(5000, rel=0.1)


def test_a_curve_of_one_client_of_servegen_is_read(tmp_path: Path) -> None:
    """No header: seconds and rate come first; a client that is silent for a while is so here."""
    path = tmp_path / "chunk-0-trace.csv.gz"
    path.write_bytes(gzip.compress(CLIENT.encode()))
    at = [a.request.arrived_s for a in made(f"gen:curve:rates={path}")]
    assert len(at) == pytest.approx(900 + 150, rel=0.15)
    assert not [s for s in at if 602 < s < 1198]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CURVE, "expected workload= one of chat, other"),
        ("a,b\n1,2\n", ":1: expected columns t_s or timestamp, and rate or"),
        ("t_s,rate\n0,2\n0,3\n", ":3: times must grow"),
        ("t_s,rate\n0,2\n5,fast\n", ":3: the rate must be a number"),
        ("t_s,rate\n0,2\n", "2 rows or more"),
        ("t_s,rate\n0,0\n1,0\n", "every rate is 0"),
        ("", "(none in this file)"),
    ],
)
def test_a_curve_that_cannot_be_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """With file, line and what was expected."""
    path = tmp_path / "curve.csv"
    path.write_text(text)
    with refused(BadLine, path, expected):
        made(f"gen:curve:rates={path}")


# ---- agents ----------------------------------------------------------------------


def test_agents_prompts_grow_and_branches_begin_with_what_was_read() -> None:
    """Every prompt of a loop begins with the one before it; a branch begins with its parent's units."""
    run = Recorded("gen:agents:rate=0.05,requests=200,turns=2,steps=5,fork=0.4,branches=3,system=1024", seed=5)
    by_session = run.prompts()
    branches = [name for name in by_session if "/" in name]
    assert sum(map(len, by_session.values())) == 200
    assert branches
    for prompts in by_session.values():
        for before, after in pairwise(prompts):
            assert after[: len(before)] == before
    for name in branches:
        parent = by_session[name.partition("/")[0]]
        assert any(by_session[name][0][: len(one)] == one for one in parent)


def test_an_agent_waits_for_its_branches_and_its_tools() -> None:
    """Never two calls of one loop at once, and none of a loop while its branches run."""
    spans = Recorded("gen:agents:rate=0.02,requests=150,turns=2,steps=4,fork=0.5,branches=2", seed=2).spans()
    for name, calls in spans.items():
        for (_, ended_s), (arrived_s, _) in pairwise(calls):
            assert arrived_s >= ended_s
        inside = [span for other, theirs in spans.items() if other.startswith(name + "/") for span in theirs]
        for arrived_s, ended_s in calls:
            assert not [s for s in inside if s[0] < ended_s and s[1] > arrived_s]


def test_tool_pauses_have_the_mean_asked_for() -> None:
    """Between an end and the next call of the same turn; think time is far longer."""
    spans = Recorded("gen:agents:rate=0.1,requests=3000,turns=1,steps=20,tool=2,fork=0", seed=1).spans()
    pauses = [after[0] - before[1] for calls in spans.values() for before, after in pairwise(calls)]
    assert fmean(pauses) == pytest.approx(2.0, rel=0.1)


# ---- what a rate and a window are to a loop ---------------------------------------


def test_a_closed_loop_has_no_rate_and_no_window() -> None:
    """Both are refused with what to do instead; conversations begin faster at a higher rate."""
    closed, sessions = parse_recipe("gen:closed:requests=5"), parse_recipe("gen:sessions:rate=1,requests=50,turns=1")
    with pytest.raises(ValueError, match="give clients="):
        generate(closed, replace(HOW, rate=2.0), 0)
    with pytest.raises(ValueError, match="--window cuts a trace"):
        generate(sessions, replace(HOW, from_s=1.0), 0)
    slow, fast = (list(generate(sessions, replace(HOW, rate=rate), 0)) for rate in (1.0, 2.0))
    assert fast[-1].request.arrived_s == pytest.approx(slow[-1].request.arrived_s / 2)


class Recorded:
    """A loop in which every request takes a second; keeps prompts and times by session."""

    def __init__(self, text: str, seed: int) -> None:
        workload = generate(parse_recipe(text), HOW, seed)
        assert isinstance(workload, Agents)
        self.calls: list[tuple[str, tuple[int, ...], float]] = []
        due: list[tuple[float, int, Arrival]] = []
        first = iter(workload)
        coming = next(first, None)
        while coming is not None or due:
            if coming is not None and (not due or coming.request.arrived_s <= due[0][0]):
                heappush(due, (coming.request.arrived_s + 1.0, len(self.calls), self._noted(coming)))
                coming = next(first, None)
                continue
            ended_s, _, arrival = heappop(due)
            for later in workload.after(arrival, ended_s):
                workload.pending -= 1
                heappush(due, (later.request.arrived_s + 1.0, len(self.calls), self._noted(later)))
        assert workload.pending == 0

    def _noted(self, arrival: Arrival) -> Arrival:
        self.calls.append((arrival.request.session, tuple(arrival.request.prefix), arrival.request.arrived_s))
        return arrival

    def prompts(self) -> dict[str, list[tuple[int, ...]]]:
        found: dict[str, list[tuple[int, ...]]] = {}
        for name, prefix, _ in self.calls:
            found.setdefault(name, []).append(prefix)
        return found

    def spans(self) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for name, _, at_s in sorted(self.calls, key=lambda call: call[2]):
            found.setdefault(name, []).append((at_s, at_s + 1.0))
        return found
