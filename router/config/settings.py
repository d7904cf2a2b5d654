"""The gateway's config file as frozen, validated values, one class a section.

Must not depend on policies or sockets; what the names in it stand for is looked up where they are used. Every duration
is in seconds except SLOs, which people state in milliseconds; every queue has a bound.
"""

import re
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from router.config import backend, discover
from router.config.models import ModelRule
from router.config.quotas import Price, Quota
from router.config.section import (
    BaseUrl,
    Count,
    HttpUrl,
    Name,
    NonNegativeFloat,
    Port,
    PositiveFloat,
    PositiveInt,
    RedisUrl,
    Section,
    default,
    named,
    some,
)
from router.config.slo_bounds import SLO_MS_MAX, SLO_MS_MIN, milliseconds
from router.config.telemetry import Log, Tracing
from router.config.text import Document, read
from router.core.slo_metrics import SLO_METRICS
from router.core.types import Slo, slo_of
from router.urls import redis_db


class ListenTls(Section):
    """The certificate of this router, with its chain, and its key: files in PEM form, from the config's folder.

    ``client_ca``: clients need a certificate of one of these authorities. A file that changes is read again.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None


class Listen(Section):
    """Where clients come in, what they may send and how slowly. Port 0 takes any free one.

    ``workers``: processes that share the port, each with its own loop and its own ``connections_max`` and
    ``buffered_bytes_max``: bytes of requests and replies that it holds in all. ``tls``: clients
    speak HTTPS, left out: HTTP.
    """

    host: Name = "127.0.0.1"
    port: Port = 8080
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    body_bytes_max: PositiveInt = 8 * 2**20  # a 1M-token prompt is about 4 MB of text
    head_bytes_max: PositiveInt = 64 * 2**10
    connections_max: PositiveInt = 20_000
    buffered_bytes_max: PositiveInt = 2**30
    keep_alive_s: PositiveFloat = 75.0
    request_s: PositiveFloat = 30.0  # from a request's first byte to its last
    drain_s: PositiveFloat = 30.0
    tls: ListenTls | None = None


class Upstream(Section):
    """How the gateway speaks to engines: time limits and the pool of idle connections of each."""

    connect_s: PositiveFloat = 2.0
    idle_s: PositiveFloat = 4.0  # vLLM closes idle connections after 5 s
    idle_max: Count = 256
    stall_s: PositiveFloat = 60.0  # silence inside a reply that means a frozen engine
    reader_s: PositiveFloat = 60.0  # how long a client may not read


class Backend(backend.Backend):
    """A backend with its address, as the gateway needs it.

    Name and ``url`` are enough: without ``models``, what the engine serves, its kind and its limits are read from it.

    ``adapter_load_ms`` is forecast for loading a LoRA adapter that no request ran for lately.

    ``chat_template`` and ``chat_opening`` make a prompt of chat messages for an engine that takes plain prompts
    (Triton): once a message with {role} and {content}, and at the end. ``health_url`` and ``metrics_url`` follow from
    the engine kind when left out; ``api_key`` is the bearer token of the engine. ``ca``: the authorities that may have
    signed its certificate, left out: those of this machine; ``client_cert`` and ``client_key`` (left out: in the same
    file) are what it is shown; ``tls_server_name``: the name in its certificate where that is not the url's host.
    """

    url: BaseUrl
    metrics_url: HttpUrl | None = None
    health_url: HttpUrl | None = None
    chat_template: str | None = None
    chat_opening: str | None = None
    adapter_load_ms: NonNegativeFloat = 200.0
    api_key: Name | None = None
    api_key_env: Name | None = None
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    tls_server_name: Name | None = None

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key and self.api_key_env:
            raise ValueError("give api_key or api_key_env, not both")
        return self

    @model_validator(mode="after")
    def _tls_over_https(self) -> Self:
        keys = [key for key in ("ca", "client_cert", "client_key", "tls_server_name") if getattr(self, key)]
        if keys and not self.url.startswith("https://"):
            raise ValueError(f"{keys[0]} has no use: the url is {self.url}, and TLS needs https://")
        if self.client_key and not self.client_cert:
            raise ValueError("client_key needs client_cert")
        return self


class BackendDefaults(Backend):
    """What each backend of a source is given where its labels do not give it: any key of a backend but its address."""

    name: Name = "found"
    url: BaseUrl = "https://found"

    @model_validator(mode="after")
    def _no_address(self) -> Self:
        given = self.model_fields_set & {"name", "url", "health_url", "metrics_url"}
        if given:
            raise ValueError(f"{min(given)} differs from backend to backend: the source gives it")
        return self


class Discover(discover.Origin):
    """A source of backends, and what it does not say of them."""

    defaults: BackendDefaults = default()


class SloRange(Section):
    """The least and the most milliseconds that a header may ask for, both allowed themselves."""

    min: PositiveFloat = SLO_MS_MIN
    max: PositiveFloat = SLO_MS_MAX

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {milliseconds(self.min)} exceeds max {milliseconds(self.max)}")
        return self


class _ByMetric(Section):
    """A section with a key for each metric that an SLO can bound: ``ttft_ms``, ``tpot_ms``, ..."""

    def by_metric(self) -> list[Any]:
        """The values, in the order of ``SLO_METRICS``."""
        return [getattr(self, metric.milliseconds) for metric in SLO_METRICS]


def _keyed(name: str, kind: Any, left_out: Callable[[], Any]) -> Any:
    """The base of a section whose keys are the metrics: one of this kind for each, before the section's own."""
    keys: dict[str, Any] = {metric.milliseconds: (kind, left_out()) for metric in SLO_METRICS}
    return create_model(name, __base__=_ByMetric, __module__=__name__, **keys)


