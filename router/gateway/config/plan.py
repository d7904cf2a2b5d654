"""Settings to what they stand for: backends with physics, policies by name, secrets from the environment.

Believes: the built-in tables of cards and models, and the policies there are. Must not know sockets: a plan is whole
and validated before anything that runs is touched, and a fault in it is named by its line like one of the text.
"""

import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from router import loading
from router.config import models as model_section
from router.config import settings
from router.config.backend import Engine, resolve
from router.config.profile import read_profile
from router.config.quotas import Quota
from router.config.settings import Settings
from router.config.slo_bounds import milliseconds
from router.config.telemetry import Tracing
from router.config.text import ConfigProblem, Document, Loc, document, problems, unknown
from router.core.errors import ConfigError, UnusableCertificate
from router.core.flight import DispatchLimits
from router.core.policy import Admission, Routing, Scaling
from router.core.profile import NO_PROFILE, Profile
from router.core.quota import QuotaRules
from router.core.slo_metrics import SLO_METRICS
from router.core.types import Backend
from router.gateway.config import keys as api_keys
from router.gateway.config.found import EngineAccess, FoundBackend
from router.gateway.config.keys import PlacedKey, digest
from router.gateway.config.policy_spec import NOT_VALIDATED, PolicySpec, Read, chosen
from router.gateway.protocols.cors import Cors
from router.gateway.protocols.ingress import Caller, Ingress, SloClass, SloLimits, SloRange
from router.gateway.state.servers import RedisServers
from router.gateway.tls import TlsContext, check_redis, client_side, server_side
from router.loading import Source
from router.targets import TargetSpec, spec_of

Made = TypeVar("Made")
Named = TypeVar("Named", Backend, settings.Backend)
Environment = Mapping[str, str]
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http"
Address = settings.Backend


@dataclass(frozen=True, slots=True)
class ListedAdapters:
    """Of one backend: the models that are adapters, by the names that clients use, and those of them that the config
    does not name.
    """

    adapters: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()


NO_ADAPTERS: Final = ListedAdapters()


