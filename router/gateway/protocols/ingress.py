"""Authentication and SLO of a request: API keys, SLO classes and SLO headers within the limits of the class.

Header values are bytes, names in lower case. Must not depend on the config file or sockets.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Final

from router.config.slo_bounds import SLO_MS_MAX, SLO_MS_MIN, milliseconds
from router.core.errors import Rejected
from router.core.model_rules import ALLOW, DENY, NO_RULES, ModelRules
from router.core.slo_metrics import SLO_METRICS
from router.core.types import NO_SLO, Slo, slo_of
from router.gateway.protocols.cors import Cors
from router.spelling import suggestion

Headers = dict[bytes, bytes]

# header -> index in SLO_METRICS; where an alias and our own name are sent, our own wins, which comes later
_SLO_HEADERS: Final = (
    *((alias.encode(), index) for index, metric in enumerate(SLO_METRICS) for alias in metric.aliases),
    *((metric.header.encode(), index) for index, metric in enumerate(SLO_METRICS)),
)
_NAMES: Final = frozenset(name for name, _ in _SLO_HEADERS) | {b"x-slo-class"}
_ECHO_MAX: Final = 40  # characters of a wrong value that the answer repeats


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant of a request and its SLO class; ``slo_class`` empty: the default one; ``key``: the name of its key
    among those with a quota, empty: it is none of them; ``fallback``: ``allow`` or ``deny``, whether its requests may
    be served by another model than their own, empty: as the rules of models have it.
    """

    tenant: str = ""
    slo_class: str = ""
    key: str = ""
    fallback: str = ""


ANONYMOUS: Final = Caller()


@dataclass(frozen=True, slots=True)
class SloRange:
    """The smallest and the largest value of a header, in milliseconds, both allowed."""

    min_ms: float = SLO_MS_MIN
    max_ms: float = SLO_MS_MAX


SANE_RANGE: Final = SloRange()


@dataclass(frozen=True, slots=True)
class SloLimits:
    """The range of each bound that a header may set, in the order of ``SLO_METRICS``; ``clamp``: a value outside is
    taken as the nearest inside, else the request is refused with 400.
    """

    ranges: tuple[SloRange, ...] = (SANE_RANGE,) * len(SLO_METRICS)
    clamp: bool = False


SANE_LIMITS: Final = SloLimits()


@dataclass(frozen=True, slots=True)
class SloClass:
    """The SLO of a class, its priority (smaller is more urgent), and the limits of what headers may set."""

    slo: Slo = NO_SLO
    priority: int = 0
    limits: SloLimits = SANE_LIMITS


class AppliedSlo:
    """The SLO of one request, and its class; ``clamped``: the headers whose values were moved to the nearest one
    allowed, each with that value (``x-slo-tpot-ms=15``).
    No dataclass: one is made for every request, and a dataclass's own constructor is never compiled.
    """

    __slots__ = ("clamped", "given", "slo", "slo_class")

    def __init__(self, slo_class: str, given: SloClass, slo: Slo, clamped: tuple[str, ...] = ()) -> None:
        self.slo_class = slo_class
        self.given = given
        self.slo = slo
        self.clamped = clamped


@dataclass(frozen=True, slots=True)
class Ingress:
    """Keys and SLO classes. ``keys``: caller by SHA-256 digest (hex) of the key; where it is empty none is needed, or,
    if ``keyed``, no client is let in.

    ``prefix_blocks_max``: blocks of a prompt, from its beginning, that are matched with prefix caches (0: none).
    ``cors``: which other origins may call, None: none; ``models``: which models serve others' requests.
    """

    classes: Mapping[str, SloClass] = field(default_factory=lambda: {"default": SloClass()})
    default_class: str = "default"
    keys: Mapping[str, Caller] = field(default_factory=dict)
    prefix_blocks_max: int = 0
    cors: Cors | None = None
    models: ModelRules = NO_RULES
    keyed: bool = False

    def caller(self, headers: Headers) -> Caller:
        """The caller with this key (``Authorization: Bearer`` or ``x-api-key``). Raises Rejected with 401."""
        if not self.keys and not self.keyed:
            return ANONYMOUS
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        key = given.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        if not key:
            raise Rejected(401, "no API key: send Authorization: Bearer KEY", code="invalid_api_key")
        caller = self.keys.get(hashlib.sha256(key).hexdigest())
        if caller is None:
            raise Rejected(401, "invalid API key", code="invalid_api_key")
        return caller

    def apply_slo(self, headers: Headers, caller: Caller) -> AppliedSlo:
        """The SLO of a request. Raises Rejected with 400 naming the header that is wrong or outside the limits."""
        name = caller.slo_class or self.default_class
        if _NAMES.isdisjoint(headers):
            given = self.classes[name]
            return AppliedSlo(name, given, given.slo)
        if b"x-slo-class" in headers:
            name = self._class_named(headers[b"x-slo-class"])
        given = self.classes[name]
        requested = {
            index: (header, _read_ms(header, headers[header])) for header, index in _SLO_HEADERS if header in headers
        }
        own = given.slo
        bounds_s = list(own.bounds_s())
        clamped: list[str] = []
        for index, (header, ms) in requested.items():
            applied_ms = _within(given.limits, index, name, header, ms)
            bounds_s[index] = applied_ms / 1e3
            if applied_ms != ms:
                clamped.append(f"{header.decode()}={milliseconds(applied_ms)}")
        return AppliedSlo(name, given, slo_of(bounds_s, own.quantile, own.refuse_infeasible), tuple(clamped))

    def fallback(self, headers: Headers, caller: Caller) -> str:
        """Whether another model may serve a request (see ``Caller``): its header counts before its key. Raises Rejected
        with 400.
        """
        given = headers.get(b"x-headroom-fallback")
        if given is None:
            return caller.fallback
        word = given.decode("latin-1").strip().lower()
        if word not in (ALLOW, DENY):
            raise Rejected(
                400, f"x-headroom-fallback: expected allow or deny, not {word[:_ECHO_MAX]!r}", "x-headroom-fallback"
            )
        return word

    def _class_named(self, value: bytes) -> str:
        name = value.decode("latin-1").strip()
        if name not in self.classes:
            raise Rejected(
                400, f"x-slo-class: no class {name[:_ECHO_MAX]!r}; {suggestion(name, self.classes)}", "x-slo-class"
            )
        return name


def _within(limits: SloLimits, index: int, slo_class: str, header: bytes, ms: float) -> float:
    """The value that applies: the requested one, or the nearest allowed. Raises Rejected where the class refuses it."""
    allowed = limits.ranges[index]
    if allowed.min_ms <= ms <= allowed.max_ms:
        return ms
    if limits.clamp:
        return min(max(ms, allowed.min_ms), allowed.max_ms)
    name = header.decode()
    between = f"{milliseconds(allowed.min_ms)} to {milliseconds(allowed.max_ms)} ms"
    raise Rejected(400, f"{name}: {milliseconds(ms)} is outside {between}, the limits of class {slo_class!r}", name)


def _read_ms(header: bytes, value: bytes) -> float:
    try:
        ms = float(value)
    except ValueError:
        ms = -1.0
    if not (isfinite(ms) and ms > 0.0):
        name = header.decode()
        text = value.decode("latin-1")[:_ECHO_MAX]
        raise Rejected(400, f"{name}: expected milliseconds above 0, not {text!r}", name)
    return ms
