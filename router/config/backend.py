"""One backend of either config file: what engine it is, what it runs on and serves, and the physics of that.

The gateway's file adds the address (``settings.py``), the simulator's pool file how often it is there and how it was
started. Card and model may be left out: then both are assumed, with an error so wide that the first streams decide.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from router.config.section import Count, Name, NonNegativeFloat, PositiveFloat, PositiveInt, Section, named, some
from router.config.text import ConfigProblem, Loc
from router.core.cards import GIB, Card, card
from router.core.errors import DoesNotFit, UnknownModel
from router.core.models import Model, make_model, model
from router.core.physics import Shape, StepCoefficients, cards_needed, coefficients, kv_capacity_tokens, measured
from router.core.profile import NO_PROFILE, Profile
from router.core.tables import FAMILIES
from router.engines import EngineKind, find, find_or_default
from router.spelling import suggestion

Made = TypeVar("Made")

ASSUMED_CARD: Final = replace(
    card("a100-80g-sxm"), name="unknown", source="assumed, since no card was given", confidence="E"
)
ASSUMED_MODEL: Final = replace(
    model("llama-3-8b"), name="unknown", source="assumed, since no model was given", confidence="E"
)


class CardFacts(Section):
    """An accelerator: a known one, one given in place, or (``like`` with more) a known one with corrections.

    ``family`` is the architecture whose kernels it runs (``router.core.tables.FAMILIES``), ``tflops`` its dense peak by
    precision. Left out, a card given in place is of no known family, with an error as wide as that is.
    """

    like: Name | None = None
    memory_gib: PositiveFloat | None = None
    bandwidth_gb_per_s: PositiveFloat | None = None
    tflops: dict[str, PositiveFloat] | None = None
    family: Name | None = None
    link: Name | None = None
    link_gb_per_s: PositiveFloat | None = None
    cards_per_node: PositiveInt | None = None
    price_per_hour: NonNegativeFloat | None = None

    @field_validator("family")
    @classmethod
    def _known_family(cls, name: str | None) -> str | None:
        if name is not None and name not in FAMILIES:
            raise ValueError(f"no family of cards named {name!r}; {suggestion(name, list(FAMILIES))}")
        return name


class ModelFacts(Section):
    """A model's shape: a known one (``like`` alone), or all of it from its ``config.json``."""

    like: Name | None = None
    params_billions: PositiveFloat | None = None
    layers: PositiveInt | None = None
    hidden: PositiveInt | None = None
    heads: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    active_params_billions: PositiveFloat | None = None
    ffn: Count = 0
    vocab: Count = 0
    tied: bool = False
    experts: Count = 0
    experts_per_token: Count = 0
    latent_kv: bool = False

    @model_validator(mode="after")
    def _known_or_whole(self) -> Self:
        needed = ("params_billions", "layers", "hidden", "heads")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.like and self.model_fields_set != {"like"}:
            raise ValueError("a known model (like) takes no other key")
        if not self.like and missing:
            raise ValueError(f"needs {', '.join(missing)}, or the name of a known model")
        return self


def _self_mapped(value: Any) -> Any:
    """``[a, b]`` means ``{a: a, b: b}``: the engine and the clients use one name. So does a bare ``a``."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list):
        return value
    if any(isinstance(name, list | dict) for name in value):
        raise ValueError("expected a list of names, or {client's name: engine's name}")
    return {name: name for name in value}


ServedModels = Annotated[dict[Name, Name], BeforeValidator(_self_mapped), BeforeValidator(some)]


def _text(value: Any) -> Any:
    """A number is its text."""
    return str(value) if isinstance(value, int | float) else value


Label = Annotated[str, BeforeValidator(_text)]


class Backend(Section):
    """One engine replica, or several alike: what it serves and what it runs on.

    ``models`` maps the clients' name of a model to the engine's name. ``card`` and ``model`` are names of the
    built-in tables or facts given in place. ``engine`` is the kind of server (a name or alias of ``router.engines``),
    ``protocol`` the API it serves where that is not the kind's own (``triton``: TensorRT-LLM behind Triton).
    ``kv_precision`` is that of the KV cache where it is not 16 bits (vLLM's --kv-cache-dtype).
    ``context_tokens_max`` is the longest prompt with its reply that the engine takes. ``kv_tokens_max`` and
    ``price_per_hour`` follow from card and model when left out, and so do those of a step's ``coefficients`` (seconds,
    as ``simulator calibrate --record`` prints them; names in ``router.core.step.MEASURABLE``) that were not measured.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    models: ServedModels = {}
    card: Annotated[CardFacts | None, named("like")] = None
    model: Annotated[ModelFacts | None, named("like")] = None
    engine: Name | None = None
    protocol: Name | None = None
    tp: PositiveInt = 1
    pp: PositiveInt = 1
    precision: Name = "bf16"
    kv_precision: Name | None = None
    coefficients: dict[str, float] = {}
    seqs_max: PositiveInt = 256
    kv_tokens_max: PositiveInt | None = None
    context_tokens_max: PositiveInt | None = None
    chunk_tokens: PositiveInt = 2048
    price_per_hour: NonNegativeFloat | None = None
    network_ms: NonNegativeFloat = 0.0
    weight: PositiveFloat = 1.0
    variant: Name | None = None
    labels: dict[str, Label] = {}

    @property
    def kind(self) -> EngineKind:
        """What kind of engine it is."""
        return find_or_default(self.engine, self.protocol)

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, name: str | None) -> str | None:
        if name is not None:
            find(name)
        return name

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, name: str | None) -> str | None:
        if name is not None:
            find_or_default(None, name)
        return name


