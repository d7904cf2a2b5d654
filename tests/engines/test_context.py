"""What engines write when a request does not fit their context, word for word, and which sizes they state."""

import pytest

from router.core.flight import FailureKind
from router.engines import find
from router.engines.context import ContextExceeded
from router.gateway.traffic import faults

OPENAI, TRITON = find("openai"), find("triton")

WORDINGS = [
    (
        "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
        ContextExceeded(2049, True, 2048),
    ),
    (
        "This model's maximum context length is 4096 tokens. However, you requested 100 output tokens and your prompt "
        "contains at least 3997 input tokens, for a total of at least 4097 tokens.",
        ContextExceeded(3997, True, 4096),
    ),
    (
        "This model's maximum context length is 4096 tokens. However, your request has 5012 input tokens. Please "
        "reduce the length of the input messages.",
        ContextExceeded(5012, False, 4096),
    ),
    (
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, "
        "1000 in the completion). Please reduce the length of the messages or completion.",
        ContextExceeded(4000, False, 4096),
    ),
    (
        "'max_tokens' or 'max_completion_tokens' is too large: 10000. This model's maximum context length is 4096 "
        "tokens and your request has 100 input tokens (10000 > 4096 - 100).",
        ContextExceeded(100, False, 4096),
    ),
    (
        "max_tokens=100000 cannot be greater than max_model_len=2048. Please request fewer output tokens.",
        ContextExceeded(0, False, 2048),
    ),
    (
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that "
        "`max_model_len` is no smaller than the number of text tokens.",
        ContextExceeded(5000, False, 4096),
    ),
    (
        "request (6011 tokens) exceeds the available context size (2048 tokens), try increasing it",
        ContextExceeded(6011, False, 2048),
    ),
    ("the request exceeds the available context size, try increasing it", ContextExceeded()),
    (
        "Input length (5000 tokens) exceeds the maximum allowed length (4091 tokens). Use a shorter input or enable "
        "--allow-auto-truncate.",
        ContextExceeded(5000, False, 4091),
    ),
    (
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        ContextExceeded(5000, False, 4096),
    ),
    (
        "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of "
        "5000 tokens: 4000 tokens from the input messages and 1000 tokens for the completion.",
        ContextExceeded(4000, False, 4096),
    ),
    (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and "
        "1000 `max_new_tokens`",
        ContextExceeded(4000, False, 4096),
    ),
    (
        "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
        ContextExceeded(5000, False, 4095),
    ),
    (
        "Prompt length (5000) exceeds maximum input length (4096). Set log level to info and check TRTGptModel logs "
        "for how maximum input length is set",
        ContextExceeded(5000, False, 4096),
    ),
    (
        "The sum of prompt length (5000.0), query length (0.0) should not exceed max_num_tokens (4096)",
        ContextExceeded(5000, False, 4096),
    ),
    (
        "default_max_tokens (-904) should be greater than 0, default_max_tokens (-904) = max_seq_len (4096) - "
        "splited_prompt_len (5000)",
        ContextExceeded(5000, False, 4096),
    ),
    ("prompt is too long: 210000 tokens > 200000 maximum", ContextExceeded(210_000, False, 200_000)),
    ("litellm.ContextWindowExceededError: litellm.BadRequestError: too long", ContextExceeded()),
]


@pytest.mark.parametrize(("message", "stated"), WORDINGS)
def test_every_wording_is_recognised_with_the_sizes_that_it_states(message: str, stated: ContextExceeded) -> None:
    """As the message of a 400, in an event of a stream, and behind what Triton puts before it."""
    payload = b'{"error":{"message":"%b","type":"BadRequestError","code":400}}' % message.encode()
    for error in (
        faults.engine_error(400, payload, b"", OPENAI.errors),
        faults.event_error(payload, OPENAI.errors),
        faults.engine_error(500, b'{"error":"in ensemble \'ensemble\', %b"}' % message.encode(), b"", TRITON.errors),
    ):
        assert (error.kind, error.exceeded) == (FailureKind.CONTEXT_EXCEEDED, stated)
        failure = faults.failure("a", error)
        assert (failure.backend_fault, failure.retryable) == (False, True)
        assert (failure.prompt_tokens, failure.context_tokens_max) == (stated.prompt_tokens, stated.context_tokens_max)


@pytest.mark.parametrize("code", ["context_length_exceeded", "exceed_context_size_error"])
def test_the_code_of_an_error_is_enough(code: str) -> None:
    """Whatever its words."""
    payload = b'{"error":{"message":"Too long.","type":"invalid_request_error","code":"%b"}}' % code.encode()
    assert faults.engine_error(400, payload, b"", OPENAI.errors).kind is FailureKind.CONTEXT_EXCEEDED


@pytest.mark.parametrize(
    "message",
    [
        "Unknown tool 'This model's maximum context length is 5 tokens'",
        "messages[0]: prompt is too long: 9 tokens > 8 maximum",
        "n must be at least 1, got 0.",
    ],
)
def test_the_words_of_a_client_are_none_of_an_engine(message: str) -> None:
    """Repeated in a message that is about something else."""
    error = faults.engine_error(400, b'{"error":{"message":"%b"}}' % message.encode(), b"", OPENAI.errors)
    assert (error.kind, error.exceeded) == (FailureKind.CLIENT_ERROR, None)