@dataclass(frozen=True, slots=True)
class Plan:
    """A config validated whole. Clients' and admin keys are held as SHA-256 digests, never in clear.

    ``addresses`` are the backends' sections, in their order; ``undiscovered`` those that name no model, so that the
    engine has to say first what it serves (``discovered``). ``engine_keys``: by backend, the bearer token its engine
    wants; ``engine_tls``: by backend, its certificates, where it has its own; ``tls``: those of the port, None: HTTP.
    ``found``: the backends that sources found, as they are merged into the others (``sourced``); ``accesses``: how the
    engines of each entry of ``discover`` are reached. ``patterns``: by variant, the replica that its section describes.
    ``redis``: the servers of the shared state. ``version`` names the text it was made from; ``adapters``: by backend,
    what its engine lists of them (``adapted``).
    """

    settings: Settings
    version: str
    backends: tuple[Backend, ...]
    addresses: tuple[Address, ...]
    undiscovered: tuple[Address, ...]
    engine_keys: Mapping[str, str]
    engine_tls: Mapping[str, TlsContext]
    tls: TlsContext | None
    redis: RedisServers | None
    ingress: Ingress
    quotas: QuotaRules
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
    adapters: Mapping[str, ListedAdapters] = field(default_factory=dict)
    profile: Profile = NO_PROFILE
    accesses: tuple[EngineAccess, ...] = ()
    patterns: Mapping[str, Backend] = field(default_factory=dict)
    found: tuple[FoundBackend, ...] = ()

    @property
    def sources(self) -> dict[str, Source]:
        """The policy files it was made of, by path."""
        return {each.source.path: each.source for each in self.chosen.values() if each.source is not None}

    @property
    def assumed_backends(self) -> tuple[Backend, ...]:
        """The backends, or, where none is known yet, those that have to say what they serve, as they are assumed, or
        one of each source.
        """
        return self.backends or tuple(map(_assumed, self.undiscovered or self._examples()))

    def _examples(self) -> Iterator[Address]:
        for index, given in enumerate(self.settings.discover):
            yield given.defaults.model_copy(update={"name": f"found-{index}"})

    def discovered(self, found: Mapping[str, Address]) -> "Plan":
        """The same with these backends, by name, as their engines completed them."""
        new = self._resolved(found[given.name] for given in self.undiscovered if given.name in found)
        return replace(
            self,
            backends=self.backends + tuple(_backend(given, engine) for given, engine in new),
            addresses=self.addresses + tuple(given for given, _ in new),
            undiscovered=tuple(given for given in self.undiscovered if given.name not in found),
        )

    def sourced(self, found: tuple[FoundBackend, ...]) -> "Plan":
        """The same with these backends in place of those that sources found before; the same plan when they are those.

        What engines said of the backends that stay as they were is kept.
        """
        before, now = ({each.given.name: each for each in these} for these in (self.found, found))
        changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
        if not changed:
            return self
        new = [each for name, each in now.items() if name in changed]
        serving = self._resolved(each.given for each in new if each.given.models)
        keys, certificates = _without(self.engine_keys, changed), _without(self.engine_tls, changed)
        keys |= {each.given.name: each.access.key for each in new if each.access.key}
        shown = {each.given.name: each.access.certificates for each in new}
        certificates |= {name: context for name, context in shown.items() if context is not None}
        return replace(
            self,
            backends=_others(self.backends, changed) + tuple(_backend(given, engine) for given, engine in serving),
            addresses=_others(self.addresses, changed) + tuple(given for given, _ in serving),
            undiscovered=_others(self.undiscovered, changed) + tuple(e.given for e in new if not e.given.models),
            engine_keys=keys,
            engine_tls=certificates,
            adapters=_without(self.adapters, changed),
            found=found,
        )

    def _resolved(self, given: Iterable[Address]) -> list[tuple[Address, Engine]]:
        """Those whose facts fit together, with what they stand for."""
        pairs = ((each, resolve(each, (), profile=self.profile)) for each in given)
        return [(each, engine) for each, engine in pairs if isinstance(engine, Engine)]

    def adapted(self, found: Mapping[str, ListedAdapters]) -> "Plan":
        """The same with these adapters, by backend, in place of those it had; the same plan when they are the same."""
        listed = {name: each for name, each in found.items() if each != NO_ADAPTERS}
        if listed == self.adapters:
            return self
        loads_s = {given.name: given.adapter_load_ms / 1e3 for given in self.addresses}
        backends = []
        for backend in self.backends:
            before, now = (each.get(backend.name, NO_ADAPTERS) for each in (self.adapters, listed))
            models = tuple(name for name in backend.models if name not in before.unnamed) + now.unnamed
            facts: dict[str, Any] = {"models": models, "adapters": now.adapters}
            facts["adapter_load_s"] = loads_s.get(backend.name, 0.0) if now.adapters else 0.0
            backends.append(replace(backend, **facts) if before != now else backend)
        return replace(self, backends=tuple(backends), adapters=listed)

    def sharing(self, other: "Plan") -> "Plan":
        """The same with *other*'s sections and backends in place of equal ones: of a thousand backends of which one has
        changed, the versions that are kept for a rollback have the rest but once.
        """
        given = _shared(self.settings.backends, other.settings.backends)
        sections = {each.name: each for each in given}
        return replace(
            self,
            settings=self.settings.model_copy(update={"backends": given}),
            addresses=tuple(sections[each.name] for each in self.addresses),
            undiscovered=tuple(sections[each.name] for each in self.undiscovered),
            backends=_shared(self.backends, other.backends),
        )

    def with_patterns(self, patterns: Mapping[str, Backend]) -> "Plan":
        """The same with these replicas as patterns of their variants."""
        return replace(self, patterns=patterns)

    def recertified(self, path: Path, environment: Environment = os.environ) -> "Plan":
        """The same with certificates and API keys as their files are now; *path*: of the config. Raises ConfigError."""
        work = _Work(environment)
        work.read_keys(self.settings, path.parent)
        keys = work.callers()
        read = work.certificates(self.settings, path.parent)
        sources = enumerate(zip(self.settings.discover, self.accesses, strict=True))
        accesses = tuple(
            replace(access, certificates=work.source_certificates(index, given.defaults, path.parent))
            for index, (given, access) in sources
        )
        if work.problems:
            raise document(self.text, str(path)).error(work.problems)
        ingress = replace(self.ingress, keys=keys)
        quotas = _quotas(self.settings, work.keys, keys)
        return replace(self.sourced(()), accesses=accesses, ingress=ingress, quotas=quotas, **read)

    def loaded(self) -> "Plan":
        """The same with the code of its policy files executed, here. Raises ConfigError when that fails."""
        try:
            files = {role: each.make() for role, each in self.chosen.items() if getattr(self, role) is NOT_VALIDATED}
        except ValueError as error:
            raise ConfigError([str(error)]) from None
        return replace(self, **files) if files else self


