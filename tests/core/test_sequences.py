"""Requests of several sequences: in the load, in the forecast, and in what their replies teach."""

import pytest

from router.core.decisions import EndState, RequestRecord
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.types import Slo, Usage
from tests.fakes import account, backend, core, request, sent

FEW = {"output_tokens_max": 200}


def forecast(dispatcher, asked, now_s=1.0):
    """Of this request as it stands."""
    slots = dispatcher.ledger.roster.pool("m")
    return Forecast(asked, Fleet(dispatcher.ledger, slots, now_s), dispatcher.belief)


def load_of(*requests):
    """After these were sent to one backend, before and after their first tokens."""
    it = core(backend(), routing="slo_headroom")
    attempts = [(each.id, sent(it.arrived(each, 0.0)).attempt) for each in requests]
    before = it.loads()["a"]
    for request_id, attempt in attempts:
        it.first_token(request_id, attempt, 0.5)
    return before, it.loads()["a"]


def test_one_sequence_is_what_a_request_was():
    """n of 1 changes nothing, in load or forecast."""
    plain, stated = request("a", **FEW), request("a", sequences=1, **FEW)
    assert load_of(plain) == load_of(stated)
    it = core(backend(), routing="slo_headroom")
    one, other = forecast(it, plain), forecast(it, stated)
    assert one.rows.tolist() == other.rows.tolist()
    assert one.rest.tolist() == other.rest.tolist()
    assert one.in_time(one.tpot_s * 1e4).tolist() == other.in_time(other.tpot_s * 1e4).tolist()


def test_choices_share_their_prompt_and_several_prompts_do_not():
    """Four choices hold one prompt and four replies; four prompts of a hundred tokens as four requests do."""
    together, after = load_of(request(prompt_tokens=400, sequences=4))
    apart, later = load_of(*[request(prompt_tokens=400) for _ in range(4)])
    assert together.prefilling == apart.prefilling == 4.0
    assert after.decoding == later.decoding == 4.0
    assert (together.prefill_tokens, apart.prefill_tokens) == (400.0, 1600.0)
    assert later.context_tokens - after.context_tokens == pytest.approx(3 * 400)
    listed = load_of(request(prompt_tokens=1600, sequences=4, prompts=4, prompt_tokens_longest=400))
    for one, other in zip(listed, (apart, later), strict=True):
        assert one.prefill_tokens == other.prefill_tokens
        assert one.context_tokens == pytest.approx(other.context_tokens)


@pytest.mark.parametrize("end", [("ended", Usage(100)), ("client_left",)])
def test_all_that_was_reserved_is_released(end):
    """Whichever way it ends."""
    it = core(backend(), routing="slo_headroom")
    for name, sequences in (("r", 4), ("s", 3)):
        sent(it.arrived(request(name, sequences=sequences), 0.0))
    it.first_token("r", 1, 0.5)
    for name in "rs":
        getattr(it, end[0])(name, *([1, end[1]] if len(end) > 1 else []), 1.0)
    left = it.loads()["a"]
    assert (left.prefilling, left.decoding, left.prefill_tokens, left.context_tokens) == (0.0, 0.0, 0.0, 0.0)


def test_choices_are_forecast_as_that_many_requests_up_to_the_prompt():
    """The same batch: nearly the TPOT that each of four alike would have with the others. Its prompt is one."""
    it = core(backend(), routing="slo_headroom")
    together = forecast(it, request(prompt_tokens=4, sequences=4, **FEW))
    one = forecast(it, request(prompt_tokens=4, **FEW))
    others = core(backend(), routing="slo_headroom")
    held = others.ledger.load
    for _ in range(3):
        held.prefilled(held.reserve(0, 4.0, one.tokens, float("inf"), 0.0), 0.5)
    fourth = forecast(others, request(prompt_tokens=4, **FEW), 1000.0)  # long after those prompts
    step_s = float(together.rest[1, 0])
    assert step_s > float(one.rest[1, 0])
    assert step_s == pytest.approx(float(fourth.tpot_s[0]), rel=0.02)
    assert float(together.rest[0, 0]) == float(one.rest[0, 0])


