"""Tables in a terminal: no cell is cut, whatever its width; intervals stay within what a figure can be."""

import io
import re
from collections.abc import Callable
from itertools import product

import pytest
from rich.console import Console

from router.core.cards import CARDS, card
from router.core.models import MODELS, model
from router.core.slo_metrics import SLO_METRICS
from simulator.planning.fitting import PRECISIONS, fits, sized
from simulator.planning.prices import Prices
from simulator.planning.stepping import Question, steps
from simulator.report.catalogue import print_cards, print_models
from simulator.report.fitting import print_fit
from simulator.report.stepping import print_steps
from simulator.report.table import print_comparison, print_intervals, spread_text

POLICIES = ("round_robin", "least_work", "slo_headroom", "clairvoyant:strategy=lightest")


def printed(width: int, terminal: bool, show: object) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    show(console)  # type: ignore[operator]
    return out.getvalue()


def spread(mean: float) -> dict[str, tuple[float, float]]:
    names = ("attainment", "goodput_per_s", *(f"{m.name}_p99_s" for m in SLO_METRICS), "usd_per_million_output_tokens")
    return {name: (mean + n / 100, 0.0123) for n, name in enumerate(names)}


@pytest.mark.parametrize(("width", "terminal"), [*product((40, 80, 120, 300), (True,)), (80, False)])
def test_no_cell_is_cut(width: int, terminal: bool) -> None:
    """Every figure of every row is there, in a terminal of any width and in a file."""
    rows = {("a-pool", rate, policy): spread(0.123456) for rate in ("x1", "x2") for policy in POLICIES}
    shown = printed(width, terminal, lambda console: print_comparison(console, rows, 3))
    assert "\u2026" not in shown
    assert "..." not in shown
    if width >= 80:
        assert shown.count("12.35% +-1.23%") == len(rows)
        assert shown.count("clairvoyant:strategy=lightest") >= 2
    if terminal:
        assert max(map(len, shown.splitlines())) <= width
    whole = printed(300, True, lambda console: print_intervals(console, {"p": spread(1.0)}))
    assert len([line for line in whole.splitlines() if line.strip().startswith("p ")]) == 1


SIZED = sized("72B")
LISTS: dict[str, Callable[[Console], None]] = {
    "cards": lambda console: print_cards(console, list(CARDS.values()), Prices()),
    "models": lambda console: print_models(console, list(MODELS.values())),
    "fit": lambda console: print_fit(console, SIZED, PRECISIONS, fits(SIZED.model, [card("h20")], PRECISIONS)),
    "step": lambda console: print_steps(console, STEP, steps(STEP, (1, 2, 4, 8)), None),
}
STEP = Question(model("chatglm-6b"), card("a10"), "fp16", "vllm", 1, 512)


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_list_is_cut(name: str, width: int) -> None:
    """Every cell of a wide terminal is there in a narrow one, columns below each other or folded."""
    narrow, wide = printed(width, True, LISTS[name]), printed(1_000, True, LISTS[name])
    assert "\u2026" not in narrow
    squeezed = "".join(narrow.split())
    for row in wide.splitlines():
        for cell in (part for part in re.split(r" {2,}", row.strip()) if len(part) <= 24):
            assert "".join(cell.split()) in squeezed


@pytest.mark.parametrize(
    ("mean", "half", "most", "expected"),
    [
        (0.4677, 1.35, 1.0, "46.77% (0.00% to 100.00%)"),
        (0.4677, 0.02, 1.0, "46.77% +-2.00%"),
        (0.99, 0.02, 1.0, "99.00% (97.00% to 100.00%)"),
        (0.5, 0.0, 1.0, "50.00%"),
        (3.0, 4.0, float("inf"), "300.00% (0.00% to 700.00%)"),
        (float("nan"), 0.0, 1.0, "-"),
    ],
)
def test_an_interval_stays_within_what_can_be(mean: float, half: float, most: float, expected: str) -> None:
    """An attainment of 47 % is not 135 % off; where an interval has to end earlier, both ends are shown."""
    assert spread_text(mean, half, lambda x: f"{x:.2%}", most) == expected
