"""A signal in one file, as ``router/core/signals`` wants it: the share of the sequences that an engine can run."""

from typing import Final

from router.core.signals.signal import Gauge, Signal

SIGNAL: Final = Signal(
    name="slots_busy",
    metric="headroom_engine_slots_busy_ratio",
    help="Share of the sequences the engine can run that it runs",
    least=0.0,
    most=1.0,
    live={"vllm": Gauge(("vllm:slots_busy_perc",))},
    simulated=lambda engine: engine.running / engine.limits.seqs_max,
)
