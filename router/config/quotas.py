"""The config's sections of quotas and prices, and what they are to the core.

Must not depend on the rest of the file.
"""

from math import inf

from router.config.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section
from router.core import quota


class Quota(Section):
    """How much a tenant or a key may use; what is left out is not limited. Tokens are those of prompts and replies.

    What a month has used is held in the shared state, so ``tokens_per_month`` and ``usd_per_month`` need ``state``.
    """

    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    requests_parallel_max: PositiveInt | None = None
    tokens_per_month: PositiveFloat | None = None
    usd_per_month: PositiveFloat | None = None

    def rule(self) -> quota.Quota:
        """As the core has it."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return quota.Quota(**{name: inf if value is None else float(value) for name, value in given.items()})

    @property
    def monthly(self) -> bool:
        """Whether it has a limit of a month."""
        return self.tokens_per_month is not None or self.usd_per_month is not None


class Price(Section):
    """USD per million tokens; a ``cached_input`` that is left out costs as much as ``input``."""

    input: NonNegativeFloat
    output: NonNegativeFloat
    cached_input: NonNegativeFloat | None = None

    def rule(self) -> quota.Price:
        """As the core has it."""
        cached = self.input if self.cached_input is None else self.cached_input
        return quota.Price(self.input, cached, self.output)
