"""What an hour of a card costs: from the user's file, from a dated source, or an example of the card table.

The figures themselves stand in ``router.core.cards``; here is which of them has a source that others can open, and its
date. A price without one is an example: lists show it as unknown, and a plan that needs it marks every sum that has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator

from router.config.section import Name, NonNegativeFloat, Section, some
from router.config.text import read
from router.core.cards import Card, card


@dataclass(frozen=True, slots=True)
class Price:
    """USD for an hour of one card. ``date``: when the source stated it, empty where it is not known.

    Without a ``source`` it is an example that nobody quoted.
    """

    usd_per_hour: float
    source: str = ""
    date: str = ""

    @property
    def known(self) -> bool:
        """Whether it has a source."""
        return bool(self.source)


_AWS: Final = ("AWS on-demand list price, retyped from memory", "")
_MERCATUS: Final = ("mercatus-ai.com, middle of the specialty tier", "2026-05")
_DSTACK: Final = ("dstackai/benchmarks, USD an hour of a node / 8", "2024-11")
_SOURCES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType({
    "a10g": _AWS, "l4": _AWS, "l40s": _AWS, "t4": _AWS, "v100-32g": _AWS,
    "a100-80g-sxm": _MERCATUS, "a100-80g-pcie": _MERCATUS, "h200": _MERCATUS,
    "h100-sxm": _DSTACK, "mi300x": _DSTACK,
    "rtx-4090": ("gputracker.dev", "2026-03"),
})  # fmt: skip
"""Card -> who stated the price in its row of ``router.core.cards``, and when."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by card: those of the user's file, over those of the card table."""

    own: Mapping[str, Price] = field(default_factory=dict)

    def of(self, on: Card) -> Price:
        """The price of a card."""
        own = self.own.get(on.name)
        if own is not None:
            return own
        return Price(on.price_per_hour, *_SOURCES.get(on.name, ("", "")))


class _Entry(Section):
    """One price of the file: ``l20: 0.9``, or with its date and source."""

    usd_per_hour: NonNegativeFloat
    date: Annotated[str, BeforeValidator(str)] = ""
    source: Name = "--prices"


def _bare(value: Any) -> Any:
    return {"usd_per_hour": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


def _of_cards(entries: dict[str, _Entry]) -> dict[str, _Entry]:
    return {card(name).name: entry for name, entry in entries.items()}


class _PriceFile(Section):
    """``prices: {CARD: USD an hour, ...}``."""

    prices: Annotated[
        dict[Name, Annotated[_Entry, BeforeValidator(_bare)]], BeforeValidator(some), AfterValidator(_of_cards)
    ]


def load_prices(path: Path | None) -> Prices:
    """The prices of the file; of none, those of the card table. Raises ConfigError naming each fault by its line."""
    if path is None:
        return Prices()
    entries = read(path).parse(_PriceFile).prices
    return Prices(
        {name: Price(entry.usd_per_hour, f"{path}: {entry.source}", entry.date) for name, entry in entries.items()}
    )