if TYPE_CHECKING:
    _SloRanges = _ByMetric
    _SloBounds = _ByMetric
else:
    _SloRanges = _keyed("_SloRanges", SloRange, default)
    _SloBounds = _keyed("_SloBounds", PositiveFloat | None, lambda: None)


class SloLimits(_SloRanges):
    """What requests of a class may ask for by headers (``x-slo-ttft-ms``, ...), and what becomes of a bound that cannot
    be.

    ``outside``: a header outside its range is refused with 400, or taken as the nearest value inside it;
    ``infeasible``: a request with a bound that no backend could keep even when idle, whether it came by a header or
    from the class, is served as best effort, or refused at once with 429.
    """

    outside: Literal["refuse", "clamp"] = "refuse"
    infeasible: Literal["best_effort", "refuse"] = "best_effort"


class SloClass(_SloBounds):
    """The SLO of one class; a bound that is left out does not apply. ``priority``: smaller is more urgent."""

    quantile: Annotated[float, Field(ge=0.5, lt=1)] = 0.9
    priority: int = 0
    slo_limits: SloLimits = default()

    def slo(self) -> Slo:
        """As the core has it, in seconds."""
        bounds_s = [inf if ms is None else ms / 1e3 for ms in self.by_metric()]
        return slo_of(bounds_s, self.quantile, self.slo_limits.infeasible == "refuse")


class Key(Section):
    """A secret in one of three forms: itself, the name of an environment variable, or its SHA-256 in hex."""

    key: Annotated[str, Field(min_length=8)] | None = None
    key_env: Name | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if sum(form is not None for form in (self.key, self.key_env, self.sha256)) != 1:
            raise ValueError("give exactly one of key, key_env, sha256")
        return self


class ApiKey(Key):
    """A client's key: whose it is, which SLO class its requests have unless they say otherwise, and how much may be
    used with it alone, beside what its tenant may. ``fallback``: whether another model may serve its requests, where
    their header does not state it and ``models`` has such a model.
    """

    tenant: Name
    slo_class: Name | None = None
    quota: Quota | None = None
    fallback: Literal["allow", "deny"] | None = None


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#@]+", text):
        raise ValueError(f"expected an origin such as https://app.example, without a path, or *, not {text!r}")
    return text


def _field_name(text: str) -> str:
    if not re.fullmatch(r"[-A-Za-z0-9!#$%&'*+.^_`|~]+", text):
        raise ValueError(f"expected the name of a header, not {text!r}")
    return text


class Cors(Section):
    """Which pages of other origins may call this router from a browser (``*``: any), with which headers (left out:
    any), and for how long a browser may remember that.
    """

    origins: Annotated[tuple[Annotated[Name, AfterValidator(_origin)], ...], BeforeValidator(some)]
    headers: tuple[Annotated[Name, AfterValidator(_field_name)], ...] = ()
    max_age_s: Annotated[int, Field(ge=0, le=86_400)] = 600


class Named(Section):
    """A policy by name with its parameters; a bare name stands for its defaults."""

    name: Name
    parameters: dict[str, Any] = {}


