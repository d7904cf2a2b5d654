"""Reading Prometheus text: the few samples wanted of a page that may hold 90 KB of histograms, and what they amount to.

Must not depend on who fetched the page or on any particular engine. With data parallelism an engine shows one sample a
rank: counts are summed over them, shares averaged.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import isnan, nan
from typing import Final

from router.core.signals import Value, value_since
from router.core.types import EngineReport

Labels = Mapping[str, str]
Samples = list[tuple[Labels, float]]

_SAMPLES_MAX: Final = (
    4096  # of one name that are read: no engine has as many, and a broken page must not block the loop
)

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
    """What one page says. ``signals``: by name, what the page gives for each."""

    engine: str
    running: float = nan
    waiting: float = nan
    kv_tokens_max: float = nan
    signals: Mapping[str, Value] = field(default_factory=dict)

    def report(self, asked_s: float, before: "Snapshot | None") -> EngineReport:
        """The report for the core; ``before``: the page read before this one, for rates."""
        last: Mapping[str, Value] = before.signals if before is not None else {}
        found = {name: value_since(value, last.get(name)) for name, value in self.signals.items()}
        reported = {name: value for name, value in found.items() if not isnan(value)}
        return EngineReport.by_name(asked_s, self.running, self.waiting, self.kv_tokens_max, **reported)


class SignalPage:
    """A page as the readings of signals see it; see ``router.core.signals.Page``."""

    def __init__(self, page: bytes, models: Collection[str]) -> None:
        """*page*: with a line feed before it; *models*: those whose samples count, where samples have a model."""
        self._page, self._models = page, models

    def total(self, *names: str, **labels: str) -> float:
        """Sum over the samples with these labels; nan when there is none."""
        return total(self._samples(names), **labels)

    def mean(self, *names: str, **labels: str) -> float:
        """Mean over the samples with these labels; nan when there is none."""
        return mean(self._samples(names), **labels)

    def labels(self, *names: str) -> list[Labels]:
        """The labels of each sample."""
        return [labels for labels, _ in self._samples(names)]

    def _samples(self, names: tuple[str, ...]) -> Samples:
        return of_models(samples_of_first(self._page, *(name.encode() for name in names)), self._models)


def samples_of_first(page: bytes, *names: bytes) -> Samples:
    """The samples of the first of these names that the page has; give the newest name first."""
    for name in names:
        found = list(islice(samples(page, name), _SAMPLES_MAX))
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
