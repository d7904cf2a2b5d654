"""Settings to what they stand for: backends with physics, policies by name, secrets from the environment.

Believes: the built-in tables of cards and models, and the policies there are. Must not know sockets: a plan is whole
and validated before anything that runs is touched, and a fault in it is named by its line like one of the text.
"""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from router import loading
from router.core.cards import GIB, Card, card
from router.core.errors import ConfigError, DoesNotFit
from router.core.flight import DispatchLimits
from router.core.models import Model, make_model, model
from router.core.physics import Shape, StepCoefficients, coefficients, kv_capacity_tokens, measured
from router.core.policy import Admission, Routing, Scaling
from router.core.types import Backend, Slo
from router.gateway.config import settings
from router.gateway.config.policy_spec import NOT_VALIDATED, PolicySpec, Read, chosen
from router.gateway.config.settings import Settings
from router.gateway.config.text import ConfigProblem, Document, Loc, problems, unknown
from router.gateway.protocols.ingress import Caller, Ingress, SloClass, SloLimits, SloRange, milliseconds
from router.loading import Source
from router.targets import TargetSpec, spec_of

Made = TypeVar("Made")
Environment = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """A config validated whole. Clients' and admin keys are held as SHA-256 digests, never in clear.

    ``engine_keys``: by backend, the bearer token its engine wants; ``version`` names the text it was made from.
    """

    settings: Settings
    version: str
    backends: tuple[Backend, ...]
    engine_keys: Mapping[str, str]
    ingress: Ingress
    limits: DispatchLimits
    admin_digest: str | None
    routing: Routing
    admission: Admission
    scaling: Scaling
    target: TargetSpec
    shadow: Routing | None
    canary: Routing | None
    chosen: Mapping[str, PolicySpec]
    router_id: str
    text: str = field(repr=False)

    @property
    def sources(self) -> dict[str, Source]:
        """The policy files it was made of, by path."""
        return {each.source.path: each.source for each in self.chosen.values() if each.source is not None}

    def loaded(self) -> "Plan":
        """The same with the code of its policy files executed, here. Raises ConfigError when that fails."""
        try:
            files = {role: each.make() for role, each in self.chosen.items() if getattr(self, role) is NOT_VALIDATED}
        except ValueError as error:
            raise ConfigError([str(error)]) from None
        return replace(self, **files) if files else self


def plan_file(path: Path, environment: Environment = os.environ) -> Plan:
    """The plan of a config file. Raises ConfigError naming every fault found.

    The code of policy files is read and not yet executed: ``Plan.loaded`` does that, once it is validated.
    """
    parsed, text = settings.load(path)
    return make(parsed, text, environment)


def make(
    parsed: Settings, text: Document, environment: Environment = os.environ, source_of: Read = loading.read
) -> Plan:
    """The plan of parsed settings; ``text`` places the faults. Raises ConfigError naming every fault found."""
    work = _Work(environment)
    backends = tuple(work.backend(i, given) for i, given in enumerate(parsed.backends))
    work.check(parsed)
    keys = work.callers(parsed)
    plan = {
        "engine_keys": work.engine_keys(parsed),
        "admin_digest": work.digest(("admin_key",), parsed.admin_key) if parsed.admin_key else None,
        "target": work.target(parsed.autoscale.target),
        **work.policies(parsed.policy, Path(text.name).parent, source_of),
    }
    if work.problems:
        raise text.error(work.problems)
    return Plan(
        settings=parsed,
        version=_version(text.data, plan["chosen"]),
        backends=tuple(each for each in backends if each is not None),
        ingress=Ingress(_classes(parsed), parsed.default_slo_class, keys, parsed.policy.prefix_blocks_max),
        limits=DispatchLimits(**parsed.policy.limits.model_dump(exclude_none=True)),
        text=text.text,
        router_id=parsed.state.router_id or f"{socket.gethostname()}-{os.getpid()}",
        **plan,
    )


def _version(data: Any, chosen: Mapping[str, PolicySpec]) -> str:
    """Names the config and the policy files it is made of."""
    files = {role: each.source.version for role, each in chosen.items() if each.source is not None}
    return hashlib.sha256(repr((data, files) if files else data).encode()).hexdigest()[:12]