def _shared(these: tuple[Named, ...], others: tuple[Named, ...]) -> tuple[Named, ...]:
    """These, each as it is among the others where it is equal."""
    known = {each.name: each for each in others}
    return tuple(known[each.name] if known.get(each.name) == each else each for each in these)


def _others(these: tuple[Named, ...], names: set[str]) -> tuple[Named, ...]:
    return tuple(each for each in these if each.name not in names)


def _without(these: Mapping[str, Made], names: set[str]) -> dict[str, Made]:
    return {name: each for name, each in these.items() if name not in names}


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
    work, folder = _Work(environment), Path(text.name).parent
    work.read_profile(parsed.profile, folder)
    work.read_keys(parsed, folder)
    backends = tuple(work.backend(i, given) for i, given in enumerate(parsed.backends))
    work.check(parsed)
    work.tracing(parsed.tracing)
    keys = work.callers()
    plan = {
        "engine_keys": work.engine_keys(parsed),
        "admin_digest": work.digest(("admin_key",), parsed.admin_key) if parsed.admin_key else None,
        "redis": work.redis(parsed.state, folder),
        "target": work.target(parsed.autoscale.target),
        "patterns": work.patterns(parsed.autoscale),
        "accesses": work.accesses(parsed, folder),
        **work.certificates(parsed, folder),
        **work.policies(parsed.policy, folder, source_of),
    }
    if work.problems:
        raise text.error(work.problems)
    return Plan(
        settings=parsed,
        version=_version(text.resolved()[0], plan["chosen"], work.profile, keys if parsed.key_file else {}),
        profile=work.profile,
        backends=tuple(each for each in backends if each is not None and each.models),
        addresses=tuple(given for given in parsed.backends if given.models),
        undiscovered=tuple(given for given in parsed.backends if not given.models),
        ingress=Ingress(
            _classes(parsed),
            parsed.default_slo_class,
            keys,
            parsed.policy.prefix_blocks_max,
            _cors(parsed.cors),
            model_section.rules(parsed.models, _startable(plan["patterns"])),
            parsed.key_file is not None,
        ),
        quotas=_quotas(parsed, work.keys, keys),
        limits=DispatchLimits(**parsed.policy.limits.model_dump(exclude_none=True)),
        text=text.text,
        router_id=parsed.state.router_id or f"{socket.gethostname()}-{os.getpid()}",
        **plan,
    )


def _startable(patterns: Mapping[str, Backend]) -> list[str]:
    """The models that the autoscaler may start replicas of."""
    return sorted({model for pattern in patterns.values() for model in pattern.models})


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even a package around it
        return False


def _version(data: Any, chosen: Mapping[str, PolicySpec], profile: Profile, keys: Mapping[str, Caller]) -> str:
    """Names the config, and the policy files, the profile and the key file it is made of."""
    files = {role: each.source.version for role, each in chosen.items() if each.source is not None}
    if profile != NO_PROFILE:
        files["profile"] = repr((sorted(profile.logs.items()), profile.band))
    if keys:
        files["keys"] = repr(sorted(keys.items(), key=lambda each: each[0]))
    return hashlib.sha256(repr((data, files) if files else data).encode()).hexdigest()[:12]