PolicyName = Annotated[Named, named("name")]


class Own(Section):
    """A policy by name or by the path of a Python file (from the config's folder), with its parameters."""

    name: Name | None = None
    file: Path | None = None
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.name is None) == (self.file is None):
            raise ValueError("give exactly one of name, file")
        return self


OwnPolicy = Annotated[Own, named("name")]


class Shadow(Section):
    """A routing policy that decides for ``share`` of the decisions without effect."""

    routing: OwnPolicy
    share: Annotated[float, Field(gt=0, le=1)] = 0.1


class Canary(Section):
    """A routing policy on trial; ``Split`` and ``Trial`` in ``router.gateway.rollout.canary`` define each key."""

    routing: OwnPolicy
    share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    by: Literal["request", "session", "tenant"] = "request"
    tenants: frozenset[Name] = frozenset()
    attainment_drop_max: Annotated[float, Field(ge=0, lt=1)] = 0.01
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    sample_min: PositiveInt = 200
    sample_max: PositiveInt = 100_000


class Guard(Section):
    """When a live policy's decision counts as a fault, and after how many it is rolled back."""

    budget_ms: PositiveFloat = 5.0
    faults_max: PositiveInt = 3
    window_s: PositiveFloat = 60.0


class Limits(Section):
    """Bounds that hold for every policy; what each means is said at ``router.core.flight.DispatchLimits``.

    A key left out has the core's default; hedging is off unless ``hedge_slo_share`` is given.
    """

    attempts_max: PositiveInt | None = None
    first_byte_s_max: PositiveFloat | None = None
    whole_reply_s_max: PositiveFloat | None = None
    first_byte_slo_factor: PositiveFloat | None = None
    hedge_slo_share: PositiveFloat | None = None
    hedges_max_share: Annotated[float, Field(ge=0, le=1)] | None = None
    failures_max: PositiveInt | None = None
    eject_s: PositiveFloat | None = None
    eject_s_max: PositiveFloat | None = None
    refused_s: PositiveFloat | None = None


class Policy(Section):
    """Who decides: routing, admission, scaling, the limits around them, and who may come to decide.

    ``prefix_blocks_max``: how much of a prompt's beginning decisions look for in prefix caches, in blocks of 1024 bytes
    (0: nothing). A microsecond a request and a fifth of one a block.
    """

    prefix_blocks_max: Annotated[int, Field(ge=0, le=4096)] = 64
    routing: OwnPolicy = default(name="slo_headroom")
    admission: OwnPolicy = default(name="deadline")
    scaling: PolicyName = default(name="headroom")
    limits: Limits = default()
    guard: Guard = default()
    shadow: Shadow | None = None
    canary: Canary | None = None


class Redis(Section):
    """The servers of the shared state, by several addresses or with more than an address.

    ``urls``: of one server and its replicas, of nodes of one cluster, or, with ``service``, of sentinels that watch a
    primary by that name; any of them that answers is enough. ``username`` with ``password`` or ``password_env`` are of
    the servers of data; what an address has of both is of the server there. ``ca``: the authorities that may have
    signed the servers' certificates, left out: those of this machine; ``client_cert`` and ``client_key`` (left out: in
    the same file) are what they are shown; ``verify_hostname: false`` where a cluster names its nodes by addresses that
    their certificates do not.
    """

    urls: Annotated[list[RedisUrl], BeforeValidator(some)]
    service: Name | None = None
    username: Name | None = None
    password: Name | None = None
    password_env: Name | None = None
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    verify_hostname: bool = True

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.password and self.password_env:
            raise ValueError("give password or password_env, not both")
        if self.username and not (self.password or self.password_env):
            raise ValueError("username needs password or password_env")
        return self

    @model_validator(mode="after")
    def _alike(self) -> Self:
        schemes = {url.partition("://")[0] for url in self.urls}
        if len(schemes) > 1:
            raise ValueError(f"urls: expected one scheme for all, not {' and '.join(sorted(schemes))}")
        if "unix" in schemes and (len(self.urls) > 1 or self.service):
            raise ValueError("urls: a Unix socket is of one server; expected redis://host:port")
        databases = {redis_db(url) for url in self.urls}
        if len(databases) > 1:
            raise ValueError(f"urls: expected one database for all, not {' and '.join(map(str, sorted(databases)))}")
        return self

    @model_validator(mode="after")
    def _tls_over_rediss(self) -> Self:
        keys = [key for key in ("ca", "client_cert", "client_key") if getattr(self, key)]
        keys += [] if self.verify_hostname else ["verify_hostname"]
        if keys and not self.urls[0].startswith("rediss://"):
            raise ValueError(f"{keys[0]} has no use: TLS needs rediss://")
        if self.client_key and not self.client_cert:
            raise ValueError("client_key needs client_cert")
        return self


