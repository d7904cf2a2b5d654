"""Prompts that not every backend has room for."""

from router.core.errors import Reason, status_of
from router.core.flight import Failure
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
