"""Pools from files: pool.yaml, or a gateway's router.yaml as it stands.

Both describe backends by one schema (``router.config.backend``). A pool file adds what the simulator alone can vary:
how many replicas there are, how each engine was started, what is true of them, and the world around them. Every fault
is named by file, line and key. Must not depend on the gateway.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, BeforeValidator, create_model
from pydantic import Field as Bound

import policies
from router.config import backend
from router.config import models as model_section
from router.config.backend import Engine, resolve
from router.config.models import ModelRule
from router.config.profile import read_profile
from router.config.section import Count, Name, PositiveFloat, PositiveInt, Section, some
from router.config.settings import Limits, Settings
from router.config.text import ConfigProblem, Document, read
from router.core.errors import ConfigError
from router.core.flight import DispatchLimits
from router.core.model_rules import ModelRules
from router.core.profile import NO_PROFILE, Profile
from router.engines import OPENAI_PROTOCOL
from simulator.pool import BELIEFS, Member, Pool, replica_names
from simulator.replica.truth import HiddenFactors
from simulator.workload.arrivals import SloClass, parse_slo
from simulator.world import Autoscaling, Clients, Fault, World


class Backend(backend.Backend):
    """A backend of a pool: how many replicas there are, and how each was started."""

    renamed: ClassVar[Mapping[str, str]] = {
        "served_as": "models, as in router.yaml",
        "network_s": "network_ms, in milliseconds, as in router.yaml",
        "kv_blocks": "kv_tokens_max, in tokens (blocks times block_tokens), as in router.yaml",
        "model_tokens_max": "context_tokens_max, as in router.yaml",
    }

    count: PositiveInt = 1
    block_tokens: PositiveInt = 16
    queue_max: Count = 1 << 30
    queue_tokens_max: Count = 1 << 60
    adapters: tuple[Name, ...] = ()
    adapters_max: Count = 0
    async_scheduling: bool = False
    prefix_caching: bool = True
    priority: bool = False
    reserve_prompt: bool | None = None
    watermark: Annotated[float, Bound(ge=0, lt=1)] = 0.0
    active_max: Count = 0
    long_prompt_chunk: Count = 0
    long_prompt_adaptive: bool = False
    memory_utilization: Annotated[float, Bound(gt=0, le=1)] = 0.9
    network_ms: Annotated[float, Bound(ge=0, allow_inf_nan=False)] = 1.0


def _belief(text: str) -> str:
    if text not in BELIEFS:
        raise ValueError(f"expected one of {', '.join(BELIEFS)}, not {text!r}")
    return text


def _section(kind: type) -> Any:
    """A section with the fields of a dataclass of the simulator, whose own check applies to it."""

    def check(section: Section) -> Section:
        kind(**section.model_dump(exclude_unset=True))
        return section

    made: dict[str, Any] = {each.name: (each.type, _default(each)) for each in fields(kind)}
    section: Any = create_model(kind.__name__, __base__=Section, __doc__=kind.__doc__, **made)
    return Annotated[section, AfterValidator(check)]


def _several(item: Any) -> Any:
    return tuple[item, ...]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return ... if field.default is MISSING else field.default


def _made(kind: Any, section: Section | None) -> Any:
    """The dataclass that a section of it stands for."""
    return kind(**section.model_dump(exclude_unset=True)) if section is not None else None


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_CONTEXT_TOKENS_MAX: Final = 131_072  # of an engine whose limit is not given


def _slo(text: str) -> str:
    parse_slo(text)
    return text


_FIELDS: Final[dict[str, Any]] = {
    "backends": (Annotated[tuple[Backend, ...], BeforeValidator(some)], ...),
    "profile": (Path | None, None),
    "defaults": (dict[str, Any], {}),
    "slo": (Annotated[tuple[Annotated[str, AfterValidator(_slo)], ...], BeforeValidator(_texts)], ()),
    "truth": (_section(HiddenFactors), None),
    "belief": (Annotated[str, AfterValidator(_belief)], "learnt"),
    "wrong_factor": (PositiveFloat, 2.0),
    "routers": (PositiveInt, 1),
    "sync_s": (PositiveFloat, 0.05),
    "push_s": (Annotated[float, Bound(ge=0)] | None, None),
    "scrape_s": (Annotated[float, Bound(ge=0, allow_inf_nan=False)], 1.0),
    "health_s": (Annotated[float, Bound(ge=0, allow_inf_nan=False)], 1.0),
    "faults": (_several(_section(Fault)), ()),
    "clients": (_section(Clients), None),
    "scaling": (_section(Autoscaling), None),
    "limits": (Limits, Limits()),
    "models": (dict[Name, ModelRule], {}),
}
PoolFile: Final[Any] = create_model("PoolFile", __base__=Section, **_FIELDS)


def load_pool(path: Path) -> Pool:
    """The pool of a pool.yaml or a router.yaml. Raises ConfigError naming every fault by file, line and key."""
    text = read(path)
    pool = _of_router if _is_routers(text.data) else _of_pool
    return replace(pool(text), name=path.stem)


def _is_routers(data: Mapping[str, Any]) -> bool:
    """Whether the file is a gateway's: it has a key of that alone, or a backend with an address."""
    own = set(Settings.model_fields) - set(PoolFile.model_fields)
    listed = data.get("backends")
    addressed = isinstance(listed, list) and any(isinstance(each, dict) and "url" in each for each in listed)
    return addressed or not own.isdisjoint(data)