class Mesh(Section):
    """Where this router receives the changes of routers on other hosts, as they happen.

    ``host`` and ``port``: of its own socket (port 0: any free one); with several workers each takes the next port.
    ``advertise``: the host at which peers reach it, left out: the one it has on the way to the shared state. ``key``:
    the same for all routers of the pool; who does not have it is not listened to.
    """

    host: Name = "0.0.0.0"
    port: Port = 9003
    advertise: Name | None = None
    key: Annotated[str, Field(min_length=16, max_length=1000)]


class State(Section):
    """Where routers share what they know; without ``redis_url`` and ``redis``: one router alone, nothing to install.

    ``redis_url``: one server, or any node of a cluster; ``redis``: several addresses, sentinels, users, TLS.
    ``push_s``: for how long sends are gathered before peers get them; null: peers see a view every ``sync_s`` alone.
    ``mesh``: routers of other hosts get them as well; left out: only the other workers of this host do.
    """

    redis_url: RedisUrl | None = None
    redis: Redis | None = None
    pool: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "default"
    router_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    sync_s: PositiveFloat = 0.05
    push_s: PositiveFloat | None = 0.001
    mesh: Mesh | None = None
    lease_s: PositiveFloat = 1.0
    timeout_s: PositiveFloat = 0.25

    @property
    def servers(self) -> Redis | None:
        """The servers in whichever form they were given."""
        return Redis(urls=[self.redis_url]) if self.redis_url else self.redis

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.redis_url and self.redis:
            raise ValueError("give redis_url or redis, not both")
        return self

    @model_validator(mode="after")
    def _mesh_finds_peers(self) -> Self:
        if self.mesh and not self.servers:
            raise ValueError("mesh needs redis_url or redis: routers find each other there")
        if self.mesh and self.push_s is None:
            raise ValueError("mesh has no use: push_s is null")
        return self

    @model_validator(mode="after")
    def _lease_outlives_a_sync(self) -> Self:
        if self.lease_s < 3 * self.sync_s:
            raise ValueError(f"lease_s must be at least 3 x sync_s ({3 * self.sync_s:g}), or one late sync loses it")
        return self


class Scrape(Section):
    """How often the metrics and health of engines are read.

    ``source``: who reads the metrics. ``engines``: every router reads every engine; ``routers``: the routers of the
    pool divide the engines among them, and read the others' readings in the shared state; ``state``: sidecars do.

    ``models_s``: how often engines are read for adapters that were loaded or unloaded (``/v1/models``); null: never.
    """

    period_s: PositiveFloat = 1.0
    models_s: PositiveFloat | None = 5.0
    timeout_s: PositiveFloat = 2.0
    source: Literal["engines", "routers", "state"] = "engines"
    down_after: PositiveInt = 2


class Record(Section):
    """A file of core events that can be replayed; the oldest part goes when it is full."""

    file: Path
    bytes_max: Annotated[int, Field(ge=4096)] = 256 * 2**20


class PolicyValidation(Section):
    """What changed decisions must show before they serve: by replay, no attainment lost beyond the bound.

    ``trace``: a file of requests to replay instead of the gateway's own record; with neither, or fewer than
    ``requests_min`` requests in the last ``last_s``, a workload is made for the pool.
    """

    enabled: bool = True
    trace: Path | None = None
    attainment_drop_max: Annotated[float, Field(ge=0, le=1)] = 0.02
    last_s: PositiveFloat = 600.0
    requests_min: Count = 100
    requests_max: PositiveInt = 3_000
    seconds_max: PositiveFloat = 60.0


class Reload(Section):
    """How a config comes to serve, and how many earlier versions are stored."""

    validation: PolicyValidation = default()
    history_max: Annotated[int, Field(ge=2, le=1000)] = 20
    history_dir: Path | None = None
    audit_file: Path | None = None


