"""What each backend has done over time: integrals of its load, read before and after a stream to learn from it.

A step does not depend on who sent the sequences in it, so the integrals count everybody's: this router's own load
exactly, that of others as reported, their prompts at the rate at which this router's own traffic brings prompts. Must
not depend on how load comes about (load, reports, peers): those call ``integrate`` before they change something.
"""

from dataclasses import dataclass
from math import exp
from typing import Final

import numpy as np

from router.core.columns import CONTEXT_TOKENS, COUNTED_PEERS, DECODING, PEERS, PREFILL_RATE, RATE_AT_S, UNATTRIBUTED
from router.core.slot_table import SlotTable

RATE_TAU_S: Final = 5.0  # memory of the prefill rate: a few requests' lives, so that it follows a burst


@dataclass(init=False, slots=True, unsafe_hash=True)
class WorkSnapshot:
    """What a backend had done up to one moment; the difference of two is what a stream lived through.

    ``decoding_s`` and ``context_s`` are time integrals (sequences x s, tokens x s); ``prefilled_tokens`` a counter.
    """

    at_s: Final[float]
    decoding_s: Final[float]
    context_s: Final[float]
    prefilled_tokens: Final[float]

    def __init__(
        self,
        at_s: float,
        decoding_s: float,
        context_s: float,
        prefilled_tokens: float,
    ) -> None:
        self.at_s = at_s
        self.decoding_s = decoding_s
        self.context_s = context_s
        self.prefilled_tokens = prefilled_tokens


class Meter:
    """The integrals of one slot as of ``integrated_s``, and the load that they grow by from then on.

    ``brought_tokens``: prompt tokens that a request of others had brought by then, as ``Metering`` counts them.

    ``decoding`` and ``context_tokens`` are this router's, ``others`` and ``others_tokens`` the sequences that peers and
    unknown senders decode there, and their tokens; ``uncounted``: those of them whose prompts nobody counts. Plain
    numbers: reading an array's would make an object each time.
    """

    __slots__ = (
        "brought_tokens",
        "context_s",
        "context_tokens",
        "decoding",
        "decoding_s",
        "integrated_s",
        "others",
        "others_tokens",
        "prefilled_tokens",
        "uncounted",
    )

    def __init__(self, now_s: float) -> None:
        self.decoding = self.context_tokens = self.others = self.others_tokens = self.uncounted = 0.0
        self.decoding_s = self.context_s = self.prefilled_tokens = 0.0
        self.brought_tokens = 0.0
        self.integrated_s = now_s

    def integrate(self, now_s: float, brought_tokens: float) -> None:
        """Bring the integrals up to now; ``brought_tokens``: by now."""
        passed_s = now_s - self.integrated_s
        if passed_s > 0.0:
            self.decoding_s += (self.decoding + self.others) * passed_s
            self.context_s += (self.context_tokens + self.others_tokens) * passed_s
            self.prefilled_tokens += self.uncounted * (brought_tokens - self.brought_tokens)
            self.integrated_s, self.brought_tokens = now_s, brought_tokens


class Metering:
    """The meters, by slot, and the rate that a request of others is taken to bring prompts at.

    The rate is one for all slots and changes with every report of an engine. So its integral is kept once, as of
    ``_measured_s``, and a meter reads it when its own slot changes: a report costs no visit to each of the others.
    """

    def __init__(self, table: SlotTable) -> None:
        self._table = table
        self.meters: list[Meter] = []
        self.prompt_tokens_per_s_each = 0.0  # that each request in flight brings, by this router's own traffic
        self._measured_s = 0.0  # when that was last measured
        self._brought_tokens = 0.0  # its integral by then

    def start(self, slot: int, now_s: float) -> None:
        """Nothing was done yet by what is now in the slot."""
        meter = Meter(now_s)
        meter.brought_tokens = self._brought(now_s)
        if slot == len(self.meters):
            self.meters.append(meter)
        else:
            self.meters[slot] = meter

    def _brought(self, now_s: float) -> float:
        """Prompt tokens that one request of others, in flight all the time, would have brought by now."""
        return self._brought_tokens + (now_s - self._measured_s) * self.prompt_tokens_per_s_each

    def measure(self, now_s: float) -> None:
        """The load of others is about to change somewhere: measure anew how many prompt tokens a request in flight
        brings, from now on.
        """
        self._brought_tokens = self._brought(now_s)
        self._measured_s = now_s
        table = self._table
        decoding = float(table.own[DECODING].sum() + table.columns[COUNTED_PEERS].sum())
        rate_at_s = table.columns[RATE_AT_S]
        rate = float(table.columns[PREFILL_RATE] @ np.exp(np.minimum(rate_at_s - now_s, 0.0) / RATE_TAU_S))
        self.prompt_tokens_per_s_each = rate / decoding if decoding >= 1.0 else 0.0

    def prompt_sent(self, slot: int, prompt_tokens: float, now_s: float) -> None:
        """A prompt goes there now."""
        cells = self._table.cells
        decayed = cells[PREFILL_RATE][slot] * exp((cells[RATE_AT_S][slot] - now_s) / RATE_TAU_S)
        cells[PREFILL_RATE][slot] = decayed + prompt_tokens / RATE_TAU_S
        cells[RATE_AT_S][slot] = now_s

    def integrate(self, slot: int, now_s: float) -> None:
        """The load in this slot is about to change: bring its integrals up to now."""
        self.meters[slot].integrate(now_s, self._brought(now_s))

    def others_changed(self, slot: int) -> None:
        """The load of others in this slot of the table is another from now on."""
        meter, cells = self.meters[slot], self._table.cells
        meter.others = cells[PEERS + DECODING][slot] + cells[UNATTRIBUTED + DECODING][slot]
        meter.uncounted = meter.others - cells[COUNTED_PEERS][slot]
        meter.others_tokens = cells[PEERS + CONTEXT_TOKENS][slot] + cells[UNATTRIBUTED + CONTEXT_TOKENS][slot]

    def snapshot(self, slot: int, now_s: float) -> WorkSnapshot:
        """What the backend has done so far, as far as this router can count it."""
        meter = self.meters[slot]
        meter.integrate(now_s, self._brought(now_s))
        return WorkSnapshot(now_s, meter.decoding_s, meter.context_s, meter.prefilled_tokens)

    def snapshot_before(self, slot: int, now_s: float, at_s: float, since: WorkSnapshot) -> WorkSnapshot:
        """What the backend had done at ``at_s``, a moment ago and after ``since``: its load is taken to have been the
        same from then on, since that this was a last token shows only with what follows it.
        """
        now = self.snapshot(slot, now_s)
        back_s = now_s - at_s
        if back_s <= 0.0:
            return now
        meter = self.meters[slot]
        return WorkSnapshot(
            max(at_s, since.at_s),
            max(now.decoding_s - back_s * (meter.decoding + meter.others), since.decoding_s),
            max(now.context_s - back_s * (meter.context_tokens + meter.others_tokens), since.context_s),
            max(
                now.prefilled_tokens - back_s * meter.uncounted * self.prompt_tokens_per_s_each, since.prefilled_tokens
            ),
        )
