"""The emptiest KV cache: what vLLM's production stack and llm-d call KV-cache-aware routing.

Counts the tokens that the ledger has there (prompts on their way in included) as a share of what the cache holds, so a
small card is not taken for an idle one. What engines report beyond it is in it as unattributed load.
"""

from dataclasses import dataclass

from policies.routing._pick import lowest
from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class LeastKv:
    """No parameters; blind to how fast a card is."""

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The backend whose KV cache would be the least full with this prompt in it."""
        held = fleet.prefill_tokens + fleet.context_tokens + request.prompt_tokens
        return Dispatch(int(fleet.slots[lowest(held / fleet.kv_tokens_max, rng)]), "emptiest KV cache")


policy = LeastKv
