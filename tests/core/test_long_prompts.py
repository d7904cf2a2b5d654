"""Prompts that not every backend has room for."""

from dataclasses import replace

from router.core.errors import Reason, status_of
from router.core.flight import Failure, FailureKind
from router.core.text_size import TEXT_SIGMA
from router.core.types import Usage
from tests.fakes import backend, core, refused, request, sent


def test_a_long_prompt_goes_where_it_fits_however_busy_that_is():
    """The backend with the short context is idle and gets no request."""
    it = core(backend("short", context_tokens_max=4096), backend("long", context_tokens_max=32768))
    assert {sent(it.arrived(request(prompt_tokens=8000), 0.0)).backend for _ in range(5)} == {"long"}
    assert sent(it.arrived(request(prompt_tokens=100), 0.0)).backend == "short"


def test_room_for_the_whole_reply_is_preferred_but_not_asked():
    """A cap is often far above what will come: where no backend has room for it, the prompt alone decides."""
    it = core(backend("short", context_tokens_max=4096), backend("long", context_tokens_max=8192))
    assert sent(it.arrived(request(prompt_tokens=100, output_tokens_max=6000), 0.0)).backend == "long"
    assert sent(it.arrived(request(prompt_tokens=100, output_tokens_max=90_000), 0.0)).backend == "short"


def test_a_prompt_too_long_for_all_is_refused_as_the_clients_mistake():
    """400, as engines answer, with the numbers; one token of reply has to fit."""
    it = core(backend("a", context_tokens_max=4096), backend("b", context_tokens_max=2048))
    refusal = refused(it.arrived(request(prompt_tokens=4096), 0.0))
    assert refusal.reason is Reason.TOO_LONG
    assert status_of(refusal.reason) == 400
    assert "4096" in refusal.why
    assert sent(it.arrived(request(prompt_tokens=4095), 0.0)).backend == "a"


def test_while_the_one_that_has_room_is_away_it_is_no_mistake():
    """503: it may come back; and a retry never goes to one that is too short."""
    it = core(backend("short", context_tokens_max=4096), backend("long"))
    assert sent(it.arrived(request("r", prompt_tokens=9000), 0.0)).backend == "long"
    assert refused(it.failed("r", 1, Failure("reset"), 0.1)).reason is Reason.BACKEND_FAILED
    it.backend_health("long", False, 0.2)
    assert refused(it.arrived(request(prompt_tokens=9000), 0.3)).reason is Reason.NO_BACKEND


def text(tokens, **facts):
    """A request whose prompt is a text estimated at so many tokens."""
    return request(prompt_tokens=tokens, prompt_sigma=TEXT_SIGMA, **facts)


def test_a_prompt_that_may_be_too_long_goes_where_it_surely_fits():
    """6,000 Chinese characters may be 4,000 tokens or 10,000: not to the short context, while there is a longer."""
    it = core(backend("short", context_tokens_max=4096), backend("long", context_tokens_max=32768))
    assert {sent(it.arrived(text(6_000), 0.0)).backend for _ in range(5)} == {"long"}
    assert sent(it.arrived(text(1_000), 0.0)).backend == "short"


def test_a_prompt_that_may_fit_is_not_refused():
    """135,000 letters are estimated at 33,750 tokens and have 30,000: the longest context there is takes them."""
    it = core(backend("short", context_tokens_max=16384), backend("long", context_tokens_max=32768))
    assert {sent(it.arrived(text(33_750), 0.0)).backend for _ in range(3)} == {"long"}
    refusal = refused(it.arrived(text(120_000), 0.0))
    assert refusal.reason is Reason.TOO_LONG
    assert "about 120000 (at least " in refusal.why


def test_what_engines_counted_decides_where_prompts_fit():
    """A tokenizer that makes half as many tokens of a text: after some prompts a short context takes twice the text."""
    it = core(backend("short", context_tokens_max=4096), backend("long", context_tokens_max=32768))
    assert sent(it.arrived(text(4_000), 0.0)).backend == "long"
    for number in range(100):
        asked = text(1_000 + 20 * number)
        attempt = sent(it.arrived(asked, 0.1)).attempt
        it.ended(asked.id, attempt, Usage(5, 500 + 10 * number), 0.2)
    assert sent(it.arrived(text(4_000), 0.3)).backend == "short"
    assert sent(it.arrived(request(prompt_tokens=8_000), 0.4)).backend == "long"


TOO_LONG = Failure("too long", backend_fault=False, kind=FailureKind.CONTEXT_EXCEEDED)


def test_an_engine_that_finds_a_prompt_too_long_is_followed_by_one_with_a_longer_context():
    """Estimated at 1,000, counted as 5,000: no other of that size; without a longer one its answer is final."""
    pool = [backend(name, context_tokens_max=4096) for name in "abcd"]
    it = core(*pool, backend("long", slower=9.0, context_tokens_max=32768))
    first = sent(it.arrived(text(1_000, request_id="r"), 0.0))
    assert first.backend in "abcd"
    assert sent(it.failed("r", 1, TOO_LONG, 0.1)).backend == "long"
    it.backend_health("long", False, 0.2)
    sent(it.arrived(text(1_000, request_id="s"), 0.3))
    assert refused(it.failed("s", 1, TOO_LONG, 0.4)).reason is Reason.CLIENT_ERROR


def test_the_count_that_an_engine_states_decides_where_the_prompt_goes_and_teaches():
    """5,000 tokens fit neither 4,096 nor 4,500; the next such prompt goes where it fits at once."""
    backends = [backend("s", context_tokens_max=4096), backend("m", context_tokens_max=4500)]
    it = core(*backends, backend("l", slower=9.0, context_tokens_max=8192))
    stated = replace(TOO_LONG, prompt_tokens=5_000, context_tokens_max=4096)
    for number in range(20):
        asked = text(1_500, request_id=f"r{number}")
        attempt = sent(it.arrived(asked, float(number)))
        if attempt.backend == "l":
            break
        assert sent(it.failed(asked.id, 1, stated, number + 0.1)).backend == "l"
        it.client_left(asked.id, number + 0.2)
    assert 0 < number < 10


def test_a_count_that_is_only_a_bound_teaches_where_it_is_a_surprise():
    """vLLM stops to count one token past its limit."""
    it = core(backend("s", context_tokens_max=4096), backend("l", context_tokens_max=32768))
    bound = replace(TOO_LONG, prompt_tokens=4_097, at_least=True, context_tokens_max=4096)
    asked = text(1_000, request_id="r")
    before = it.belief.prompts.tokens(asked)
    sent(it.arrived(asked, 0.0))
    assert sent(it.failed("r", 1, bound, 0.1)).backend == "l"
    learnt = it.belief.prompts.tokens(asked)
    assert learnt > before
    long = text(9_000, request_id="long")
    before = it.belief.prompts.tokens(long)
    it.arrived(long, 0.2)
    it.failed("long", 1, bound, 0.3)
    assert it.belief.prompts.tokens(long) == before


def test_where_no_context_is_known_there_is_no_longer_one():
    """Neither config nor message says how long it is: the answer is the client's, and no second engine is asked."""
    it = core(backend("a"), backend("b"))
    sent(it.arrived(text(1_000, request_id="r"), 0.0))
    assert refused(it.failed("r", 1, TOO_LONG, 0.1)).reason is Reason.CLIENT_ERROR
    sent(it.arrived(text(1_000, request_id="s"), 0.2))
    assert sent(it.failed("s", 1, replace(TOO_LONG, context_tokens_max=2048), 0.3)).attempt == 2
