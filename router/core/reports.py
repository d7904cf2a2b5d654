"""What engines report of their own queues, and the load that no router accounts for.

An engine's count is compared with what the routers had in flight when the scrape began, for its answer is of that
moment: a stale report can never hide what was sent since, and traffic past all routers still counts. Must not depend
on how load comes about; it reads the table.
"""

from typing import Final

from router.core.columns import (
    CONTEXT_TOKENS,
    DECODING,
    KV_TOKENS_MAX,
    KV_USAGE,
    PEERS,
    PREFILL_TOKENS,
    PREFILLING,
    REPORTED_S,
)
from router.core.metering import Metering
from router.core.signals import rows
from router.core.slot_table import SlotTable
from router.core.types import EngineReport

UNATTRIBUTED_TTL_S: Final = 30.0  # a report older than this says nothing of now
_INF: Final = float("inf")


class Reports:
    """The rows of the table that engines fill: unattributed load and signals."""

    def __init__(self, table: SlotTable, metering: Metering) -> None:
        self._table = table
        self._metering = metering
        self._rows = rows()
        self._probes: dict[int, tuple[float, float, float]] = {}  # by slot: start, requests and tokens carried then

    def forget(self, slot: int) -> None:
        """The backend left; a probe of it says nothing of what comes into its slot."""
        self._probes.pop(slot, None)

    def probe_started(self, slot: int, now_s: float) -> None:
        """A scrape starts: remember what the routers have in flight there, for its answer is of this moment."""
        requests, tokens = self._carried(slot)
        self._probes[slot] = (now_s, requests, tokens)

    def reported(self, slot: int, report: EngineReport, now_s: float) -> bool:
        """Fold in an engine's own report; what it shows beyond what the routers had there is unattributed load.

        False, and nothing done, when a later one has come before it.
        """
        cells = self._table.cells
        if report.asked_s <= cells[REPORTED_S][slot]:
            return False
        requests, tokens = self._carried_at(slot, report.asked_s)
        cells[REPORTED_S][slot] = report.asked_s
        for row, value in zip(self._rows, report.signals, strict=True):
            cells[row][slot] = value
        if report.kv_tokens_max > 0:
            cells[KV_TOKENS_MAX][slot] = report.kv_tokens_max
        running, waiting = _or_zero(report.running), _or_zero(report.waiting)
        extra = max(0.0, running + waiting - requests)
        queued = min(extra, waiting)
        kv_tokens_max = cells[KV_TOKENS_MAX][slot]
        held = max(0.0, _or_zero(cells[KV_USAGE][slot]) * kv_tokens_max - tokens) if extra else 0.0
        each = min(held / (extra - queued), kv_tokens_max) if extra > queued else 0.0
        self._attribute(slot, (queued, queued * each, extra - queued, held), now_s)
        return True

    def _attribute(self, slot: int, load: tuple[float, float, float, float], now_s: float) -> None:
        """Set the slot's unattributed load (in the order of ``Load``'s fields), where it is another than before."""
        before = self._table.unattributed[:, slot].tolist()
        if before != list(load):
            self._metering.measure(now_s)
            self._metering.integrate(slot, now_s)
            self._table.unattributed[:, slot] = load
            self._metering.others_changed(slot)

    def _carried_at(self, slot: int, asked_s: float) -> tuple[float, float]:
        probe = self._probes.get(slot)
        if probe is not None and probe[0] >= asked_s - 1e-9:
            return probe[1], probe[2]
        return self._carried(slot)

    def _carried(self, slot: int) -> tuple[float, float]:
        """Requests that this router and its peers have there, and their tokens."""
        cells = self._table.cells
        peers = cells[PEERS + PREFILLING][slot] + cells[PEERS + DECODING][slot]
        own_tokens = cells[PREFILL_TOKENS][slot] + cells[CONTEXT_TOKENS][slot]
        tokens = own_tokens + cells[PEERS + PREFILL_TOKENS][slot] + cells[PEERS + CONTEXT_TOKENS][slot]
        return cells[PREFILLING][slot] + cells[DECODING][slot] + peers, tokens

    def forget_stale(self, now_s: float) -> None:
        """Drop unattributed load whose report is too old to say anything of now."""
        table = self._table
        if not table.unattributed.any():
            return
        stale = now_s - table.columns[REPORTED_S] > UNATTRIBUTED_TTL_S
        table.unattributed[:, stale] = 0.0
        for slot in stale.nonzero()[0].tolist():
            if slot < len(self._metering.meters):
                self._metering.others_changed(slot)


def _or_zero(number: float) -> float:
    """A number of a report; 0 where the engine did not say."""
    return number if -_INF < number < _INF else 0.0