class _Work:
    """Builds one plan; continues after a fault, so that all faults are reported at once."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.problems: list[ConfigProblem] = []
        self.profile = NO_PROFILE
        self.keys: list[PlacedKey] = []

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

    def read_profile(self, file: Path | None, folder: Path) -> None:
        """Take the corrections of predicted step times that the config names."""
        if file is None:
            return
        try:
            self.profile = read_profile(folder / file)
        except ConfigError as refused:
            self.fault(("profile",), str(refused))

    def read_keys(self, parsed: Settings, folder: Path) -> None:
        """Take the entries of API keys, of the config and of its key file."""
        try:
            self.keys = api_keys.placed(parsed, folder)
        except ConfigError as refused:
            self.fault(("key_file",), str(refused))

    def backend(self, index: int, given: settings.Backend) -> Backend | None:
        """The core's view of one configured engine."""
        engine = resolve(given, ("backends", index), profile=self.profile)
        if isinstance(engine, Engine):
            return _backend(given, engine)
        self.problems += engine
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

    def patterns(self, given: settings.Autoscale) -> dict[str, Backend]:
        """By variant, a replica of it as the autoscaler's section describes one."""
        found = {}
        for name, variant in given.variants.items():
            if variant.replica is None:
                continue
            at: Loc = ("autoscale", "variants", name, "replica")
            replica = variant.replica.model_copy(update={"name": name, "variant": name})
            engine = resolve(replica, at, profile=self.profile)
            if not isinstance(engine, Engine):
                self.problems += engine
            elif not replica.models:
                self.fault(at, "models is missing: what its replicas serve")
            else:
                found[name] = _backend(replica, engine)
        return found

    def engine_keys(self, parsed: Settings) -> dict[str, str]:
        """By backend, the bearer token of its engine."""
        keys = {}
        for index, given in enumerate(parsed.backends):
            if given.api_key_env:
                keys[given.name] = self.from_environment(("backends", index, "api_key_env"), given.api_key_env)
            elif given.api_key:
                keys[given.name] = given.api_key
        return keys

    def tracing(self, given: Tracing | None) -> None:
        """Whether traces can be written here."""
        if given is not None and not _installed(_EXPORTER):
            self.fault(("tracing",), f"needs the package {_EXPORTER}: pip install 'headroom-router[otel]'")

    def certificates(self, parsed: Settings, folder: Path) -> dict[str, Any]:
        """``tls`` and ``engine_tls`` of a plan."""
        listen, found = parsed.listen.tls, {}
        made: dict[tuple[Any, ...], TlsContext] = {}  # backends with the same files have one context, read once
        for index, given in enumerate(parsed.backends):
            files = (given.ca, given.client_cert, given.client_key, given.tls_server_name)
            context = made.get(files) or self._certified(("backends", index), partial(client_side, given, folder))
            if context is not None:
                found[given.name] = made[files] = context
        own = self._certified(("listen", "tls"), partial(server_side, listen, folder)) if listen else None
        if parsed.epp.tls:
            self._certified(("epp", "tls"), partial(server_side, parsed.epp.tls, folder))
        return {"tls": own, "engine_tls": found}

    def accesses(self, parsed: Settings, folder: Path) -> tuple[EngineAccess, ...]:
        """How the engines of each source are reached; the faults of what the config says of them all are noted."""
        return tuple(self._access(index, given.defaults, folder) for index, given in enumerate(parsed.discover))

    def _access(self, index: int, given: settings.BackendDefaults, folder: Path) -> EngineAccess:
        at: Loc = ("discover", index, "defaults")
        engine = resolve(given, at, profile=self.profile)
        self.problems += engine if isinstance(engine, list) else []
        key = given.api_key or ""
        if given.api_key_env:
            key = self.from_environment((*at, "api_key_env"), given.api_key_env)
        return EngineAccess(key, self.source_certificates(index, given, folder))

    def source_certificates(self, index: int, given: settings.BackendDefaults, folder: Path) -> TlsContext | None:
        """The certificates of the engines of one source."""
        return self._certified(("discover", index, "defaults"), partial(client_side, given, folder))

    def redis(self, parsed: settings.State, folder: Path) -> RedisServers | None:
        """The servers of the shared state, with their password and their certificates' files."""
        given, at = parsed.servers, ("state", "redis")
        if given is None:
            return None
        password = given.password or ""
        if given.password_env:
            password = self.from_environment((*at, "password_env"), given.password_env)
        self._certified(at, partial(check_redis, given, folder))
        names = ("ca", "client_cert", "client_key")
        files = {name: str(folder / path) for name in names if (path := getattr(given, name)) is not None}
        return RedisServers.of_urls(
            *given.urls,
            service=given.service or "",
            username=given.username or "",
            password=password,
            verify_hostname=given.verify_hostname,
            **files,
        )

    def _certified(self, loc: Loc, make: Callable[[], TlsContext | None]) -> TlsContext | None:
        try:
            return make()
        except UnusableCertificate as error:
            self.fault((*loc, error.key), str(error))
            return None

    def callers(self) -> dict[str, Caller]:
        """By digest, whose each API key is."""
        return api_keys.callers(self.keys, self.environment, self.problems)

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
        self.problems += _without_state(parsed)
        self.problems += _unelected(parsed)
        self.problems += _impossible_quotas(parsed, self.keys)
        self.problems += api_keys.faults(parsed, self.keys)
        tenants = api_keys.tenants(parsed, self.keys)
        self.problems += model_section.faults(parsed.models, _served(parsed), parsed.slo_classes, tenants)


