"""Corrections of the efficiency tables by an operator's own measurements: a profile.

A correction is the logarithm of a factor on one term of a step, for everything of one kind: of a card, a card family,
an engine's era, a precision, a kind of model, a model, or one setup (card, engine and precision together). What applies
to a shape is the product over all that it belongs to, so measurements of one card say something of its family, and more
of itself. Must not depend on files (``router.config.profile`` reads them) or on how corrections are found
(``simulator.calibration.own``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import exp
from typing import Any, Final

from router.core import tables

TERMS: Final = ("overhead", "read", "compute", "context", "sequence", "first_token")
"""What a factor applies to: launches and all-reduces of a step; reading weights; computing with them, and a prompt's
attention; reading KV; what a decoding sequence adds; a first token outside of steps."""

LEVELS: Final = ("family", "card", "engine", "precision", "kind", "model", "setup")

Correction = tuple[str, str]
"""A level and the name there: ("card", "mi300x")."""

LOG_MOST: Final = 4.0
"""The largest logarithm of a factor that a profile may hold: 55 times slower or faster."""


def tables_version() -> str:
    """Names the tables that a profile corrects: others would be corrected by what was wrong with these."""
    text = repr([sorted(each.items()) for each in (tables.ENGINES, tables.FAMILIES, tables.LINKS, tables.PRECISIONS)])
    return sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Profile:
    """Corrections, and what they are worth.

    ``logs``: the logarithm of the factor of each of ``TERMS``; ``rows``: measurements behind each; ``band``: relative
    error (one sigma) of a step that the profile covers, as seen on measurements left out.
    """

    logs: Mapping[Correction, tuple[float, ...]] = field(default_factory=dict)
    rows: Mapping[Correction, int] = field(default_factory=dict)
    band: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def factors(self, belongs_to: Iterable[Correction]) -> Mapping[str, float] | None:
        """By term, the factor for a shape that belongs to these; None where nothing applies."""
        found = [self.logs[each] for each in belongs_to if each in self.logs]
        if not found:
            return None
        return dict(zip(TERMS, (exp(sum(column)) for column in zip(*found, strict=True)), strict=True))

    def covers(self, belongs_to: Iterable[Correction]) -> bool:
        """Whether this very setup was measured, so that the band is that of its predictions."""
        return any(level == "setup" and (level, name) in self.rows for level, name in belongs_to)


NO_PROFILE: Final = Profile()