def test_the_end_of_several_replies_is_that_of_the_longest():
    """It is later than that of one, its tail is narrower in its log, and under a cap that all reach it is the same."""
    it = core(backend(), routing="slo_headroom")
    for tokens in (20, 40, 80, 160, 320, 640) * 40:
        it.belief.lengths.update("m", "default", tokens)
    one, four = forecast(it, request()), forecast(it, request(sequences=4))
    assert four.output_tokens > 1.5 * one.output_tokens
    assert four.reply_tokens(0.5) > one.reply_tokens(0.5)
    assert four.reply_tokens(0.9) == pytest.approx(it.belief.lengths.quantile("m", "default", 0.9**0.25))
    tokens = one.tpot_s * 0.0 + 300.0
    assert four.in_time(tokens)[0, 0] == pytest.approx(one.in_time(tokens)[0, 0] ** 4, abs=0.03)
    capped = {"output_tokens_max": 10}
    assert forecast(it, request(sequences=4, **capped)).output_tokens == pytest.approx(10, rel=0.01)


def test_a_record_has_the_time_per_token_of_each_sequence():
    """Four of 26 tokens in a second after the first: 40 ms a token, not 10; and the SLO is judged by that."""
    asked = request(sequences=4, slo=Slo(tpot_s=0.03))
    it = core(backend(), routing="slo_headroom")
    sent(it.arrived(asked, 0.0))
    it.first_token(asked.id, 1, 0.5)
    record: RequestRecord = account(it.ended(asked.id, 1, Usage(104), 1.5))
    assert record.outcome is EndState.SERVED
    assert record.tpot_s == pytest.approx(0.04)
    assert not record.slo_met


def test_several_replies_teach_the_length_and_the_pace_of_one():
    """The mean of each, and steps as many as each had: no engine looks four times faster for it."""
    one, four = (core(backend(), routing="slo_headroom") for _ in range(2))
    for it, sequences in ((one, 1), (four, 4)):
        for number in range(200):
            asked, now_s = request(f"r{number}", sequences=sequences), 10.0 * number
            sent(it.arrived(asked, now_s))
            it.first_token(asked.id, 1, now_s + 0.05)
            it.ended(asked.id, 1, Usage(100 * sequences), now_s + 0.05 + 99 * 0.012)
    assert four.belief.lengths.mean_tokens("m", 0.0) == one.belief.lengths.mean_tokens("m", 0.0) == 100
    four_s, one_s = (float(forecast(it, request(), 3000.0).rest[1, 0]) for it in (four, one))
    assert four_s == pytest.approx(one_s, rel=0.1)


def test_counts_are_plausible_for_as_many_sequences():
    """Sixteen replies of a cap each, and a prompt for each context."""
    it = core(backend(context_tokens_max=1000), routing="slo_headroom")
    asked = request(prompt_tokens=2_000, output_tokens_max=100, sequences=16, prompts=4, prompt_tokens_longest=500)
    sent(it.arrived(asked, 0.0))
    usage = account(it.ended(asked.id, 1, Usage(1_600, 2_000), 1.0)).usage
    assert (usage.output_tokens, usage.prompt_tokens) == (1_600, 2_000)
    assert not any(it.dropped_numbers.by_source.values())


def test_the_longest_of_several_prompts_decides_where_they_fit():
    """Eight prompts of 1,000 tokens fit a context of 4,096."""
    it = core(backend("short", context_tokens_max=4096), backend("long", slower=9.0, context_tokens_max=32768))
    many = {"prompt_tokens": 8_000, "sequences": 8, "prompts": 8}
    assert sent(it.arrived(request(prompt_tokens_longest=1_000, **many), 0.0)).backend == "short"
    assert sent(it.arrived(request(prompt_tokens_longest=6_000, **many), 0.0)).backend == "long"
