"""How engines say that a request does not fit their context: wordings, and the sizes that they state.

Of servers, as of 2026: vLLM, FastChat and OpenAI ("This model's maximum context length ..."), llama.cpp, SGLang,
text-generation-inference, TensorRT-LLM, Anthropic, LiteLLM. Must not depend on anything but the text of a message. Each
is matched with the beginning of one: a message may repeat a client's words, and those must decide nothing.
"""

import re
from dataclasses import dataclass
from typing import Final

_N: Final = r"\d{1,9}"
CONTEXT_FAULTS: Final = (
    r"(?:'max_tokens' or 'max_completion_tokens' is too large: \d+\. )?"
    rf"This model's maximum context length is (?P<limit>{_N}) tokens(?:\. However, | and )?"
    r"(?:you requested \d+ (?:output )?tokens (?:and )?)?"
    rf"(?:\((?P<parts>{_N}) in |"
    rf"your (?:prompt|request) (?:contains|has) (?P<at_least>at least )?(?P<prompt>{_N}) input tokens)?",
    rf"max_tokens=\d+ cannot be greater than max_model_len=(?P<limit>{_N})",
    rf"The decoder prompt \(length (?P<prompt>{_N})\) is longer than the maximum model length of (?P<limit>{_N})",
    rf"(?:the )?request (?:\((?P<prompt>{_N}) tokens\) )?exceeds the available context size"
    rf"(?: \((?P<limit>{_N}) tokens)?",
    rf"Input length \((?P<prompt>{_N}) tokens\) exceeds the maximum allowed length \((?P<limit>{_N}) tokens\)",
    rf"The input \((?P<prompt>{_N}) tokens\) is longer than the model's context length \((?P<limit>{_N}) tokens\)",
    rf"Requested token count exceeds the model's maximum context length of (?P<limit>{_N}) tokens\. "
    rf"You requested a total of \d+ tokens: (?P<prompt>{_N}) tokens",
    r"Input validation error: `inputs` tokens \+ `max_new_tokens` must be <= "
    rf"(?P<limit>{_N})\. Given: (?P<prompt>{_N}) `inputs` tokens",
    rf"Input validation error: `inputs` must have less than (?P<limit>{_N}) tokens\. Given: (?P<prompt>{_N})",
    rf"Prompt length \((?P<prompt>{_N})\) exceeds maximum input length \((?P<limit>{_N})\)",
    rf"The sum of prompt length \((?P<prompt>{_N})(?:\.0)?\)[^()]*(?:\([\d.]+\)[^()]*)?"
    rf"should not exceed [\w ]*\((?P<limit>{_N})\)",
    rf"default_max_tokens \(-?\d+\) should be greater than 0, default_max_tokens \(-?\d+\) = max_seq_len "
    rf"\((?P<limit>{_N})\) - splited_prompt_len \((?P<prompt>{_N})\)",
    rf"prompt is too long: (?P<prompt>{_N}) tokens > (?P<limit>{_N}) maximum",
    r"litellm\.ContextWindowExceededError: ",
)
CONTEXT_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error", "contextwindowexceedederror"})


@dataclass(frozen=True, slots=True)
class ContextExceeded:
    """What a message states (0: it does not): ``prompt_tokens`` (``at_least``: or more), ``context_tokens_max``."""

    prompt_tokens: int = 0
    at_least: bool = False
    context_tokens_max: int = 0


def context_exceeded(message: str, wordings: tuple[str, ...]) -> ContextExceeded | None:
    """What the message says of a context that is too short; None where it says nothing of one."""
    for wording in wordings:
        found = re.match(wording, message)
        if found is not None:
            stated = found.groupdict()
            prompt = stated.get("prompt") or stated.get("parts") or "0"
            return ContextExceeded(int(prompt), stated.get("at_least") is not None, int(stated.get("limit") or 0))
    return None
