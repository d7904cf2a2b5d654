"""Cards and models as tables and as plain data: facts, source, grade of confidence, price with its date."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from router.core.cards import Card
from router.core.models import Model
from router.core.physics import weight_bytes
from simulator.planning.prices import Price, Prices
from simulator.report.table import widen
from simulator.report.whole import print_whole

GRADES = (
    "confidence: A measured or a checked vendor sheet, B one good source, C partly from memory, D a guess; "
    "E nothing is known"
)


def print_cards(console: Console, cards: Sequence[Card], prices: Prices) -> None:
    """One row a card."""
    widen(console, 200)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    numbers = ("GB", "GB/s", "TFLOP/s fp16", "fp8", "int8", "link GB/s", "a node", "USD/h")
    _columns(table, "card", numbers, ("date", "confidence", "source"))
    for each in cards:
        price = prices.of(each)
        table.add_row(
            each.name,
            f"{each.memory_bytes / 1e9:.1f}",
            f"{each.bandwidth_bytes_per_s / 1e9:,.0f}",
            *(_tera(each, name) for name in ("fp16", "fp8", "int8")),
            f"{each.link} {each.link_bytes_per_s / 1e9:.0f}",
            str(each.cards_per_node),
            f"{price.usd_per_hour:.3g}" if price.known else "unknown",
            price.date,
            each.confidence,
            each.source,
        )
    print_whole(console, table)
    console.print(f"{GRADES}; link: one direction of one card", style="dim", highlight=False)


def _tera(on: Card, precision: str) -> str:
    value = on.flops_per_s.get(precision)
    return f"{value / 1e12:,.0f}" if value else "-"


def _columns(table: Table, first: str, numbers: Sequence[str], texts: Sequence[str]) -> None:
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for name in texts:
        table.add_column(name, overflow="fold")


def print_models(console: Console, models: Sequence[Model]) -> None:
    """One row a model."""
    widen(console, 160)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    numbers = ("billions", "active", "layers", "hidden", "heads/KV", "fp16 GB", "int4 GB", "KV kB a token")
    _columns(table, "model", numbers, ("confidence", "source"))
    for each in models:
        table.add_row(
            each.name,
            f"{each.params / 1e9:.4g}",
            f"{each.active_params / 1e9:.4g}" if each.experts else "",
            str(each.layers),
            f"{each.hidden:,}",
            "latent" if each.latent_kv else f"{each.heads}/{each.kv_heads}",
            f"{weight_bytes(each, 'fp16') / 1e9:,.1f}",
            f"{weight_bytes(each, 'int4') / 1e9:,.1f}",
            f"{each.kv_bytes_per_token / 1e3:,.0f}",
            each.confidence,
            each.source,
        )
    print_whole(console, table)
    console.print(f"{GRADES}; KV of 16-bit elements over all layers", style="dim", highlight=False)


def plain_card(each: Card, price: Price) -> dict[str, Any]:
    """The facts of a card for ``--json``."""
    return {
        "name": each.name,
        "memory_bytes": each.memory_bytes,
        "bandwidth_bytes_per_s": each.bandwidth_bytes_per_s,
        "flops_per_s": dict(each.flops_per_s),
        "link": each.link,
        "link_bytes_per_s": each.link_bytes_per_s,
        "cards_per_node": each.cards_per_node,
        "family": each.family,
        "confidence": each.confidence,
        "source": each.source,
        "price": plain_price(price),
    }


def plain_price(price: Price) -> dict[str, Any] | None:
    """A price that has a source; None: unknown."""
    if not price.known:
        return None
    return {"usd_per_hour": price.usd_per_hour, "source": price.source, "date": price.date or None}


def plain_model(each: Model) -> dict[str, Any]:
    """The facts of a model for ``--json``."""
    names = ("name", "params", "active_params", "layers", "hidden", "heads", "kv_heads", "head_dim")
    more = ("kv_bytes_per_token", "experts", "experts_per_token", "vocab", "ffn", "confidence", "source")
    weights = {stored: weight_bytes(each, stored) for stored in ("fp16", "int8", "int4")}
    return {**{name: getattr(each, name) for name in (*names, *more)}, "weight_bytes": weights}