def _roles(given: settings.Policy) -> Iterator[tuple[str, str, Loc, settings.Own | settings.Named]]:
    """Each role with its kind of policy, its place in the text and its section."""
    for kind in ("routing", "admission", "scaling"):
        yield kind, kind, ("policy", kind), getattr(given, kind)
    for role in ("shadow", "canary"):
        if (section := getattr(given, role)) is not None:
            yield role, "routing", ("policy", role, "routing"), section.routing


def _backend(given: settings.Backend, engine: Engine) -> Backend:
    """The core's view of a configured backend."""
    shape = engine.shape
    on, cards = shape.card, shape.tp * shape.pp
    price = given.price_per_hour
    return Backend(
        name=given.name,
        models=tuple(given.models),
        prior=engine.prior,
        seqs_max=given.seqs_max,
        kv_tokens_max=engine.kv_tokens_max,
        chunk_tokens=given.chunk_tokens,
        price_per_hour=on.price_per_hour * cards if price is None else price,
        network_s=given.network_ms / 1e3,
        weight=given.weight,
        variant=given.variant or f"{on.name}-tp{shape.tp}" + (f"-pp{shape.pp}" if shape.pp > 1 else ""),
        context_tokens_max=given.context_tokens_max or 0,
        labels={"card": on.name, "model": shape.model.name, "tp": str(shape.tp), "pp": str(shape.pp)} | given.labels,
    )


def _assumed(given: settings.Backend) -> Backend:
    """A backend whose engine has not said yet what it serves; its section was checked when the plan was made."""
    engine = resolve(given, ())
    assert isinstance(engine, Engine)
    backend = _backend(given, engine)
    return backend if backend.models else replace(backend, models=(engine.shape.model.name,))


def replica_of(facts: Mapping[str, Any], variant: str, models: tuple[str, ...], profile: Profile) -> Backend | None:
    """The backend that a section stands for which a router published; None where this release cannot read it."""
    try:
        given = settings.Backend.model_validate(facts)
    except ValidationError:
        return None
    engine = resolve(given, (), profile=profile)
    if not isinstance(engine, Engine):
        return None
    return replace(_backend(given, engine), variant=variant, models=models)


def _classes(parsed: Settings) -> dict[str, SloClass]:
    return {
        name: SloClass(given.slo(), given.priority, _slo_limits(given.slo_limits))
        for name, given in parsed.slo_classes.items()
    }


def _cors(given: settings.Cors | None) -> Cors | None:
    return Cors(frozenset(given.origins), given.headers, given.max_age_s) if given else None


def _slo_limits(given: settings.SloLimits) -> SloLimits:
    ranges = tuple(SloRange(each.min, each.max) for each in given.by_metric())
    return SloLimits(ranges, clamp=given.outside == "clamp")


def _twice(parsed: Settings) -> Iterator[ConfigProblem]:
    seen: set[str] = set()
    for index, given in enumerate(parsed.backends):
        if given.name in seen:
            yield ConfigProblem(("backends", index, "name"), f"two backends are named {given.name!r}")
        seen.add(given.name)


