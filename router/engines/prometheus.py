"""Reading Prometheus text: the few samples wanted of a page that may hold 90 KB of histograms, and what they amount to.

Must not depend on who fetched the page or on any particular engine. With data parallelism an engine shows one sample a
rank: counts are summed over them, shares averaged. A sample that breaks another one down (by priority, say, beside the
total) counts nowhere: what it shows is in the other already.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import isnan, nan
from typing import Final

from router.core.signals import Value, value_since
from router.core.types import EngineReport

Labels = Mapping[str, str]
Sample = tuple[Labels, float]

_SAMPLES_MAX: Final = 4096  # of one name: no engine has as many, and a broken page must not block the loop
_SHAPES_MAX: Final = 16  # sets of label names of one metric: an engine has one or two, and each is compared with each

_LABEL: Final = re.compile(rb'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
_LABELS: Final = re.compile(rb'\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\}')


def samples(page: bytes, name: bytes) -> Iterator[Sample]:
    """The samples of exactly this name, labels with values; a line that cannot be read is passed over."""
    at = page.find(b"\n" + name)
    while at >= 0:
        start = at + 1 + len(name)
        end = page.find(b"\n", start)
        found = _sample(page[start : end if end >= 0 else len(page)])
        if found is not None:
            yield found
        at = page.find(b"\n" + name, start)


def _sample(rest: bytes) -> Sample | None:
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


def undivided(found: Sequence[Sample]) -> list[Sample]:
    """The samples without those that break another one down: it has all of the labels of the other, and more.

    An empty label is none, as in Prometheus. SGLang with priority scheduling shows a total under ``priority=""`` and
    the same requests again under ``priority="1"``.
    """
    labelled = [{name: text for name, text in labels.items() if text} for labels, _ in found]
    shapes = sorted({frozenset(labels) for labels in labelled}, key=len)[:_SHAPES_MAX]
    if len(shapes) <= 1:
        return list(found)
    totals = {shape: {_of(labels, shape) for labels in labelled if labels.keys() == shape} for shape in shapes}

    def is_part(labels: dict[str, str]) -> bool:
        return any(shape < frozenset(labels) and _of(labels, shape) in totals[shape] for shape in shapes)

    return [sample for sample, labels in zip(found, labelled, strict=True) if not is_part(labels)]


def _of(labels: Labels, names: frozenset[str]) -> frozenset[tuple[str, str]]:
    """What the labels of these names say."""
    return frozenset((name, labels[name]) for name in names)


@dataclass(frozen=True, slots=True)
class RunningAdapters:
    """The adapters that requests run for, by the engine's names, and how many it has places for at once."""

    names: tuple[str, ...]
    places: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one page says. ``signals``: by name, what the page gives for each; ``asleep``: see ``EngineReport``;
    ``adapters``: None where it has nothing of them.
    """

    engine: str
    running: float = nan
    waiting: float = nan
    kv_tokens_max: float = nan
    signals: Mapping[str, Value] = field(default_factory=dict)
    adapters: "RunningAdapters | None" = None
    asleep: bool = False

    def report(self, asked_s: float, before: "Snapshot | None") -> EngineReport:
        """The report for the core; ``before``: the page read before this one, for rates."""
        last: Mapping[str, Value] = before.signals if before is not None else {}
        found = {name: value_since(value, last.get(name)) for name, value in self.signals.items()}
        reported = {name: value for name, value in found.items() if not isnan(value)}
        return EngineReport.by_name(
            asked_s, self.running, self.waiting, self.kv_tokens_max, int(self.asleep), **reported
        )


class ScrapedPage:
    """A page as engine kinds and the readings of signals see it; see ``router.core.signals.Page``."""

    def __init__(self, page: bytes, models: Collection[str] = ()) -> None:
        """*models*: those whose samples count, where samples have a model and one of them is theirs."""
        self._page, self._models = b"\n" + page, models
        self._found: dict[tuple[str, ...], list[Sample]] = {}  # a signal often reads what others do

    def begins_a_line(self, *words: bytes) -> bool:
        """Whether a line of the page begins with one of these."""
        return any(b"\n" + word in self._page for word in words)

    def total(self, *names: str, **labels: str) -> float:
        """Sum over the samples with these labels; nan when there is none."""
        values = self._values(names, labels)
        return sum(values) if values else nan

    def mean(self, *names: str, **labels: str) -> float:
        """Mean over the samples with these labels; nan when there is none."""
        values = self._values(names, labels)
        return sum(values) / len(values) if values else nan

    def total_of_ranks(self, rank: str, *names: str) -> float:
        """Sum over the values of the label *rank*, of each the largest sample: ranks that work on the same requests
        report them each. nan when there is none.
        """
        largest: dict[str, float] = {}
        for labels, value in undivided(self._samples(names)):
            of = labels.get(rank, "")
            largest[of] = max(value, largest.get(of, value))
        return sum(largest.values()) if largest else nan

    def labels(self, *names: str) -> list[Labels]:
        """The labels of each sample."""
        return [labels for labels, _ in undivided(self._samples(names))]

    def newest_labels(self, name: str) -> Labels | None:
        """The labels of the sample with the largest value, which is a time; None when there is none."""
        found = self._samples((name,))
        return max(found, key=lambda sample: sample[1])[0] if found else None

    def _values(self, names: tuple[str, ...], labels: Labels) -> list[float]:
        found = self._samples(names)
        chosen = [sample for sample in found if labels.items() <= sample[0].items()] if labels else found
        return [value for _, value in undivided(chosen)]

    def _samples(self, names: tuple[str, ...]) -> list[Sample]:
        if names not in self._found:
            self._found[names] = self._first_of(names)
        return self._found[names]

    def _first_of(self, names: tuple[str, ...]) -> list[Sample]:
        for name in names:
            found = list(islice(samples(self._page, name.encode()), _SAMPLES_MAX))
            if found:  # an ensemble's numbers stand under its inner model, so all count where none is of theirs
                return [(labels, value) for labels, value in found if labels.get("model") in self._models] or found
        return []
