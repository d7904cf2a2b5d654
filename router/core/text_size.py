"""How many tokens a text has, before any tokenizer has counted it: by the bytes of its script.

Must not depend on the model: by how much the rule is off for each model's tokenizer is learnt (``lengths.Prompts``).
"""

from typing import Final

from router.core.types import CHARS_PER_TOKEN

# A character of Chinese, Japanese or Korean is 3 bytes and comes to one token: DeepSeek's documentation has 0.6 tokens
# a Chinese character, Qwen's 0.55 to 0.67, OpenAI's cl100k_base about 1.2, and Llama 2, which falls back to bytes, 1.7
# to 2. A Cyrillic, Greek or Arabic letter is 2 bytes and comes to 0.6 tokens.
TOKENS_PER_FURTHER_BYTE: Final = 0.125

# Standard deviation of the log of count over estimate, from one text and tokenizer to the next: English prose has 4 to
# 5 characters a token, source code and JSON 2.5 to 3.5; see above for other scripts.
TEXT_SIGMA: Final = 0.35


def text_tokens(text: str) -> float:
    """About how many tokens *text* has. A text that is ASCII costs no look at its characters."""
    if text.isascii():
        return len(text) / CHARS_PER_TOKEN
    return tokens_of_bytes(len(text.encode("utf-8", "surrogatepass")), len(text))


def tokens_of_bytes(count: float, chars: float) -> float:
    """The same for *chars* characters that take *count* bytes in UTF-8."""
    return count / CHARS_PER_TOKEN + TOKENS_PER_FURTHER_BYTE * (count - chars)
