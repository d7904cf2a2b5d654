"""Reading Prometheus text: the few samples wanted of a page that may hold 90 KB of histograms, and what they amount to.

Must not depend on who fetched the page or on any particular engine. With data parallelism an engine shows one sample a
rank: counts are summed over them, shares averaged.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import nan
from typing import Final

from router.core.types import EngineReport

Labels = Mapping[str, str]
Samples = list[tuple[Labels, float]]

_LABEL: Final = re.compile(rb'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
_LABELS: Final = re.compile(rb'\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\}')


def samples(page: bytes, name: bytes) -> Iterator[tuple[Labels, float]]:
    """The samples of exactly this name, labels with values; a line that cannot be read is passed over."""
    at = page.find(b"\n" + name)
    while at >= 0:
        start = at + 1 + len(name)
        end = page.find(b"\n", start)
        found = _sample(page[start : end if end >= 0 else len(page)])
        if found is not None:
            yield found
        at = page.find(b"\n" + name, start)


def _sample(rest: bytes) -> tuple[Labels, float] | None:
    """What follows a name on its line: nothing for a longer name or what is no number."""
    if rest[:1] not in {b"{", b" "}:
        return None
    labels = _LABELS.match(rest)
    words = rest[labels.end() if labels else 0 :].split()
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    pairs = _LABEL.findall(labels.group(1)) if labels else ()
    return {key.decode(): text.decode(errors="replace") for key, text in pairs}, value


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one page says. ``hits`` and ``queries`` count prompt tokens since the engine began (nan: not reported);
    ``hit_rate`` is for engines that report only the share.
    """

    engine: str
    running: float = nan
    waiting: float = nan
    kv_usage: float = nan
    kv_tokens_max: float = nan
    hits: float = nan
    queries: float = nan
    hit_rate: float = nan

    def report(self, asked_s: float, before: "Snapshot | None") -> EngineReport:
        """As the core wants it; ``before`` is the page read last, for what happened since."""
        rate = self.hit_rate if before is None else self._rate_since(before)
        return EngineReport(asked_s, self.running, self.waiting, self.kv_usage, rate, self.kv_tokens_max)

    def _rate_since(self, before: "Snapshot") -> float:
        """Share of the prompt tokens since then found in the cache; nan with no prompt, or after a restart."""
        asked, hit = self.queries - before.queries, self.hits - before.hits
        return hit / asked if asked > 0 and 0 <= hit <= asked else self.hit_rate


def samples_of_first(page: bytes, *names: bytes) -> Samples:
    """The samples of the first of these names that the page has; give the newest name first."""
    for name in names:
        found = list(samples(page, name))
        if found:
            return found
    return []


def of_models(found: Samples, models: Collection[str]) -> Samples:
    """The samples of these models; all when none is theirs (an ensemble's numbers stand under its inner model)."""
    return [(labels, value) for labels, value in found if labels.get("model") in models] or found


def total(found: Samples, **labels: str) -> float:
    """Sum over the samples with these labels; nan when there is none."""
    values = [value for has, value in found if labels.items() <= has.items()]
    return sum(values) if values else nan


def mean(found: Samples, **labels: str) -> float:
    """Mean over the samples with these labels; nan when there is none."""
    values = [value for has, value in found if labels.items() <= has.items()]
    return sum(values) / len(values) if values else nan
