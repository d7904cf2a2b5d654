"""Which fleet a run has: pool.yaml, validated whole, or the built-in mixed pool.

A member of the pool is what a data sheet and a start command say. From it come two things that never share numbers:
the `Backend` a router is told (belief) and the `Truth` a replica runs on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from router.core.cards import card
from router.core.models import model
from router.core.physics import Shape, StepCoefficients, coefficients, kv_capacity_tokens, measured
from router.core.step import MEASURABLE
from router.core.types import Backend, Slo
from router.engines import EngineKind, Scheduler, find
from router.spelling import suggestion
from simulator.errors import BadPool
from simulator.replica.sequence import EngineLimits
from simulator.replica.truth import HiddenFactors, Truth, true_of
from simulator.workload.arrivals import SloClass, parse_slo
from simulator.world import Autoscaling, Clients, Fault, World


@dataclass(frozen=True, slots=True)
class Member:
    """``count`` replicas of one engine on one kind of card. ``price_per_hour`` is for all its cards, USD."""

    name: str
    card: str
    model: str = "llama-3-8b"
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
    prefix_caching: bool = True
    priority: bool = False
    memory_utilization: float = 0.9
    network_s: float = 0.001
    price_per_hour: float = -1.0  # below 0: the card's list price times the cards
    weight: float = 1.0
    coefficients: Mapping[str, float] = field(default_factory=dict)  # measured: `calibrate --record` prints them
    labels: Mapping[str, str] = field(default_factory=dict)  # beside card, model, tp and pp, which every replica has

    @property
    def kind(self) -> EngineKind:
        """What kind of engine it is. Raises UnknownEngine."""
        return find(self.engine)

    @property
    def shape(self) -> Shape:
        """What physics makes of it."""
        return Shape(card(self.card), model(self.model), self.tp, self.pp, self.precision, engine=self.kind.prior)

    @property
    def prior(self) -> StepCoefficients:
        """Its step: what was measured, and of the rest what the data sheets say."""
        return measured(coefficients(self.shape), self.coefficients)

    @property
    def names(self) -> list[str]:
        """Of its replicas."""
        return [self.name] if self.count == 1 else [f"{self.name}-{n}" for n in range(self.count)]

    @property
    def models(self) -> tuple[str, ...]:
        """The names it answers to."""
        return self.served_as or (self.model,)

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
        )

    def price(self) -> float:
        """USD per hour of one replica."""
        return self.price_per_hour if self.price_per_hour >= 0 else card(self.card).price_per_hour * self.tp * self.pp


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
    """A fleet. ``belief``: ``learnt`` (the router starts from data sheets and learns), ``given`` (it starts from the
    truth) or ``wrong`` (every term of the data sheet's step is off by ``wrong_factor``).
    """

    members: tuple[Member, ...]
    classes: tuple[SloClass, ...] = ()
    truth: HiddenFactors = field(default_factory=HiddenFactors)
    belief: str = "learnt"
    wrong_factor: float = 2.0
    world: World = field(default_factory=World)
    name: str = "built-in"

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
            member.name,
            {**labels, **member.labels},
            limits.prompt_tokens_max + 1,
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


def load_pool(path: Path) -> Pool:
    """Read a pool file. BadPool names the place and what was expected."""
    import yaml  # noqa: PLC0415 - only a run with a pool file pays for it

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        raise BadPool(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {problem.problem}") from None
    except yaml.YAMLError as problem:
        raise BadPool(f"{path}:1: not valid YAML: {problem}") from None
    if not isinstance(loaded, dict):
        raise BadPool(f"{path}: expected keys such as 'backends', found {type(loaded).__name__}")
    try:
        return _pool(loaded, path.stem)
    except (ValueError, TypeError) as problem:
        raise BadPool(f"{path}: {problem}") from None


def _pool(loaded: Mapping[str, Any], name: str) -> Pool:
    _known(loaded, _KEYS, "")
    listed = loaded.get("backends")
    if not isinstance(listed, list) or not listed:
        raise ValueError("backends: expected a list with at least one entry")
    defaults = loaded.get("defaults", {})
    members = tuple(_member({**defaults, **_mapping(entry, f"backends[{n}]")}, n) for n, entry in enumerate(listed))
    names = [name for member in members for name in member.names]
    if len(set(names)) < len(names):
        raise ValueError(f"backends: names must differ, got {', '.join(names)}")
    belief = loaded.get("belief", "learnt")
    if belief not in BELIEFS:
        raise ValueError(f"belief: expected one of {', '.join(BELIEFS)}, got {belief!r}")
    slos = loaded.get("slo", [])
    return Pool(
        members,
        tuple(parse_slo(text) for text in ([slos] if isinstance(slos, str) else slos)),
        HiddenFactors(**_values(HiddenFactors, _mapping(loaded.get("truth", {}), "truth"), "truth")),
        belief,
        _number(loaded.get("wrong_factor", 2.0), "wrong_factor"),
        _world(loaded, names),
        name,
    )


_WORLD: Final = ("routers", "sync_s", "scrape_s", "health_s", "faults", "clients", "scaling")
_KEYS: Final = ("backends", "slo", "truth", "belief", "wrong_factor", "defaults", *_WORLD)


def _world(loaded: Mapping[str, Any], names: list[str]) -> World:
    plain = {key: loaded[key] for key in _WORLD[:4] if key in loaded}
    values = {key: _typed(value, int if key == "routers" else float, key) for key, value in plain.items()}
    faults = tuple(_fault(entry, n, names) for n, entry in enumerate(_list(loaded.get("faults", []), "faults")))
    clients = Clients(**_values(Clients, _mapping(loaded.get("clients", {}), "clients"), "clients"))
    scaling = loaded.get("scaling")
    if scaling is not None:
        scaling = Autoscaling(**_values(Autoscaling, _mapping(scaling, "scaling"), "scaling"))
    return World(**values, faults=faults, clients=clients, scaling=scaling)


def _fault(entry: object, number: int, names: list[str]) -> Fault:
    place = f"faults[{number}]"
    values = _values(Fault, _mapping(entry, place), place)
    if values.get("backend") not in names or "at_s" not in values:
        raise ValueError(f"{place}: expected at_s and a backend among {', '.join(names)}")
    return Fault(**values)


def _member(entry: Mapping[str, Any], number: int) -> Member:
    place = f"backends[{number}]"
    values = _values(Member, entry, place)
    for needed in ("card", "model"):
        if needed not in values:
            raise ValueError(f"{place}: expected a {needed!r}")
    values.setdefault("name", f"{values['card']}x{values.get('tp', 1)}-{number}")
    try:
        member = Member(**values)
        member.limits(), member.prior
    except ValueError as problem:
        raise ValueError(f"{place}: {problem}") from None
    if member.count < 1:
        raise ValueError(f"{place}: count must be at least 1")
    return member


def _values(kind: type, entry: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The entry's values as the dataclass *kind* wants them; unknown keys and wrong types are errors."""
    wanted = {f.name: f.type for f in fields(kind)}
    _known(entry, tuple(wanted), f"{place}.")
    return {key: _typed(value, wanted[key], f"{place}.{key}") for key, value in entry.items()}


def _typed(value: object, kind: Any, place: str) -> Any:
    if kind is float:
        return _number(value, place)
    if kind == Mapping[str, float]:
        return {str(key): _number(item, f"{place}.{key}") for key, item in _mapping(value, place).items()}
    if kind == Mapping[str, str]:
        return {str(key): str(item) for key, item in _mapping(value, place).items()}
    if kind == tuple[str, ...]:
        return (value,) if isinstance(value, str) else tuple(str(item) for item in _list(value, place))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{place}: expected {kind.__name__}, got {value!r}")
    return value


def _number(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place}: expected a number, got {value!r}")  # noqa: TRY004 - a bad file
    return float(value)


def _list(value: object, place: str) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{place}: expected a list, got {value!r}")  # noqa: TRY004 - a bad file
    return value


def _mapping(value: object, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected keys and values, got {value!r}")  # noqa: TRY004 - a bad file
    return value


def _known(entry: Mapping[str, Any], wanted: tuple[str, ...], place: str) -> None:
    for key in entry:
        if key not in wanted:
            raise ValueError(f"unknown key {place}{key}; {suggestion(str(key), wanted)}")