class Variant(Section):
    """One kind of replica the autoscaler may ask for; its backends are those that name it.

    ``replica``: the facts of one, where no backend that the config lists is of this variant; ``start_s``: from
    the order of one to its first token; ``start_usd``: what an order costs once; ``loss_per_hour``: how often the
    provider takes one away (spot).
    """

    min_replicas: Count = 1
    max_replicas: PositiveInt = 8
    start_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    start_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    loss_per_hour: Annotated[float, Field(ge=0, le=60)] = 0.0
    replica: BackendDefaults | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self


class Target(Section):
    """Where advice goes: a scaling target by name (``router.targets``) and its options, which ``plan.py`` checks."""

    model_config = ConfigDict(extra="allow")

    name: Name

    @property
    def options(self) -> dict[str, Any]:
        """The keys beside the name."""
        return dict(self.model_extra or {})


class Election(Section):
    """Which of several autoscalers applies advice: the one with the lease in the shared state (``state``) or in a Lease
    object of Kubernetes, called ``name`` there. ``auto``: by the state where it is in Redis, else there is only one.
    """

    by: Literal["auto", "none", "state", "kubernetes"] = "auto"
    lease_s: Annotated[float, Field(ge=0.5, le=600, allow_inf_nan=False)] = 15.0
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")] = "headroom-autoscaler"


class Autoscale(Section):
    """The scaling loop: how often it looks, within which bounds its advice stays, where the advice goes, and which of
    several autoscalers applies it. ``inside``: in every router, in place of a process of its own on ``port``;
    ``memory_file``: where it keeps what it has learnt, which without Redis ends with the process else.
    """

    inside: bool = False

    period_s: PositiveFloat = 5.0
    port: Port = 8081
    variants: dict[Name, Variant] = {}
    target: Annotated[Target, named("name")] = default(name="advise")
    election: Election = default()
    memory_file: Path | None = None


class Epp(Section):
    """Where proxies such as Envoy call this router as an endpoint picker (``headroom epp``). Port 0 takes any free one.

    ``secure``: over TLS; ``tls``: with this certificate, left out: with one signed by itself, made at each start, which
    is what gateways expect of an endpoint picker and do not check. ``fallbacks``: further endpoints that a proxy is
    given, for one that retries: it tries them in order. A proxy that takes one endpoint alone, such as Envoy's cluster
    of type ORIGINAL_DST, needs 0.
    """

    host: Name = "127.0.0.1"
    port: Port = 9002
    fallbacks: Annotated[int, Field(ge=0, le=16)] = 0
    secure: bool = True
    tls: ListenTls | None = None

    @model_validator(mode="after")
    def _tls_when_secure(self) -> Self:
        if self.tls is not None and not self.secure:
            raise ValueError("tls has no use with secure: false")
        return self


class Settings(Section):
    """The whole file.

    ``profile``: corrections of predicted step times, as ``headroom-simulator calibrate --profile`` writes them.
    ``quotas``: by tenant, ``*``: each tenant without one of its own; ``prices``: by model, ``*``: each one without;
    ``models``: by the name that clients use, which models serve it; ``key_file``: a file with further ``api_keys``,
    under ``keys``, which is read again when it changes.
    """

    profile: Path | None = None
    listen: Listen = default()
    upstream: Upstream = default()
    discover: tuple[Discover, ...] = ()
    backends: Annotated[tuple[Backend, ...], Field(validate_default=True)] = ()  # after discover: it is checked with it
    slo_classes: dict[Name, SloClass] = default(default={})
    default_slo_class: Name = "default"
    api_keys: tuple[ApiKey, ...] = ()
    key_file: Path | None = None
    quotas: dict[Name, Quota] = {}
    prices: dict[Name, Price] = {}
    models: dict[Name, ModelRule] = {}
    admin_key: Key | None = None
    cors: Cors | None = None
    policy: Policy = default()
    state: State = default()
    scrape: Scrape = default()
    record: Record | None = None
    log: Log = default()
    tracing: Tracing | None = None
    reload: Reload = default()
    autoscale: Autoscale = default()
    epp: Epp = default()

    @field_validator("backends", mode="after")
    @classmethod
    def _some_backends(cls, given: tuple[Backend, ...], others: ValidationInfo) -> tuple[Backend, ...]:
        if not (given or others.data.get("discover", True)):  # absent: it has faults of its own
            raise ValueError("needs at least one entry, where discover has none")
        return given


def load(path: Path) -> tuple[Settings, Document]:
    """The settings in the file, and its text for placing later faults. Raises ConfigError naming every fault."""
    text = read(path)
    return text.parse(Settings), text
