"""Which fleet a run has: the members of a pool, and the built-in mixed pool. Files are read by ``pool_file.py``.

A member of the pool is what a data sheet and a start command say. From it come two things that never share numbers:
the `Backend` that a router believes in and the `Truth` that a replica runs on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from router.core.cards import Card, card
from router.core.flight import DispatchLimits
from router.core.model_rules import NO_RULES, ModelRules
from router.core.models import Model, model
from router.core.physics import Shape, StepCoefficients, coefficients, kv_capacity_tokens, measured
from router.core.profile import NO_PROFILE, Profile
from router.core.step import MEASURABLE
from router.core.types import Backend, Slo
from router.engines import EngineKind, Scheduler, find
from simulator.replica.sequence import EngineLimits
from simulator.replica.truth import HiddenFactors, Truth, true_of
from simulator.workload.arrivals import SloClass
from simulator.world import World


def replica_names(name: str, count: int) -> list[str]:
    """What the replicas of a member are called."""
    return [name] if count == 1 else [f"{name}-{n}" for n in range(count)]


@dataclass(frozen=True, slots=True)
class Member:
    """``count`` replicas of one engine on one kind of card. ``price_per_hour`` is for all its cards, USD."""

    name: str
    card: str | Card
    model: str | Model = "llama-3-8b"
    tp: int = 1
    pp: int = 1
    precision: str = "bf16"
    engine: str = "vllm"
    count: int = 1
    served_as: tuple[str, ...] = ()
    seqs_max: int = 256
    chunk_tokens: int = 2048
    block_tokens: int = 16
    kv_blocks: int = 0  # 0: what the card's memory holds
    model_tokens_max: int = 131_072
    queue_max: int = 1 << 30
    queue_tokens_max: int = 1 << 60
    prefix_caching: bool = True
    priority: bool = False
    reserve_prompt: bool | None = (
        None  # None: as engines of its kind and version; this and those below: see EngineLimits
    )
    watermark: float = 0.0
    active_max: int = 0
    long_prompt_chunk: int = 0
    long_prompt_adaptive: bool = False
    memory_utilization: float = 0.9
    network_s: float = 0.001
    price_per_hour: float = -1.0  # below 0: the card's list price times the cards
    weight: float = 1.0
    coefficients: Mapping[str, float] = field(default_factory=dict)  # measured: `calibrate --record` prints them
    labels: Mapping[str, str] = field(default_factory=dict)  # beside card, model, tp and pp, which every replica has
    variant: str = ""  # what scaling counts together; empty: the member alone
    profile: Profile = NO_PROFILE  # corrections of the tables, as `calibrate --profile` writes them
    kv_precision: str | None = None  # of the KV cache; None: 16 bits
    adapters: tuple[str, ...] = ()  # further names it answers to, each an adapter (LoRA) of its model
    adapters_max: int = 0  # of them in one step (vLLM --max-loras); 0: no bound
    async_scheduling: bool = False

    @property
    def kind(self) -> EngineKind:
        """What kind of engine it is. Raises UnknownEngine."""
        return find(self.engine)

    @property
    def shape(self) -> Shape:
        """What physics makes of it."""
        on = card(self.card) if isinstance(self.card, str) else self.card
        runs = model(self.model) if isinstance(self.model, str) else self.model
        return Shape(on, runs, self.tp, self.pp, self.precision, self.kv_precision, self.kind.prior)

    @property
    def card_name(self) -> str:
        """As it was given."""
        return self.card if isinstance(self.card, str) else self.card.name

    @property
    def model_name(self) -> str:
        """As it was given."""
        return self.model if isinstance(self.model, str) else self.model.name

    @property
    def prior(self) -> StepCoefficients:
        """Its step: what was measured, and of the rest what the data sheets say."""
        return measured(coefficients(self.shape, self.profile), self.coefficients)

    @property
    def names(self) -> list[str]:
        """Of its replicas."""
        return replica_names(self.name, self.count)

    @property
    def models(self) -> tuple[str, ...]:
        """The names it answers to."""
        return (*(self.served_as or (self.model_name,)), *self.adapters)

    def limits(self) -> EngineLimits:
        """What the engine is started with."""
        held = kv_capacity_tokens(self.shape, self.memory_utilization, self.block_tokens) // self.block_tokens
        return EngineLimits(
            self.seqs_max,
            self.chunk_tokens,
            self.block_tokens,
            self.kv_blocks or held,
            self.model_tokens_max,
            self.queue_max,
            self.prefix_caching,
            self.priority,
            self.kind.scheduler is Scheduler.NO_EVICT,
            self.kind.reserves_prompt if self.reserve_prompt is None else self.reserve_prompt,
            self.watermark,
            self.active_max,
            self.long_prompt_chunk,
            self.long_prompt_adaptive,
            self.queue_tokens_max,
            self.adapters_max,
            self.async_scheduling,
        )

    def price(self) -> float:
        """USD per hour of one replica."""
        return self.price_per_hour if self.price_per_hour >= 0 else self.shape.card.price_per_hour * self.tp * self.pp


@dataclass(frozen=True, slots=True)
class Site:
    """One replica of the pool, resolved: what it is started with, what is believed of it, what is true."""

    name: str
    member: Member
    limits: EngineLimits
    backend: Backend
    truth: Truth


@dataclass(frozen=True, slots=True)
class Pool:
    """A fleet, the ``limits`` of the routers in front of it and their rules of ``models``. ``belief``: ``learnt`` (a
    router starts from data sheets and learns), ``given`` (from the truth) or ``wrong`` (every term of the data sheet's
    step is off by ``wrong_factor``).
    """

    members: tuple[Member, ...]
    classes: tuple[SloClass, ...] = ()
    truth: HiddenFactors = field(default_factory=HiddenFactors)
    belief: str = "learnt"
    wrong_factor: float = 2.0
    world: World = field(default_factory=World)
    name: str = "built-in"
    limits: DispatchLimits = field(default_factory=DispatchLimits)
    models: ModelRules = NO_RULES

    @property
    def default_model(self) -> str:
        """What a request without a model asks for."""
        return self.members[0].models[0]

    def sites(self, seed: int) -> list[Site]:
        """Every replica under *seed*."""
        return [self.site(member, name, seed) for member in self.members for name in member.names]

    def site(self, member: Member, name: str, seed: int) -> Site:
        """The replica of *member* that is called *name*: its truth is drawn by that."""
        limits, prior, shape = member.limits(), member.prior, member.shape
        truth = true_of(prior, self.truth, seed, name)
        labels = {"card": shape.card.name, "model": shape.model.name, "tp": str(shape.tp), "pp": str(shape.pp)}
        backend = Backend(
            name,
            member.models,
            self._believed(prior, truth),
            limits.seqs_max,
            limits.kv_blocks * limits.block_tokens,
            limits.chunk_tokens,
            member.price(),
            member.network_s,
            member.weight,
            member.variant or member.name,
            {**labels, **member.labels},
            limits.prompt_tokens_max + 1,
            member.adapters,
        )
        return Site(name, member, limits, backend, truth)

    def _believed(self, prior: StepCoefficients, truth: Truth) -> StepCoefficients:
        if self.belief == "given":
            return truth.coefficients
        return _scaled(prior, self.wrong_factor) if self.belief == "wrong" else prior

    def described(self) -> str:
        """One line naming truth and belief, for every report."""
        hidden = self.truth
        true = (
            f"truth: physics x hidden factors (spread {hidden.spread:.0%}, drift {hidden.drift:.0%}, slow nodes "
            f"{hidden.slow_share:.0%}, API server {hidden.api_s * 1e3:g} ms, bias x{hidden.bias:g})"
        )
        wrong = f"wrong on purpose (x{self.wrong_factor:g})"
        return f"{true}; belief: {wrong if self.belief == 'wrong' else self.belief}"


def _scaled(prior: StepCoefficients, factor: float) -> StepCoefficients:
    times = [name for name in MEASURABLE if name != "first_token_s"]
    return replace(prior, **{name: getattr(prior, name) * factor for name in times})


BUILT_IN: Final = Pool(
    members=(
        Member("a100", "a100-80g-sxm"),
        Member("l40s", "l40s"),
        Member("a10x2", "a10", tp=2, count=2),
        Member("l4", "l4", count=2),
    ),
    classes=(SloClass("chat", Slo(ttft_s=1.0, tpot_s=0.06)),),
)
"""Llama 3 8B on six unequal engines; every one alone keeps a chat's SLO when idle, none could serve the Azure trace."""

BELIEFS: Final = ("learnt", "given", "wrong")