def digest(secret: str) -> str:
    """How a secret is kept and compared: SHA-256, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


class _Work:
    """The making of one plan: goes on after a fault, so that all are told at once."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.problems: list[ConfigProblem] = []

    def try_to(self, loc: Loc, make: Callable[[], Made]) -> Made | None:
        """What *make* gives, or None with its ValueError noted at *loc*."""
        try:
            return make()
        except ValueError as error:
            self.problems.append(ConfigProblem(loc, str(error)))
            return None

    def fault(self, loc: Loc, message: str) -> None:
        """Note a fault."""
        self.problems.append(ConfigProblem(loc, message))

    def backend(self, index: int, given: settings.Backend) -> Backend | None:
        """The core's view of one configured engine."""
        at: Loc = ("backends", index)
        on = self.try_to((*at, "card"), lambda: _card(given.card))
        runs = self.try_to((*at, "model"), lambda: _model(given))
        if on is None or runs is None:
            return None
        if self.try_to((*at, "coefficients"), lambda: measured(_PLAIN, given.coefficients)) is None:
            return None
        try:
            return _backend(given, on, runs)
        except DoesNotFit as error:
            hint = "" if given.kv_tokens_max else "; give kv_tokens_max if the engine does run so"
            self.fault((*at, "model"), f"does not fit: {error}{hint}")
        except ValueError as error:
            self.fault((*at, "precision"), str(error))
        return None

    def policies(self, given: settings.Policy, folder: Path, source_of: Read) -> dict[str, Any]:
        """Who decides and who may come to, by role, and under ``chosen`` what the config said of each."""
        made: dict[str, Any] = {"shadow": None, "canary": None, "chosen": {}}
        for role, kind, loc, each in _roles(given):
            found = self.try_to(loc, partial(chosen, kind, each, folder, source_of))
            if found is not None:
                made["chosen"][role] = found
                made[role] = NOT_VALIDATED if found.source else self.try_to(loc, found.make)
        return made

    def target(self, given: settings.Target) -> TargetSpec | None:
        """Where the autoscaler's advice goes."""
        at: Loc = ("autoscale", "target")
        spec = self.try_to((*at, "name"), lambda: spec_of(given.name))
        if spec is None:
            return None
        try:
            return spec.model_validate(given.options)
        except ValidationError as error:
            self.problems += problems(error, spec, at)
        return None

    def engine_keys(self, parsed: Settings) -> dict[str, str]:
        """By backend, the bearer token its engine wants."""
        keys = {}
        for index, given in enumerate(parsed.backends):
            if given.api_key_env:
                keys[given.name] = self.from_environment(("backends", index, "api_key_env"), given.api_key_env)
            elif given.api_key:
                keys[given.name] = given.api_key
        return keys

    def callers(self, parsed: Settings) -> dict[str, Caller]:
        """By digest, whose each API key is."""
        found: dict[str, Caller] = {}
        for index, given in enumerate(parsed.api_keys):
            at: Loc = ("api_keys", index)
            name = self.digest(at, given)
            if name in found:
                self.fault(at, f"the same key is already {found[name].tenant!r}'s")
            found[name] = Caller(given.tenant, given.slo_class or "")
        return found

    def digest(self, at: Loc, given: settings.Key) -> str:
        """The SHA-256 of a key in whichever form it was given."""
        if given.sha256:
            return given.sha256
        return digest(given.key or self.from_environment((*at, "key_env"), given.key_env or ""))

    def from_environment(self, at: Loc, variable: str) -> str:
        """The value of an environment variable; unset is a fault."""
        if not self.environment.get(variable):
            self.fault(at, f"environment variable {variable} is not set")
        return self.environment.get(variable, "")

    def check(self, parsed: Settings) -> None:
        """What one section says of another."""
        self.problems += _twice(parsed)
        self.problems += _unknown_classes(parsed)
        self.problems += _outside_their_limits(parsed)
        self.problems += _variants(parsed)


def _roles(given: settings.Policy) -> Iterator[tuple[str, str, Loc, settings.Own | settings.Named]]:
    """Each role with its kind of policy, its place in the text and its section."""
    for kind in ("routing", "admission", "scaling"):
        yield kind, kind, ("policy", kind), getattr(given, kind)
    for role in ("shadow", "canary"):
        if (section := getattr(given, role)) is not None:
            yield role, "routing", ("policy", role, "routing"), section.routing


