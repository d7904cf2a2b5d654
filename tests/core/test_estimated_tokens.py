"""What is said of a reply whose tokens nobody counted: no TPOT, and of its SLO what is certain."""

import json
from math import inf, isnan, nan

import pytest

from router.core.decisions import RequestRecord
from router.core.record import Recording, replay
from router.core.types import Slo, Usage
from tests.fakes import account, backend, core, request

# FastChat's chat: two tokens an event, no usage. Twenty-one events in 3 s of which the first came after 0.5 s.
USAGE = Usage(26, estimated=True, output_tokens_least=21)


def ended(slo: Slo, usage: Usage = USAGE, *, last_s: float = 3.5, cap: int = 41, **more: object) -> RequestRecord:
    """A request that came at 0, whose first token came at 0.5 and whose end at 4."""
    it = core(backend())
    it.arrived(request("r", slo=slo, output_tokens_max=cap, **more), 0.0)
    it.first_token("r", 1, 0.5)
    return account(it.ended("r", 1, usage, 4.0, last_s))


def test_an_estimate_has_no_tpot() -> None:
    """Its time to first token and its end are measured all the same."""
    record = ended(Slo())
    assert isnan(record.tpot_s)
    assert record.latencies_s()[:3] == pytest.approx((0.5, nan, 4.0), nan_ok=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (3.0 / 40, 3.0 / 20)),  # 41 tokens at most, by the cap, and 21 at least
        ({"cap": 0}, (0.0, 3.0 / 20)),
        ({"cap": 10}, (3.0 / 25, 3.0 / 20)),  # a cap that the engine did not keep is none
        ({"usage": Usage(26, estimated=True)}, (3.0 / 40, inf)),
        ({"last_s": nan}, (0.0, 3.5 / 20)),  # when the last token came is not known, but that it came before the end
        ({"cap": 21, "sequences": 2}, (3.0 / 20, 3.0 / 9.5)),
        ({"usage": Usage(21)}, (3.0 / 20, 3.0 / 20)),
        ({"streamed": False}, (nan, nan)),
    ],
    ids=["both", "no cap", "cap exceeded", "events not counted", "end unknown", "two sequences", "counted", "whole"],
)
def test_what_tpot_can_have_been(given: dict[str, object], expected: tuple[float, float]) -> None:
    """By the most tokens that there can have been, and by the fewest."""
    assert ended(Slo(), **given).tpot_range_s() == pytest.approx(expected, nan_ok=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slo", "met", "unjudged"),
    [
        (Slo(tpot_s=0.2), True, ()),  # even with one token an event
        (Slo(tpot_s=0.1), True, ("tpot",)),  # it may have been met
        (Slo(tpot_s=0.05), False, ()),  # missed, had every token come that was asked for
        (Slo(ttft_s=1.0), True, ()),
        (Slo(ttft_s=0.4, tpot_s=0.1), False, ("tpot",)),
        (Slo(tpot_s=0.1, e2e_s=3.9), False, ("tpot",)),
    ],
)
def test_only_what_is_certain_is_a_violation(slo: Slo, met: bool, unjudged: tuple[str, ...]) -> None:
    """A bound on TPOT that may or may not have been met is named; the other bounds are judged as ever."""
    record = ended(slo)
    assert (record.slo_met, record.judged, record.unjudged()) == (met, True, unjudged)


def test_a_whole_reply_is_judged_by_its_end() -> None:
    """Whether its tokens were counted or not."""
    for usage in (USAGE, Usage(26)):
        record = ended(Slo(tpot_s=0.001, e2e_s=5.0), usage, streamed=False)
        assert (record.slo_met, record.unjudged()) == (True, ())


def test_a_record_has_what_an_estimate_is_made_of() -> None:
    """A replay of it judges the same."""
    lines: list[str] = []
    it = Recording(core(backend()), lambda event: lines.append(json.dumps(event, allow_nan=False)))
    it.arrived(request("r", slo=Slo(tpot_s=0.1)), 0.0)
    it.first_token("r", 1, 0.5)
    it.ended("r", 1, USAGE, 4.0, 3.5)
    events = [json.loads(line) for line in lines]
    again = list(replay(events, core(backend())))[-1][1]
    assert again[-1]["usage"]["output_tokens_least"] == 21
    assert json.loads(json.dumps(again)) == events[-1]["answer"]
