"""What a client gets of its quota: the header lines that OpenAI's service has, and the error answer to a refusal.

Anthropic's clients read the same lines: nothing in them depends on the protocol. Must not depend on how much is left.
"""

from typing import Final

from router.core.quota import Limit, Standing, Verdict, whole_seconds
from router.gateway.protocols.answers import Problem

_TOO_MANY: Final = 429
_CODE: Final = "rate_limit_exceeded"
_SPENT: Final = "insufficient_quota"
_NO_RETRY: Final = b"x-should-retry: false\r\n"  # OpenAI's and Anthropic's clients obey it
_MINUTE_S: Final = 60.0
_WHY: Final = {
    Limit.REQUESTS: "the requests of a minute are used up",
    Limit.TOKENS: "the tokens of a minute are used up",
    Limit.PARALLEL: "as many requests as may run at once are running",
    Limit.TOO_LARGE: "the prompt alone has more tokens than a minute may have",
    Limit.MONTH_TOKENS: "the tokens of this month are used up",
    Limit.MONTH_USD: "the budget of this month is used up",
}
_LIMITS_OF_A_MONTH: Final = (Limit.MONTH_TOKENS, Limit.MONTH_USD)


def fields(verdict: Verdict) -> bytes:
    """Header lines: limit, rest and time to the whole of it, for requests and for tokens where these are limited."""
    lines = b""
    if verdict.requests is not None:
        lines = _lines(b"requests", verdict.requests)
    if verdict.tokens is not None:
        lines += _lines(b"tokens", verdict.tokens)
    return lines


def _lines(what: bytes, standing: Standing) -> bytes:
    return (
        b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n"
        % (what, int(standing.limit), what, int(standing.remaining), what, duration(standing.reset_s))
    )  # fmt: skip


def duration(seconds: float) -> bytes:
    """As OpenAI's headers have it: ``12ms``, ``1.5s``, ``6m0s``."""
    if seconds < 1.0:
        return b"%dms" % round(seconds * 1e3)
    if seconds < _MINUTE_S:
        return f"{seconds:.3f}".rstrip("0").rstrip(".").encode() + b"s"
    return b"%dm%ds" % divmod(round(seconds), 60)


def problem(verdict: Verdict) -> Problem:
    """The answer to a request that a quota refuses. One for which no wait makes room has no Retry-After."""
    assert verdict.limit is not None
    kind, _, name = verdict.account.partition(":")
    whose = f"key {name.partition('/')[2]} of tenant {name.partition('/')[0]}" if kind == "key" else f"tenant {name}"
    spent = verdict.limit in _LIMITS_OF_A_MONTH
    final = spent or verdict.limit is Limit.TOO_LARGE
    retry = _NO_RETRY if final else b"retry-after: %d\r\n" % whole_seconds(verdict.retry_s)
    why = f"quota of {whose}: {_WHY[verdict.limit]}"
    return Problem(
        _TOO_MANY,
        why,
        code=_SPENT if spent else _CODE,
        fields=b"x-headroom-dropped-reason: quota-%b\r\n%b" % (verdict.limit.value.encode(), retry),
    )
