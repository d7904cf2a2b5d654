"""What a plan chooses among: one engine on one layout of one kind of card, and several of them side by side.

Must not depend on a load.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from router.core.cards import CARDS, Card
from router.core.errors import DoesNotFit
from router.core.models import Model
from router.core.physics import Shape, StepCoefficients, coefficients
from router.core.profile import NO_PROFILE, Profile
from router.core.types import Backend
from router.engines import Scheduler, find
from simulator.planning.fitting import native
from simulator.planning.layouts import kv_left
from simulator.planning.prices import Price, Prices
from simulator.pool import Member

CHUNK_TOKENS: Final = 2_048
SEQS_MAX: Final = 256
CONTEXT_TOKENS_MAX: Final = 131_072


@dataclass(frozen=True, slots=True)
class Variant:
    """One replica's make. ``profile``: corrections of its step; ``context_tokens_max``: the longest prompt with its
    reply that it is started for; ``kv_tokens``: what its cards hold beside the weights, of ``kv_precision`` (None: 16
    bits).
    """

    card: Card
    model: Model
    tp: int
    pp: int
    precision: str
    engine: str
    price: Price
    profile: Profile = NO_PROFILE
    context_tokens_max: int = CONTEXT_TOKENS_MAX
    kv_tokens: int = 0
    kv_precision: str | None = None

    @property
    def cards(self) -> int:
        """Of one replica."""
        return self.tp * self.pp

    @property
    def usd_per_hour(self) -> float:
        """Of one replica."""
        return self.price.usd_per_hour * self.cards

    @property
    def shape(self) -> Shape:
        """What physics makes of it. Raises DoesNotFit."""
        prior = find(self.engine).prior
        return Shape(self.card, self.model, self.tp, self.pp, self.precision, self.kv_precision, prior)

    @property
    def prior(self) -> StepCoefficients:
        """Its step, as the router expects it."""
        return coefficients(self.shape, self.profile)

    @property
    def name(self) -> str:
        """Short and distinct: the name of its backends."""
        layout = f"{self.card.name}-tp{self.tp}" + (f"-pp{self.pp}" if self.pp > 1 else "")
        return f"{layout}-{self.precision}-{self.engine.replace('@', '-')}"

    @property
    def label(self) -> str:
        """As tables show it."""
        layout = "" if self.cards == 1 else f" TP{self.tp}" + (f" x PP{self.pp}" if self.pp > 1 else "")
        return f"{self.card.name}{layout} {self.precision} {self.engine}"

    def member(self, name: str, count: int, served_as: Sequence[str]) -> Member:
        """*count* replicas of it in a pool."""
        return Member(
            name,
            self.card.name if CARDS.get(self.card.name) == self.card else self.card,
            self.model.name,
            self.tp,
            self.pp,
            self.precision,
            self.engine,
            count,
            tuple(served_as),
            SEQS_MAX,
            CHUNK_TOKENS,
            price_per_hour=self.usd_per_hour,
            profile=self.profile,
            model_tokens_max=self.context_tokens_max,
            kv_precision=self.kv_precision,
        )

    def backend(self) -> Backend:
        """As a router sees one of them, without its address."""
        member = self.member(self.name, 1, ())
        return Backend(
            self.name, member.models, self.prior, SEQS_MAX, self.kv_tokens, CHUNK_TOKENS, network_s=member.network_s
        )


@dataclass(frozen=True, slots=True)
class Unfit:
    """A variant that cannot be, and why."""

    variant: Variant
    why: str


Parts = tuple[tuple[Variant, int], ...]


@dataclass(frozen=True, slots=True)
class Mix:
    """So many replicas of each of some variants, the dearest first."""

    parts: Parts

    @property
    def replicas(self) -> int:
        """In all."""
        return sum(count for _, count in self.parts)

    @property
    def cards(self) -> int:
        """In all."""
        return sum(variant.cards * count for variant, count in self.parts)

    @property
    def usd_per_hour(self) -> float:
        """Of all."""
        return sum(variant.usd_per_hour * count for variant, count in self.parts)

    @property
    def price_known(self) -> bool:
        """Whether every price in it has a source."""
        return all(variant.price.known for variant, _ in self.parts)

    @property
    def label(self) -> str:
        """``3 x l20 fp8 vllm + 1 x h20 ...``."""
        return " + ".join(f"{count} x {variant.label}" for variant, count in self.parts)

    @property
    def order(self) -> tuple[float, int, str]:
        """The cheaper first, then the one of fewer cards."""
        return (round(self.usd_per_hour, 9), self.cards, self.label)


@dataclass(frozen=True, slots=True)
class Choices:
    """What may be chosen. ``cards_most``: of one replica; ``longest_tokens``: of a prompt with its reply."""

    model: Model
    cards: tuple[Card, ...]
    tp: tuple[int, ...]
    pp: tuple[int, ...]
    precisions: tuple[str, ...]
    engines: tuple[str, ...]
    prices: Prices
    cards_most: int = 16
    profile: Profile = NO_PROFILE
    longest_tokens: int = CONTEXT_TOKENS_MAX
    kv_precision: str | None = None

    def context(self, engine: str) -> int:
        """What an engine is started for: little more than the longest request, where it reserves that for each."""
        return self.longest_tokens if find(engine).scheduler is Scheduler.NO_EVICT else CONTEXT_TOKENS_MAX


def variants(of: Choices) -> tuple[list[Variant], list[Unfit]]:
    """Every combination that holds the model, and those that do not, with the reason."""
    fit: list[Variant] = []
    unfit: list[Unfit] = []
    for each in _every(of):
        why, held = _judged(each)
        if why:
            unfit.append(Unfit(each, why))
        else:
            fit.append(replace(each, kv_tokens=held))
    return fit, unfit


def _every(of: Choices) -> Iterator[Variant]:
    for on in of.cards:
        for tp in of.tp:
            for pp in of.pp:
                if tp * pp <= of.cards_most:
                    for stored in of.precisions:
                        for engine in of.engines:
                            yield Variant(
                                on,
                                of.model,
                                tp,
                                pp,
                                stored,
                                engine,
                                of.prices.of(on),
                                of.profile,
                                of.context(engine),
                                kv_precision=of.kv_precision,
                            )


def _judged(each: Variant) -> tuple[str, int]:
    """Why a variant cannot be (empty: it can), and the KV that it holds."""
    if each.tp > each.card.cards_per_node:
        return f"TP {each.tp} is more than the {each.card.cards_per_node} cards of a node", 0
    if not native(each.card, each.precision):
        return f"{each.card.name} does not compute in {each.precision}", 0
    try:
        shape = each.shape
    except DoesNotFit as problem:
        return str(problem), 0
    held = kv_left(shape)
    return ("" if held else "memory: the weights leave no room for KV"), held