def _unknown_classes(parsed: Settings) -> Iterator[ConfigProblem]:
    if parsed.default_slo_class not in parsed.slo_classes:
        yield ConfigProblem(("default_slo_class",), unknown("class", parsed.default_slo_class, parsed.slo_classes))


def _outside_their_limits(parsed: Settings) -> Iterator[ConfigProblem]:
    """A class whose own bound its clients could not ask for is a mistake in one of the two."""
    for name, given in parsed.slo_classes.items():
        for metric, ms, within in zip(SLO_METRICS, given.by_metric(), given.slo_limits.by_metric(), strict=True):
            if ms is not None and not within.min <= ms <= within.max:
                allowed = f"{milliseconds(within.min)} to {milliseconds(within.max)} ms"
                yield ConfigProblem(
                    ("slo_classes", name, metric.milliseconds),
                    f"{milliseconds(ms)} is outside {allowed}, its own slo_limits.{metric.milliseconds}",
                )


def _without_state(parsed: Settings) -> Iterator[ConfigProblem]:
    """Engines announce themselves in the shared state, and routers what they read of them; it must then be one."""
    if parsed.scrape.source == "routers" and parsed.state.servers is None:
        yield ConfigProblem(("scrape", "source"), "routers needs state.redis_url or state.redis")
    for index, given in enumerate(parsed.discover):
        if given.redis is not None and parsed.state.servers is None:
            yield ConfigProblem(("discover", index, "redis"), "needs state.redis_url or state.redis")


def _unelected(parsed: Settings) -> Iterator[ConfigProblem]:
    """Two routers with autoscalers inside that share nothing would both act, each for its own part of the demand."""
    given = parsed.autoscale
    unelected = given.inside and given.election.by == "auto" and parsed.state.servers is None
    if unelected and _acts(given.target.name):
        yield ConfigProblem(
            ("autoscale", "election", "by"),
            "several routers with this config would all scale, as inside is true and they share no state: set "
            "state.redis_url, or by: kubernetes; by: none is for a router that is the only one",
        )


def _acts(name: str) -> bool:
    try:
        return spec_of(name).acts
    except ValueError:
        return False  # its name is a fault of its own


def _quotas(parsed: Settings, given: Iterable[PlacedKey], keys: Mapping[str, Caller]) -> QuotaRules:
    pairs = zip(keys.values(), given, strict=True)
    by_key = {caller.key: each.given.quota.rule() for caller, each in pairs if each.given.quota is not None}
    return QuotaRules(
        {tenant: given.rule() for tenant, given in parsed.quotas.items()},
        by_key,
        {model: given.rule() for model, given in parsed.prices.items()},
    )


def _impossible_quotas(parsed: Settings, keys: Iterable[PlacedKey]) -> Iterator[ConfigProblem]:
    """Quotas that lack what they are counted by."""
    for name, given in parsed.quotas.items():
        for key, why in _lacking(given, parsed):
            yield ConfigProblem(("quotas", name, key), why)
    for each in keys:
        for key, why in _lacking(each.given.quota, parsed) if each.given.quota else ():
            yield each.fault(f"quota.{key}", why)


def _lacking(given: Quota, parsed: Settings) -> Iterator[tuple[str, str]]:
    """What limits cannot be kept, and what they lack."""
    if given.monthly and parsed.state.servers is None:
        key = "tokens_per_month" if given.tokens_per_month is not None else "usd_per_month"
        yield key, "needs state.redis_url: a router alone forgets it when it restarts"
    if given.usd_per_month is not None and not parsed.prices:
        yield "usd_per_month", "needs prices, in USD per million tokens by model"


def _served(parsed: Settings) -> frozenset[str]:
    """All models that backends serve; none where engines have yet to state it."""
    if parsed.discover or not all(given.models for given in parsed.backends):
        return frozenset()
    return frozenset(name for given in parsed.backends for name in given.models)


def _variants(parsed: Settings) -> Iterator[ConfigProblem]:
    """A variant's name must be some backend's, which is its pattern."""
    if parsed.discover:  # labels name variants too
        return
    known = {given.variant for given in parsed.backends if given.variant}
    for name, variant in parsed.autoscale.variants.items():
        if name not in known and variant.replica is None:
            yield ConfigProblem(("autoscale", "variants", name), f"no backend has variant: {name}")
