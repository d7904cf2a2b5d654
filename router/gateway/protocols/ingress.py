"""Who asks, and what they were promised: API keys and SLO headers.

Believes: header values as bytes, names in lower case. Must not know the config file or any socket.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import isfinite
from typing import Final

from router.core.types import NO_SLO, Slo
from router.gateway.answers import rejected

Headers = Mapping[bytes, bytes]

# header -> field of Slo; where both of a pair are sent, the shorter name wins
_SLO_HEADERS: Final = (
    (b"x-llm-d-slo-ttft-ms", "ttft_s"),
    (b"x-llm-d-slo-tpot-ms", "tpot_s"),
    (b"x-slo-ttft-ms", "ttft_s"),
    (b"x-slo-tpot-ms", "tpot_s"),
    (b"x-slo-e2e-ms", "e2e_s"),
)
_NAMES: Final = frozenset(name for name, _ in _SLO_HEADERS) | {b"x-slo-class"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is; ``slo_class`` empty: the default one."""

    tenant: str = ""
    slo_class: str = ""


ANYONE: Final = Caller()


@dataclass(frozen=True, slots=True)
class SloClass:
    """What requests of a class are promised, and how urgent they are (smaller is more)."""

    slo: Slo = NO_SLO
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Ingress:
    """The door. ``keys``: caller by SHA-256 digest (hex) of the key, empty: anyone may come in.

    ``prefix_blocks_max``: blocks of a prompt, from its beginning, that are looked for in prefix caches (0: none).
    """

    classes: Mapping[str, SloClass] = field(default_factory=lambda: {"default": SloClass()})
    default_class: str = "default"
    keys: Mapping[str, Caller] = field(default_factory=dict)
    prefix_blocks_max: int = 0

    def caller(self, headers: Headers) -> Caller:
        """Whose key it is (``Authorization: Bearer`` or Anthropic's ``x-api-key``). Raises Rejected with 401."""
        if not self.keys:
            return ANYONE
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        key = given.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        if not key:
            raise rejected(401, "no API key: send Authorization: Bearer KEY", code="invalid_api_key")
        caller = self.keys.get(hashlib.sha256(key).hexdigest())
        if caller is None:
            raise rejected(401, "this API key is not known here", code="invalid_api_key")
        return caller

    def promised(self, headers: Headers, caller: Caller) -> tuple[str, Slo, int]:
        """SLO class, SLO and priority of a request. Raises Rejected with 400 naming the header that is wrong."""
        name = caller.slo_class or self.default_class
        if _NAMES.isdisjoint(headers):
            given = self.classes[name]
            return name, given.slo, given.priority
        if b"x-slo-class" in headers:
            name = self._class_named(headers[b"x-slo-class"])
        given = self.classes[name]
        bounds = {to: _seconds(header, headers[header]) for header, to in _SLO_HEADERS if header in headers}
        return name, replace(given.slo, **bounds), given.priority

    def _class_named(self, value: bytes) -> str:
        name = value.decode("latin-1").strip()
        if name not in self.classes:
            near = get_close_matches(name, self.classes, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise rejected(
                400, f"x-slo-class: no class {name!r}; classes: {', '.join(self.classes)}{hint}", "x-slo-class"
            )
        return name


def _seconds(header: bytes, value: bytes) -> float:
    try:
        ms = float(value)
    except ValueError:
        ms = -1.0
    if not (isfinite(ms) and ms > 0.0):
        name = header.decode()
        raise rejected(400, f"{name}: expected milliseconds above 0, not {value.decode('latin-1')!r}", name)
    return ms / 1e3