# ---- a gateway's file -----------------------------------------------------------


def _of_router(text: Document) -> Pool:
    """Its backends, its SLO classes (the default one for requests that bring none), its periods."""
    settings = text.parse(Settings)
    if not settings.backends:
        unknown = "a simulation cannot find backends; list those that these sources find under backends"
        raise text.error([ConfigProblem(("discover",), unknown)])
    members = _members(text, [_as_pools(given) for given in settings.backends], _profile(text, settings.profile))
    classes = tuple(
        SloClass(name, given.slo(), float(name == settings.default_slo_class))
        for name, given in settings.slo_classes.items()
    )
    world = World(sync_s=settings.state.sync_s, scrape_s=settings.scrape.period_s)
    rules = _rules(text, settings.models, members)
    return Pool(members, classes, world=world, limits=_limits(settings.policy.limits), models=rules)


def _as_pools(given: backend.Backend) -> Backend:
    """A gateway's backend with what a pool adds to it."""
    shared = given.model_dump(include=set(backend.Backend.model_fields), exclude_unset=True)
    return Backend.model_validate({**shared, "network_ms": given.network_ms})


# ---- a pool's own file ----------------------------------------------------------


def _of_pool(text: Document) -> Pool:
    """Each backend with the defaults under it; a name left out is made of card and place."""
    defaulted = replace(text, data=_with_scaling(_with_defaults(text.data)))
    parsed: Any = defaulted.parse_or_problems(PoolFile)
    if isinstance(parsed, list):
        raise text.error(_at_home(parsed, text.data))
    members = _members(text, parsed.backends, _profile(text, parsed.profile))
    names = [name for member in members for name in member.names]
    faults = tuple(_made(Fault, each) for each in parsed.faults)
    strangers = [n for n, fault in enumerate(faults) if fault.backend not in names]
    if strangers:
        expected = f"expected a backend among {', '.join(names)}"
        raise text.error(ConfigProblem(("faults", n, "backend"), expected) for n in strangers)
    scaling = _made(Autoscaling, parsed.scaling)
    if scaling is not None:
        try:
            policies.find("scaling", scaling.policy, scaling.parameters)
        except ValueError as problem:
            raise text.error([ConfigProblem(("scaling",), str(problem))]) from None
    clients, truth = _made(Clients, parsed.clients) or Clients(), _made(HiddenFactors, parsed.truth) or HiddenFactors()
    world = World(
        parsed.routers,
        parsed.sync_s,
        parsed.scrape_s,
        parsed.health_s,
        faults,
        clients,
        scaling,
        inf if parsed.push_s is None else parsed.push_s,
    )
    slos = tuple(parse_slo(each) for each in parsed.slo)
    limits, rules = _limits(parsed.limits), _rules(text, parsed.models, members)
    return Pool(members, slos, truth, parsed.belief, parsed.wrong_factor, world, limits=limits, models=rules)


def _rules(text: Document, given: Mapping[str, ModelRule], members: Iterable[Member]) -> ModelRules:
    """Which models serve others' requests. Raises ConfigError where they do not fit the fleet."""
    served = frozenset(name for member in members for name in member.models)
    if problems := list(model_section.faults(given, served)):
        raise text.error(problems)
    return model_section.rules(given)


def _limits(given: Limits) -> DispatchLimits:
    """Of the routers: those left out have the core's default."""
    return DispatchLimits(**given.model_dump(exclude_none=True))


def _with_defaults(data: Any) -> Any:
    defaults, listed = data.get("defaults", {}), data.get("backends")
    if not isinstance(listed, list) or not isinstance(defaults, dict):
        return data
    return {**data, "backends": [_whole(defaults, entry, n) for n, entry in enumerate(listed)]}


