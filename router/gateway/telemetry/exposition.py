"""The metrics page as text, written in parts: of a thousand backends it has some hundred thousand lines.

The text is that of Prometheus's own client, which would take seconds of the event loop in one piece. Families are made
one by one as the registry gives them; histograms, which most lines are of, are written from their counts without an
object for each line. Must not depend on what is counted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import generate_latest
from prometheus_client.core import Exemplar, Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

PART_LINES: Final = 2_000  # between two turns of the event loop: some milliseconds
_PLAIN_MOST: Final = 1_000_000  # from there on numbers have an exponent
_go: Final[Callable[[float], str]] = floatToGoString  # as Prometheus's own client writes numbers
_NO_EXEMPLARS: Final[Mapping[int, Exemplar]] = {}


class _Row(NamedTuple):
    """One histogram: its label values, the upper edges, the counts up to each and beyond the last, the sum."""

    labels: tuple[str, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    exemplars: Mapping[int, Exemplar]


class HistogramFamily(Metric):
    """A family of histograms as their counts; ``samples``, a line each, are made only for those who read them."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self.name, self.documentation, self.type, self.unit = name, documentation, "histogram", ""
        self._names = tuple(labels)
        self._rows: list[_Row] = []

    def add(
        self,
        labels: Sequence[str],
        edges: Sequence[float],
        counts: Sequence[int],
        total: float,
        exemplars: Mapping[int, Exemplar] = _NO_EXEMPLARS,
    ) -> None:
        """One histogram as it is now; ``exemplars`` by place in *counts*."""
        self._rows.append(_Row(tuple(labels), tuple(edges), tuple(counts), total, exemplars))

    @property
    def samples(self) -> list[Sample]:  # type: ignore[override]
        """As the client has them."""
        return [sample for row in self._rows for sample in self._samples(row)]

    def _samples(self, row: _Row) -> Iterator[Sample]:
        labels, count = dict(zip(self._names, row.labels, strict=True)), 0.0
        for at, (edge, below) in enumerate(zip(_edges(row.edges), accumulate(row.counts), strict=True)):
            count = float(below)
            yield Sample(f"{self.name}_bucket", labels | {"le": edge}, count, None, row.exemplars.get(at))
        yield Sample(f"{self.name}_count", labels, count)
        yield Sample(f"{self.name}_sum", labels, row.total)

    def texts(self) -> Iterator[tuple[int, str]]:
        """The lines of each histogram with their number; no exemplars."""
        names = sorted((*self._names, "le"))
        at = names.index("le")
        order = [self._names.index(name) for name in names if name != "le"]
        named = [(name, number) for name, number in zip((n for n in names if n != "le"), order, strict=True)]
        for row in self._rows:
            pairs = [f'{name}="{_escaped(row.labels[number])}"' for name, number in named]
            before, after = (",".join(part) for part in (pairs[:at], pairs[at:]))
            opening = f'{self.name}_bucket{{{before}{"," if before else ""}le="'
            closing = f'"{"," if after else ""}{after}}} '
            sums = list(accumulate(row.counts))
            lines = [
                f"{opening}{edge}{closing}{_number(below)}\n"
                for edge, below in zip(_edges(row.edges), sums, strict=True)
            ]
            whole = f"{{{','.join(pairs)}}}" if pairs else ""
            lines.append(f"{self.name}_count{whole} {_number(sums[-1])}\n")
            lines.append(f"{self.name}_sum{whole} {_go(row.total)}\n")
            yield len(lines), "".join(lines)


def parts(families: Iterable[Metric]) -> Iterator[bytes]:
    """The page of these families in parts of about ``PART_LINES`` lines."""
    texts: list[str] = []
    lines = 0
    for family in families:
        for number, text in _texts(family):
            texts.append(text)
            lines += number
            if lines >= PART_LINES:
                yield "".join(texts).encode()
                texts, lines = [], 0
    yield "".join(texts).encode()


def _texts(family: Metric) -> Iterator[tuple[int, str]]:
    if isinstance(family, HistogramFamily):
        yield 2, _head(family.name, family)
        yield from family.texts()
        return
    name = f"{family.name}_total" if family.type == "counter" else family.name
    if family.type not in {"counter", "gauge"} or any(sample.name != name for sample in family.samples):
        text = generate_latest(_One(family)).decode()
        yield text.count("\n"), text
        return
    yield 2, _head(name, family)
    for sample in family.samples:
        pairs = ",".join([f'{key}="{_escaped(value)}"' for key, value in sorted(sample.labels.items())])
        labels = f"{{{pairs}}}" if pairs else ""
        yield 1, f"{name}{labels} {_go(sample.value)}\n"


def _head(name: str, family: Metric) -> str:
    documentation = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {documentation}\n# TYPE {name} {family.type}\n"


class _One:
    """A registry of one family."""

    def __init__(self, family: Metric) -> None:
        self.collect: Callable[[], Iterable[Metric]] = lambda: (family,)


@lru_cache(maxsize=64)
def _edges(edges: tuple[float, ...]) -> tuple[str, ...]:
    """As labels."""
    return *map(str, map(float, edges)), "+Inf"


def _escaped(value: str) -> str:
    if "\\" in value or "\n" in value or '"' in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


def _number(count: int) -> str:
    return f"{count}.0" if count < _PLAIN_MOST else _go(count)