def _card(given: settings.CardFacts) -> Card:
    """The card those facts describe; an operator's own is believed no more than grade D says."""
    facts = {
        "memory_bytes": given.memory_gib and given.memory_gib * GIB,
        "bandwidth_bytes_per_s": given.bandwidth_gb_per_s and given.bandwidth_gb_per_s * 1e9,
        "flops_per_s": given.tflops and {name: value * 1e12 for name, value in given.tflops.items()},
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


def _model(given: settings.Backend) -> Model:
    shape = given.model
    if shape.like:
        return model(shape.like)
    billions = 1e9
    return make_model(
        next(iter(given.models)),
        (shape.params_billions or 0.0) * billions,
        shape.layers or 0,
        shape.hidden or 0,
        shape.heads or 0,
        shape.kv_heads,
        shape.head_dim,
        active_params=shape.active_params_billions and shape.active_params_billions * billions,
        **shape.model_dump(include={"ffn", "vocab", "tied", "experts", "experts_per_token", "latent_kv"}),
    )


_PLAIN = StepCoefficients(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def _backend(given: settings.Backend, on: Card, runs: Model) -> Backend:
    shape = Shape(on, runs, given.tp, given.pp, given.precision, engine=given.kind.prior)
    cards = given.tp * given.pp
    price = given.price_per_hour
    return Backend(
        name=given.name,
        models=tuple(given.models),
        prior=measured(coefficients(shape), given.coefficients),
        seqs_max=given.seqs_max,
        kv_tokens_max=given.kv_tokens_max or kv_capacity_tokens(shape),
        chunk_tokens=given.chunk_tokens,
        price_per_hour=on.price_per_hour * cards if price is None else price,
        network_s=given.network_ms / 1e3,
        weight=given.weight,
        variant=given.variant or f"{on.name}-tp{given.tp}" + (f"-pp{given.pp}" if given.pp > 1 else ""),
        context_tokens_max=given.context_tokens_max or 0,
        labels={"card": on.name, "model": runs.name, "tp": str(given.tp), "pp": str(given.pp)} | given.labels,
    )


def _classes(parsed: Settings) -> dict[str, SloClass]:
    return {
        name: SloClass(_slo(given), given.priority, _slo_limits(given.slo_limits))
        for name, given in parsed.slo_classes.items()
    }


def _slo(given: settings.SloClass) -> Slo:
    bounds = {"ttft_s": given.ttft_ms, "tpot_s": given.tpot_ms, "e2e_s": given.e2e_ms}
    return Slo(
        quantile=given.quantile,
        refuse_infeasible=given.slo_limits.infeasible == "refuse",
        **{name: ms / 1e3 for name, ms in bounds.items() if ms is not None},
    )


def _slo_limits(given: settings.SloLimits) -> SloLimits:
    ttft, tpot, e2e = (SloRange(each.min, each.max) for each in (given.ttft_ms, given.tpot_ms, given.e2e_ms))
    return SloLimits(ttft, tpot, e2e, clamp=given.outside == "clamp")


def _twice(parsed: Settings) -> Iterator[ConfigProblem]:
    seen: set[str] = set()
    for index, given in enumerate(parsed.backends):
        if given.name in seen:
            yield ConfigProblem(("backends", index, "name"), f"two backends are named {given.name!r}")
        seen.add(given.name)


def _unknown_classes(parsed: Settings) -> Iterator[ConfigProblem]:
    if parsed.default_slo_class not in parsed.slo_classes:
        yield ConfigProblem(("default_slo_class",), unknown("class", parsed.default_slo_class, parsed.slo_classes))
    for index, given in enumerate(parsed.api_keys):
        if given.slo_class and given.slo_class not in parsed.slo_classes:
            yield ConfigProblem(("api_keys", index, "slo_class"), unknown("class", given.slo_class, parsed.slo_classes))


def _outside_their_limits(parsed: Settings) -> Iterator[ConfigProblem]:
    """A class whose own bound its clients could not ask for is a mistake in one of the two."""
    for name, given in parsed.slo_classes.items():
        for bound in ("ttft_ms", "tpot_ms", "e2e_ms"):
            ms, within = getattr(given, bound), getattr(given.slo_limits, bound)
            if ms is not None and not within.min <= ms <= within.max:
                allowed = f"{milliseconds(within.min)} to {milliseconds(within.max)} ms"
                yield ConfigProblem(
                    ("slo_classes", name, bound),
                    f"{milliseconds(ms)} is outside {allowed}, its own slo_limits.{bound}",
                )


def _variants(parsed: Settings) -> Iterator[ConfigProblem]:
    """A variant's name must be some backend's, which is its pattern."""
    known = {given.variant for given in parsed.backends if given.variant}
    for name in parsed.autoscale.variants:
        if name not in known:
            yield ConfigProblem(("autoscale", "variants", name), f"no backend has variant: {name}")