def _with_scaling(data: Any) -> Any:
    """A scaling policy may be named as router.yaml does: by ``name`` with its ``parameters``."""
    scaling = data.get("scaling") if isinstance(data, dict) else None
    if not isinstance(scaling, dict):
        return data
    policy = scaling.get("policy")
    if not isinstance(policy, dict) or "name" not in policy or not policy.keys() <= {"name", "parameters"}:
        return data
    given = {"policy": policy["name"], "parameters": policy.get("parameters", {})}
    return {**data, "scaling": {**scaling, **given}}


def _whole(defaults: Mapping[str, Any], entry: Any, number: int) -> Any:
    if not isinstance(entry, dict):
        return entry
    whole = {**defaults, **entry}
    card = whole.get("card")
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", card) if isinstance(card, str) else "backend"
    return {"name": f"{stem}x{whole.get('tp', 1)}-{number}", **whole}


def _at_home(problems: Iterable[ConfigProblem], data: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """The problems, each once and where its key stands: under ``defaults`` where the backend does not have it."""
    seen = set()
    for problem in problems:
        loc = problem.loc
        defaulted = loc[0] == "backends" and len(loc) > _KEY and loc[_KEY] not in data["backends"][loc[1]]
        if defaulted and loc[_KEY] in data.get("defaults", {}):
            problem = replace(problem, loc=("defaults", *loc[_KEY:]))  # noqa: PLW2901 - the same problem, moved
        if problem not in seen:
            seen.add(problem)
            yield problem


_KEY: Final = 2  # where a backend's key stands in a place such as ("backends", 0, "tp")


# ---- members --------------------------------------------------------------------


def _profile(text: Document, file: Path | None) -> Profile:
    """The corrections of predicted step times that the file names. Raises ConfigError."""
    if file is None:
        return NO_PROFILE
    try:
        return read_profile(Path(text.name).parent / file)
    except ConfigError as refused:
        raise text.error([ConfigProblem(("profile",), str(refused))]) from None


def _members(text: Document, backends: Sequence[Backend], profile: Profile) -> tuple[Member, ...]:
    """The members that backends stand for. Raises ConfigError naming every fault."""
    members: list[Member] = []
    problems: list[ConfigProblem] = []
    for index, given in enumerate(backends):
        at = ("backends", index)
        engine = resolve(given, at, given.memory_utilization, given.block_tokens, profile)
        if isinstance(engine, list):
            problems += engine
            continue
        try:
            member = replace(_member(given, engine), profile=profile)
            member.limits()
        except ValueError as error:
            problems.append(ConfigProblem(at, str(error)))
            continue
        members.append(member)
    problems += [
        ConfigProblem(("backends", n, "name"), f"two replicas are named {name!r}") for n, name in _twice(backends)
    ]
    if problems:
        raise text.error(problems)
    return tuple(members)


def _twice(backends: Sequence[Backend]) -> Iterator[tuple[int, str]]:
    seen: set[str] = set()
    for index, given in enumerate(backends):
        for name in replica_names(given.name, given.count):
            if name in seen:
                yield index, name
            seen.add(name)


def _member(given: Backend, engine: Engine) -> Member:
    card, model, shape = given.card, given.model, engine.shape
    return Member(
        name=given.name,
        card=card.like if card is not None and card.model_fields_set == {"like"} and card.like else shape.card,
        model=model.like if model is not None and model.like else shape.model,
        tp=shape.tp,
        pp=shape.pp,
        precision=given.precision,
        kv_precision=given.kv_precision,
        engine=given.engine or given.protocol or OPENAI_PROTOCOL,
        count=given.count,
        served_as=tuple(given.models),
        seqs_max=given.seqs_max,
        chunk_tokens=given.chunk_tokens,
        block_tokens=given.block_tokens,
        kv_blocks=max(1, given.kv_tokens_max // given.block_tokens) if given.kv_tokens_max else 0,
        model_tokens_max=given.context_tokens_max or _CONTEXT_TOKENS_MAX,
        queue_max=given.queue_max,
        queue_tokens_max=given.queue_tokens_max,
        adapters=given.adapters,
        adapters_max=given.adapters_max,
        async_scheduling=given.async_scheduling,
        prefix_caching=given.prefix_caching,
        priority=given.priority,
        reserve_prompt=given.reserve_prompt,
        watermark=given.watermark,
        active_max=given.active_max,
        long_prompt_chunk=given.long_prompt_chunk,
        long_prompt_adaptive=given.long_prompt_adaptive,
        memory_utilization=given.memory_utilization,
        network_s=given.network_ms / 1e3,
        price_per_hour=-1.0 if given.price_per_hour is None else given.price_per_hour,
        weight=given.weight,
        coefficients=given.coefficients,
        labels=given.labels,
        variant=given.variant or "",
    )