@dataclass(frozen=True, slots=True)
class Engine:
    """What a backend's config stands for: its shape, the prior of its step, the tokens its KV cache holds."""

    shape: Shape
    prior: StepCoefficients
    kv_tokens_max: int


_NO_NAME: Final = (
    "for a model without a row: `model: NAME` of the one that it is a fine-tune of, or its facts: "
    "`model: {params_billions, layers, hidden, heads}`"
)
_ZERO: Final = StepCoefficients(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def resolve(
    given: Backend,
    at: Loc,
    memory_utilization: float = 0.9,
    block_tokens: int = 16,
    profile: Profile = NO_PROFILE,
) -> Engine | list[ConfigProblem]:
    """What *given* stands for, corrected by *profile*, or every fault in it; *at* is its place in the text."""
    problems: list[ConfigProblem] = []
    on = _found(lambda: card_of(given.card), (*at, "card"), problems)
    runs = _found(lambda: _configured_model(given), (*at, "model"), problems)
    _found(lambda: measured(_ZERO, given.coefficients), (*at, "coefficients"), problems)
    if on is None or runs is None or problems:
        return problems
    try:
        shape = _shape(given, on, runs)
        held = given.kv_tokens_max or kv_capacity_tokens(shape, memory_utilization, block_tokens)
        return Engine(shape, measured(coefficients(shape, profile), given.coefficients), held)
    except DoesNotFit as error:
        hint = "" if given.kv_tokens_max else "; give kv_tokens_max if the engine does run so"
        return [ConfigProblem((*at, "model"), f"does not fit: {error}{hint}")]
    except ValueError as error:
        return [ConfigProblem((*at, "precision"), str(error))]


def _found(make: Callable[[], Made], at: Loc, problems: list[ConfigProblem]) -> Made | None:
    try:
        return make()
    except ValueError as error:
        problems.append(ConfigProblem(at, str(error)))
        return None


def _shape(given: Backend, on: Card, runs: Model) -> Shape:
    """Card, model and parallelism; of an assumed card as many as the model needs."""
    tp, pp = given.tp, given.pp
    if on is ASSUMED_CARD and given.model_fields_set.isdisjoint({"tp", "pp"}):
        tp, pp = cards_needed(runs, on, given.precision)
    return Shape(on, runs, tp, pp, given.precision, given.kv_precision, given.kind.prior)


def card_of(given: CardFacts | None) -> Card:
    """The card those facts describe; an operator's own has the error of grade D, an assumed one that of E."""
    if given is None:
        return ASSUMED_CARD
    facts = {
        "memory_bytes": given.memory_gib and given.memory_gib * GIB,
        "bandwidth_bytes_per_s": given.bandwidth_gb_per_s and given.bandwidth_gb_per_s * 1e9,
        "flops_per_s": given.tflops and {name: value * 1e12 for name, value in given.tflops.items()},
        "family": given.family,
        "link": given.link,
        "link_bytes_per_s": given.link_gb_per_s and given.link_gb_per_s * 1e9,
        "cards_per_node": given.cards_per_node,
        "price_per_hour": given.price_per_hour,
    }
    changed: dict[str, Any] = {name: value for name, value in facts.items() if value is not None}
    if given.like:
        base = card(given.like)
        return replace(base, **changed, source=f"operator, after {base.name}") if changed else base
    missing = [key for key in ("memory_gib", "bandwidth_gb_per_s", "tflops") if getattr(given, key) is None]
    if missing:
        raise ValueError(f"needs {', '.join(missing)}, or like: a known card")
    rest: dict[str, Any] = {"link": "pcie", "link_bytes_per_s": 32e9, "cards_per_node": 8, "price_per_hour": 0.0}
    return Card(name="operator", source="operator", confidence="D", **(rest | changed))


def _configured_model(given: Backend) -> Model:
    """``model_of``, and for a name that no model has, what to write in its place."""
    try:
        return model_of(given)
    except UnknownModel as error:
        raise ValueError(f"{error} ({_NO_NAME})") from None


def model_of(given: Backend) -> Model:
    """The model those facts describe, or the assumed one."""
    shape = given.model
    if shape is None:
        return ASSUMED_MODEL
    if shape.like:
        return model(shape.like)
    billions = 1e9
    return make_model(
        next(iter(given.models), given.name),
        (shape.params_billions or 0.0) * billions,
        shape.layers or 0,
        shape.hidden or 0,
        shape.heads or 0,
        shape.kv_heads,
        shape.head_dim,
        active_params=shape.active_params_billions and shape.active_params_billions * billions,
        **shape.model_dump(include={"ffn", "vocab", "tied", "experts", "experts_per_token", "latent_kv"}),
    )
