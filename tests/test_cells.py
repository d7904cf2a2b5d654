"""The grid's own parts: cells as text, an even draw, bounds and rates that are what they say, comparison, the page."""

from collections import Counter
from html.parser import HTMLParser
from math import inf

import pytest

from simulator.experiment import CLAIRVOYANT
from tests.bench import grid
from tests.cell_runs import Result, Run, figures, goodput_kept, overloaded, paired_error, results
from tests.cells import LEVELS, POOLS, TIGHTNESS, WORKLOADS, Cell, drawn, idle_of, lengths_of, parse_cell, promised

EASY = Cell("azure-conv", "ttft+tpot", "edge", "four", "0.3", 1, small=True)


def run(attained: float, met: str = "") -> Run:
    return Run(attained, 1.0, 10, 1.0, 0.0, frozenset(met))


def result(cell: Cell, ours: float, **others: float) -> Result:
    return Result(cell, {"slo_headroom": run(ours), **{name: run(attained) for name, attained in others.items()}})


def test_a_cell_reads_as_it_is_written() -> None:
    """All 2,660 of them, seeds apart."""
    cells = drawn(400, 3, {})
    assert [parse_cell(str(cell)) for cell in cells] == cells
    assert str(Cell("chat", "none", "", "one", "0.7", 5)) == "chat/none/one/0.7/s5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chat/e2e-edge/one/0.7", "expected WORKLOAD"),
        ("chat/e2e-edge/one/0.7/1x", "expected WORKLOAD"),
        ("chat/e2e/one/0.7/s1", "tightness: expected one of tight"),
        ("chats/e2e-edge/one/0.7/s1", "workload: expected one of chat"),
        ("chat/e2e-edge/one/0.8/s1", "load: expected one of 0.3"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(text: str, expected: str) -> None:
    """With the part and its choices."""
    with pytest.raises(ValueError, match=expected):
        parse_cell(text)


@pytest.mark.parametrize("name", list(LEVELS))
def test_every_level_is_drawn_equally_often(name: str) -> None:
    """Within one; nothing is promised in as many cells as any other promise has, and those have no tightness."""
    cells = drawn(237, 11, {})
    counts = Counter(getattr(cell, name) for cell in cells)
    levels = [level for level in LEVELS[name] if name != "tightness"]
    assert len(set(cells)) == 237
    assert all(abs(counts[level] - 237 / len(levels)) <= 1 for level in levels)
    assert counts[""] == sum(cell.promise == "none" for cell in cells) * (name == "tightness")


def test_a_draw_can_be_narrowed_and_repeats() -> None:
    """The same cells for the same seed, others for another; more than there are take further seeds."""
    only = grid.only_of("promise=e2e|ttft,load=1.3,pool=one,workload=chat,tightness=edge")
    few = drawn(10, 1, only)
    assert {cell.promise for cell in few} == {"e2e", "ttft"}
    assert len(set(few)) == 10
    assert drawn(50, 1, {}) == drawn(50, 1, {}) != drawn(50, 2, {})


@pytest.mark.parametrize("text", ["promises=e2e", "promise=e3e"])
def test_what_is_no_level_is_refused(text: str) -> None:
    """With those there are."""
    with pytest.raises(ValueError, match="expected"):
        grid.only_of(text)


@pytest.mark.parametrize("pool", list(POOLS))
@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_a_tighter_promise_and_more_bounds_carry_no_more(workload: str, pool: str) -> None:
    """Capacity above 0 for the tightest, and never less for a looser one or one bound fewer."""
    rates = {
        (promise, tightness): Cell(workload, promise, tightness, pool, "0.7", 1).capacity_per_s
        for promise in ("ttft", "tpot", "e2e", "ttft+tpot", "all")
        for tightness in TIGHTNESS
    }
    free = Cell(workload, "none", "", pool, "0.7", 1).capacity_per_s
    for (promise, tightness), rate in rates.items():
        assert 0 < rates[promise, "tight"] <= rate <= free
        assert rates["all", tightness] <= rate


def test_a_pool_too_slow_for_its_bounds_has_a_capacity() -> None:
    """Under seed 59 the only engine takes longer than 1.5 times what its data sheet says."""
    assert Cell("code", "all", "tight", "one", "0.7", 59).capacity_per_s > 0


def test_what_a_session_said_before_is_not_new() -> None:
    """Prompts grow by all that was said; what an ideal cache lacks is about a question."""
    lengths = lengths_of("sessions")
    assert lengths.prompt > 4 * lengths.new
    assert lengths.new < 1_155 + 500


def test_bounds_are_multiples_of_an_idle_engines_times() -> None:
    """Those that the promise names, no other."""
    ttft_s, tpot_s, e2e_s = idle_of("chat", "mixed")
    (both,) = promised("ttft+tpot", 3.0, "chat", "mixed")
    assert (both.slo.ttft_s, both.slo.tpot_s, both.slo.e2e_s) == (3 * ttft_s, 3 * tpot_s, inf)
    tight, loose = promised("classes", 3.0, "chat", "mixed")
    assert (tight.slo.tpot_s, loose.slo.tpot_s, loose.slo.e2e_s) == (3 * tpot_s, inf, 9 * e2e_s)


def test_far_below_capacity_all_is_well_and_far_beyond_it_is_not() -> None:
    """What the estimate of capacity is for; with round robin over equal engines."""
    runs = overloaded(EASY, (0.3, 2.0), "round_robin")
    assert runs[0.3].attained > 0.9
    assert runs[2.0].attained < 0.2


def test_policies_meet_the_same_arrivals() -> None:
    """In one process or in two: the same figures, the clairvoyant's among them."""
    policies = ("slo_headroom", "least_work", CLAIRVOYANT)
    (here,), (there,) = (list(results([EASY], policies, jobs)) for jobs in (1, 2))
    assert {name: one.met for name, one in here.runs.items()} == {name: one.met for name, one in there.runs.items()}
    assert len({one.requests for one in here.runs.values()}) == 1


def test_the_error_of_a_difference_counts_requests_on_which_two_runs_differ() -> None:
    """Two of ten, one each way: a difference of 0 with a standard error of sqrt(0.2 / 10)."""
    assert paired_error(run(0.5, "abcde"), run(0.5, "abcdx")) == pytest.approx((0.2 / 10) ** 0.5)
    assert paired_error(run(0.5, "abcde"), run(0.5, "abcde")) == 0.0


def test_goodput_that_still_grows_is_kept() -> None:
    """Only what comes after the maximum counts."""
    assert goodput_kept({1.0: run(0.9), 1.5: run(0.8), 2.0: run(0.7)}) == (1.0, 0.0)
    assert goodput_kept({1.0: run(0.9), 1.5: run(0.5), 2.0: run(0.4)})[0] == pytest.approx(0.75 / 0.9)


FOUND = [
    result(Cell("chat", "e2e", "edge", "one", "1.3", 1), 0.5, round_robin=0.9, least_kv=0.8),
    result(Cell("code", "ttft", "tight", "four", "0.95", 1), 1.0, round_robin=0.1, least_kv=0.4),
    result(Cell("chat", "none", "", "mixed", "0.3", 1), 1.0, round_robin=1.0, least_kv=1.0, clairvoyant=0.9),
]


def test_the_figures_name_the_worse_cells_and_the_best_single_baseline() -> None:
    """The single one is the best over all cells near capacity, not of each."""
    facts = figures(FOUND)
    assert facts["worse"] == ["chat/e2e-edge/one/1.3/s1"]
    assert facts["near_capacity"]["single"] == "least_kv"
    assert facts["near_capacity"]["over_single"] == pytest.approx((1.5 - 1.2) / 2)
    assert facts["near_capacity"]["over_best"] == pytest.approx((-0.4 + 0.6) / 2)
    assert facts["beyond_bound"] == ["chat/none/mixed/0.3/s1"]
    assert any("chat/e2e-edge/one/1.3/s1" in row for row in grid.summary(FOUND))


class Balanced(HTMLParser):
    """Every tag closed in its order; the text of every table's cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_heat_map_shows_every_cell() -> None:
    """Well formed and self-contained; differences in points."""
    page = grid.html(FOUND)
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert parser.cells[:3] == ["-40.0", "+0.0", "+60.0"]
    assert "http" not in page
