"""Where most of the prompt is cached already, unless that backend is too busy: approximate prefix affinity.

As SGLang's cache-aware router and llm-d's approximate prefix scorer do, it compares block hashes of the prompt with
what each backend was sent lately (router/core/prefix.py), as far as its engine has reported such cache hits. Affinity
alone is unstable, as the backend with the hottest prefix attracts all others (one router's hit rate fell from 98 % to
5 %). So a backend is preferred only while its work stays within a bound of the pool's mean, and only for a match that
pays.
"""

from dataclasses import dataclass
from math import inf

import numpy as np

from policies.routing._pick import lowest
from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class PrefixAffinity:
    """``match_min``: share of the prompt that must be cached to be followed (0.5: Preble's rule, cached > uncached);
    ``balance``: how many times the mean work, in tokens, a backend may have and still be followed;
    ``slack_tokens``: work above the mean that never counts against a backend, so that an idle pool keeps affinity.
    """

    match_min: float = 0.5
    balance: float = 1.5
    slack_tokens: float = 8_192

    def __post_init__(self) -> None:
        """Refuse parameters that mean nothing."""
        if not 0 <= self.match_min <= 1:
            raise ValueError(f"prefix_affinity: match_min must be from 0 to 1, not {self.match_min}")
        if not self.balance >= 1 or not self.slack_tokens >= 0:
            raise ValueError("prefix_affinity: balance must be at least 1 and slack_tokens not negative")

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The backend with the longest match that is not overloaded; else the one with the least work."""
        cached = forecast.cached_tokens if request.prefix else np.zeros(len(fleet))
        work = fleet.prefill_tokens + fleet.context_tokens
        allowed = np.maximum(self.balance * work.mean(), work.mean() + self.slack_tokens)
        follow = (cached > 0) & (cached >= self.match_min * forecast.prompt_tokens) & (work <= allowed)
        if not follow.any():
            return Dispatch(int(fleet.slots[lowest(work - cached, rng)]), "no match worth following: least work")
        longest = cached == np.where(follow, cached, -inf).max()
        score = np.where(follow & longest, work, inf)
        return Dispatch(int(fleet.slots[lowest(score, rng)]), "longest cached prefix")


policy = PrefixAffinity
