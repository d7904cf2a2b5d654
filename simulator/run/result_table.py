"""The results of a run, in columns: one row a request, numbers only, so that a million requests need little memory.

Must not depend on how a result came about.
"""

from array import array
from collections import Counter
from math import nan
from struct import Struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.core.decisions import EndState, RequestRecord
from router.core.slo_metrics import BASE, DERIVED, SLO_METRICS

Floats = NDArray[np.float64]

COLUMNS: Final = (
    "arrived_s",
    "sent_s",
    "first_s",
    "ended_s",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "attempts",
    "outcome",
    "backend",
    "met",
    "predicted_ttft_s",
    "predicted_tpot_s",
    "predicted_e2e_s",
    "sequences",
)
OUTCOMES: Final = tuple(EndState)
_packed: Final = Struct(f"{len(COLUMNS)}d").pack
_CODE: Final = {outcome: float(number) for number, outcome in enumerate(OUTCOMES)}


class ResultTable:
    """Rows in the order in which requests ended; ``column`` returns one column."""

    def __init__(self) -> None:
        """No row yet."""
        self._rows = array("d")
        self._table: Floats | None = None
        self.ids: list[str] = []
        self.slo_classes: list[str] = []
        self.reasons: Counter[str] = Counter()
        self.backends: list[str] = []
        self._numbers: dict[str, float] = {"": -1.0}

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, record: RequestRecord, first_arrived_s: float) -> None:
        """Add one request. Its SLO counts from *first_arrived_s*, when its client sent it first.

        A reply that is not streamed has no first token: only its end is compared with the SLO.
        """
        request, usage = record.request, record.usage
        backend = self._numbers.get(record.backend)
        if backend is None:
            backend = self._numbers[record.backend] = float(len(self.backends))
            self.backends.append(record.backend)
        arrived_s, ended_s = first_arrived_s, record.ended_s
        first_s = record.first_token_s if request.streamed else nan
        served = record.outcome is EndState.SERVED
        after = usage.output_tokens / request.sequences - 1.0
        if request.streamed:
            tpot_s = (ended_s - first_s) / max(after, 1.0) if after > 0.0 else 0.0
            met = served and request.slo.met(
                first_s - arrived_s, tpot_s, ended_s - arrived_s, request.prompt_tokens, usage.output_tokens
            )
        else:
            met = served and request.slo.met_whole(ended_s - arrived_s, request.prompt_tokens, usage.output_tokens)
        self._rows.frombytes(
            _packed(
                arrived_s,
                record.sent_s,
                first_s,
                ended_s,
                request.prompt_tokens,
                usage.output_tokens,
                usage.cached_tokens,
                record.attempts,
                _CODE[record.outcome],
                backend,
                met,
                record.predicted_ttft_s,
                record.predicted_tpot_s,
                record.predicted_e2e_s,
                request.sequences,
            )
        )
        self.ids.append(request.id)
        self.slo_classes.append(request.slo_class)
        if record.reason is not None:
            self.reasons[record.reason.value] += 1

    def column(self, name: str) -> Floats:
        """One column, in the order of ``ids``."""
        if self._table is None or len(self._table) != len(self.ids):
            self._table = np.array(self._rows, dtype=np.float64).reshape(-1, len(COLUMNS))
        column: Floats = self._table[:, COLUMNS.index(name)]
        return column

    def served(self) -> NDArray[np.bool_]:
        """Which requests were served to the end."""
        served: NDArray[np.bool_] = self.column("outcome") == _CODE[EndState.SERVED]
        return served

    def met(self) -> NDArray[np.bool_]:
        """Which requests met every bound of their SLO."""
        met: NDArray[np.bool_] = self.column("met") > 0
        return met

    def ttft_s(self) -> Floats:
        """Arrival to first token (nan: none came)."""
        return self.column("first_s") - self.column("arrived_s")

    def tpot_s(self) -> Floats:
        """Mean time per token after the first, by the mean length of a request's sequences; nan for replies of fewer
        than two tokens.
        """
        after = self.column("output_tokens") / self.column("sequences") - 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.maximum(after, 1.0)
            return np.where(after > 0.0, (self.column("ended_s") - self.column("first_s")) / steps, np.nan)

    def e2e_s(self) -> Floats:
        """Arrival to last token; nan unless served."""
        return np.where(self.served(), self.column("ended_s") - self.column("arrived_s"), np.nan)

    def latencies_s(self) -> dict[str, Floats]:
        """The values of each of ``SLO_METRICS`` by its name, nan where it does not exist."""
        base = (self.ttft_s(), self.tpot_s(), self.e2e_s())
        values = {metric.name: column for metric, column in zip(SLO_METRICS[:BASE], base, strict=True)}
        for metric in DERIVED:
            columns = (*base, self.column("prompt_tokens"), self.column("output_tokens"))
            rows = zip(*(column.tolist() for column in columns), strict=True)
            values[metric.name] = np.array([metric.observed(*row) for row in rows], dtype=np.float64)
        return values
