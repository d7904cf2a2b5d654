"""Several workers' metrics pages as one: counters and histograms summed, each gauge as its meaning asks.

The text format is that of ``metrics.py``: no timestamps, no exemplars. Must not depend on what is counted, beyond which
gauges add up.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

_Fold = Callable[[Sequence[float]], float]
_GAUGES: Final[Mapping[bytes, _Fold]] = {
    b"headroom_requests_in_flight": sum,
    b"headroom_requests_held": sum,
    b"headroom_backend_requests": sum,
    b"headroom_policy_canary_requests": sum,
    b"headroom_state_up": min,
    b"headroom_discovery_up": min,
    b"headroom_peers_pushing": min,
    b"headroom_forecast_error_ratio": fmean,
    b"headroom_forecast_coverage_ratio": fmean,
    b"headroom_policy_shadow_gain_seconds": fmean,
    b"headroom_engine_report_age_seconds": min,
    b"process_resident_memory_bytes": sum,
    b"process_virtual_memory_bytes": sum,
    b"process_open_fds": sum,
    b"process_start_time_seconds": min,
}
_ADDITIVE: Final = frozenset({b"counter", b"histogram"})


@dataclass(slots=True)
class _Family:
    kind: bytes
    head: list[bytes]
    samples: dict[bytes, list[float]] = field(default_factory=dict)

    def text(self, name: bytes) -> Iterator[bytes]:
        """Its lines. A gauge that is not listed is the same for all workers, or its largest value is shown."""
        fold: _Fold = sum if self.kind in _ADDITIVE else _GAUGES.get(name, max)
        yield from self.head
        for key, values in self.samples.items():
            yield b"%b %b" % (key, _number(fold(values)))


def summed(pages: Iterable[bytes]) -> bytes:
    """One page of all."""
    families: dict[bytes, _Family] = {}
    for page in pages:
        _read(page, families)
    return _page(families)


def counters(page: bytes) -> bytes:
    """The part of a page that outlives its worker: counters and histograms, no gauges."""
    families: dict[bytes, _Family] = {}
    _read(page, families)
    return _page({name: family for name, family in families.items() if family.kind in _ADDITIVE})


def _page(families: Mapping[bytes, _Family]) -> bytes:
    return b"".join(line + b"\n" for name, family in families.items() for line in family.text(name))


def _read(page: bytes, families: dict[bytes, _Family]) -> None:
    now = _Family(b"untyped", [])
    heads: list[bytes] = []
    for line in page.split(b"\n"):
        if line.startswith(b"# TYPE "):
            _, _, name, kind = line.split(b" ")
            now = families.setdefault(name, _Family(kind, [*heads, line]))
        elif line.startswith(b"# HELP "):
            heads = [line]
        elif line:
            key, _, value = line.rpartition(b" ")
            now.samples.setdefault(key, []).append(float(value))


def _number(value: float) -> bytes:
    return repr(float(value)).encode()
