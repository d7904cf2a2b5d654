"""How many tokens a prompt has, by what engines counted of others: an estimate with its error.

Assumes: a count is a little of the engine's own (a chat template, a system prompt) plus the estimate times a ratio that
belongs to the model's tokenizer, and texts differ from one another around that. The first two are the state of a small
Kalman filter a model, the third is a variance learnt beside it. So what was seen of short prompts alone says little of
long ones, and the error says so. Must not depend on: any backend, any queue, how estimates are made (but that must not
change).
"""

from dataclasses import replace
from math import exp, sqrt
from typing import Final

from router.core.text_size import TEXT_SIGMA
from router.core.types import Request

# Half of the error of an estimate, as a variance, is the tokenizer's and is learnt; the other half is the text's.
RATIO_VARIANCE: Final = TEXT_SIGMA**2 / 2
TEXT_VARIANCE: Final = TEXT_SIGMA**2 / 2
# A model whose texts were all alike may be sent another kind: code and white space differ from prose by a third.
TEXT_VARIANCE_MIN: Final = 0.15**2
TEXT_VARIANCE_MAX: Final = 1.0
OWN_TOKENS: Final = 64.0  # of the engine's own, as a standard deviation: templates have 5 to 70
OWN_MOST: Final = 4_096.0
ROUNDING_TOKENS: Final = 4.0  # of a count, over and above what grows with the text
MEAN_GAIN_MIN: Final = 0.02
TEXT_GAIN_MIN: Final = 0.005
# Added at each count, so that a change is followed: a weight of 2 to 4 % for the newest, by how much texts differ.
RATIO_DRIFT: Final = 0.02**2 * TEXT_VARIANCE
OWN_DRIFT: Final = 0.4
SHORT_TOKENS: Final = 64.0  # the counts of shorter prompts say nothing of how texts differ
RATIO_MOST: Final = 32.0  # either way
LEAST_SIGMAS: Final = 3.0
MOST_SIGMAS: Final = 2.0
SPREAD_MOST: Final = 3.0  # of a log: beyond it nothing is known anyway


class _Counts:
    """What is known of one model: ``own`` tokens and ``ratio``, their covariance, and the variance of texts."""

    __slots__ = ("both", "mean", "own", "own_variance", "ratio", "ratio_variance", "seen", "text_variance")

    def __init__(self, mean: float) -> None:
        self.own, self.ratio = 0.0, 1.0
        self.own_variance, self.ratio_variance, self.both = OWN_TOKENS**2, RATIO_VARIANCE, 0.0
        self.text_variance = TEXT_VARIANCE
        self.mean = mean
        self.seen = 0

    def expected(self, estimate: float) -> float:
        """The count of a prompt of that estimate."""
        return max(1.0, self.own + self.ratio * estimate)

    def variance(self, estimate: float) -> float:
        """Of that, the text's own apart."""
        return max(0.0, self.own_variance + 2.0 * self.both * estimate + self.ratio_variance * estimate**2)

    def update(self, estimate: float, counted: float, doubt: float) -> None:
        """One step of the filter; ``doubt``: the estimate's error over that of a text's."""
        self.own_variance = min(OWN_TOKENS**2, self.own_variance + OWN_DRIFT)
        self.ratio_variance = min(RATIO_VARIANCE, self.ratio_variance + RATIO_DRIFT)
        off = counted - (self.own + self.ratio * estimate)
        of_text = (doubt * estimate) ** 2
        noise = self.text_variance * of_text + ROUNDING_TOKENS**2
        total = self.variance(estimate) + noise
        own_gain = (self.own_variance + self.both * estimate) / total
        ratio_gain = (self.both + self.ratio_variance * estimate) / total
        self.own = min(OWN_MOST, max(-OWN_MOST, self.own + own_gain * off))
        self.ratio = min(RATIO_MOST, max(1.0 / RATIO_MOST, self.ratio + ratio_gain * off))
        self.own_variance = max(0.0, self.own_variance - own_gain**2 * total)
        self.ratio_variance = max(0.0, self.ratio_variance - ratio_gain**2 * total)
        self.both -= own_gain * ratio_gain * total
        if estimate >= SHORT_TOKENS:
            seen = min(TEXT_VARIANCE_MAX, off**2 * noise / total / of_text)
            self.text_variance += max(TEXT_GAIN_MIN, 1.0 / (self.seen + 2.0)) * (seen - self.text_variance)


class Prompts:
    """By model. Estimates that are exact (``Request.prompt_sigma`` is 0) are taken as they are, and teach the mean."""

    def __init__(self) -> None:
        self._known: dict[str, _Counts] = {}
        self._unknown = _Counts(0.0)

    def update_by(self, request: Request, counted_tokens: int) -> None:
        """Fold in the count of a request's prompts together (0: not reported)."""
        of = request.prompts
        self.update(request.model, request.prompt_tokens / of, counted_tokens / of, request.prompt_sigma)

    def update(self, model: str, estimated_tokens: float, counted_tokens: float, sigma: float = TEXT_SIGMA) -> None:
        """Fold in one engine's count (0: not reported) of one prompt; ``sigma``: of that estimate."""
        if counted_tokens <= 0 or estimated_tokens <= 0:
            return
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = _Counts(counted_tokens)
        if sigma > 0.0:
            known.update(estimated_tokens, counted_tokens, sigma / TEXT_SIGMA)
        known.mean += max(MEAN_GAIN_MIN, 1.0 / (known.seen + 2.0)) * (counted_tokens - known.mean)
        known.seen += 1

    def at_least(self, request: Request, tokens: int) -> None:
        """Fold in that its prompt has so many tokens or more: where that is more than was expected, it is a count."""
        if request.prompts == 1 and tokens > self.tokens(request):
            self.update_by(request, tokens)

    def counted(self, request: Request, tokens: int) -> Request:
        """Fold in a count of its prompt; the request with that size. Of several prompts nobody says which was meant."""
        if request.prompts > 1:
            return request
        self.update_by(request, tokens)
        return replace(request, prompt_tokens=tokens, prompt_sigma=0.0)

    def tokens(self, request: Request) -> float:
        """The prompts of this request together as engines are expected to count them."""
        if request.prompt_sigma == 0.0:
            return float(request.prompt_tokens)
        of = request.prompts
        return self._known.get(request.model, self._unknown).expected(request.prompt_tokens / of) * of

    def bounds(self, request: Request) -> tuple[float, float]:
        """The least tokens that its prompt, or the longest of several, may have, and the most to be reckoned with.

        The least is beyond doubt (three standard deviations of the log): who refuses a request must not be wrong. The
        most is what nearly all such prompts stay below (two): one that is longer has to be sent again.
        """
        estimate = float(request.prompt_tokens_longest or request.prompt_tokens)
        if request.prompt_sigma == 0.0:
            return estimate, estimate
        known = self._known.get(request.model, self._unknown)
        tokens = known.expected(estimate)
        of_text = max(TEXT_VARIANCE_MIN, known.text_variance) * (request.prompt_sigma / TEXT_SIGMA * estimate) ** 2
        spread = min(SPREAD_MOST, sqrt(known.variance(estimate) + of_text) / tokens)
        return tokens * exp(-LEAST_SIGMAS * spread), tokens * exp(MOST_SIGMAS * spread)

    def mean_tokens(self, model: str, otherwise: float) -> float:
        """The mean prompt of this model, ``otherwise`` before any was counted."""
        known = self._known.get(model)
        return known.mean if known else otherwise
