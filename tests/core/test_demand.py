"""Demand as it arrives: counted before anything ends, by class and length of prompt."""

import pytest

from router.core.decisions import EndState, RequestRecord
from router.core.demand import BUCKET_S, DemandMeter
from router.core.types import Request, Slo, Usage

CHAT = Slo(ttft_s=1.0, tpot_s=0.05)


def request(at_s: float, prompt: int = 500, slo_class: str = "chat", model: str = "m", cap: int = 0) -> Request:
    return Request(f"r{at_s}", model, at_s, prompt, cap, CHAT, slo_class)


def ended(asked: Request, at_s: float, tokens: int = 100, outcome: EndState = EndState.SERVED) -> RequestRecord:
    first_s = asked.arrived_s + 0.5
    usage = Usage(tokens, asked.prompt_tokens)
    return RequestRecord(asked, outcome, "b", 1, asked.arrived_s, first_s, at_s, usage, None, 0.0, 0.0, 0.0)


def test_what_arrives_counts_before_anything_ends() -> None:
    """One a second for a minute: the rate, whole buckets and what is in flight; an end adds no arrival."""
    meter = DemandMeter()
    asked = [request(float(second)) for second in range(60)]
    for each in asked:
        meter.arrived(each, each.arrived_s)
    seen = meter.view("m", 60.0)
    assert seen.arrivals == (5.0,) * 11  # whole ones
    assert seen.bucket_s == BUCKET_S
    assert seen.in_flight == 60
    assert sum(kind.requests_per_s for kind in seen.kinds) == pytest.approx(1.0)
    meter.ended(ended(asked[0], 60.0), 60.0)
    assert meter.view("m", 60.0).in_flight == 59
    assert meter.view("m", 60.0).arrivals == seen.arrivals


def test_classes_and_lengths_of_prompts_are_kinds_of_their_own() -> None:
    """Long prompts of a class do not hide among its short ones."""
    meter = DemandMeter()
    for second in range(30):
        for each in (request(second, 500), request(second, 60_000), request(second, 500, "batch")):
            meter.arrived(each, float(second))
    kinds = meter.view("m", 30.0).kinds
    assert sorted((kind.slo_class, kind.prompt_tokens) for kind in kinds) == [
        ("batch", 500),
        ("chat", 500),
        ("chat", 60_000),
    ]


def test_a_reply_is_expected_as_long_as_learnt_and_no_longer_than_its_cap() -> None:
    """After ends the mean of the class; a cap bounds it."""
    meter = DemandMeter()
    for second in range(100):
        asked = request(float(second), cap=0 if second < 60 else 40)
        meter.arrived(asked, asked.arrived_s)
        meter.ended(ended(asked, second + 0.9, 100), second + 0.9)
    (kind,) = meter.view("m", 59.0).kinds
    assert kind.output_tokens == pytest.approx(100, rel=0.25)
    (kind,) = meter.view("m", 178.0).kinds
    assert kind.output_tokens == 40


def test_replies_that_run_for_long_are_expected_to_be_long() -> None:
    """None has ended: age says what an end would."""
    meter = DemandMeter()
    for second in range(100):
        meter.arrived(request(float(second)), float(second))
    (kind,) = meter.view("m", 100.0).kinds
    assert kind.output_tokens > 1_000


def test_a_model_that_has_no_requests_any_more_is_still_shown() -> None:
    """With a rate of 0: its replicas may go."""
    meter = DemandMeter()
    asked = request(0.0)
    meter.arrived(asked, 0.0)
    meter.ended(ended(asked, 2.0), 2.0)
    assert meter.models() == ["m"]
    late = meter.view("m", 4000.0)
    assert (late.kinds, sum(late.arrivals), late.in_flight) == ((), 0.0, 0)


def test_names_that_no_backend_serves_are_not_kept() -> None:
    """A client's own error is no demand, and fills no memory."""
    meter = DemandMeter()
    for number in range(50):
        asked = request(1.0, model=f"unknown-{number}")
        meter.arrived(asked, 1.0)
        meter.ended(ended(asked, 1.0, 0, EndState.CLIENT_ERROR), 1.0)
    assert meter.models() == []
