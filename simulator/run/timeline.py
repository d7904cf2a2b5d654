"""The engines' load sampled at a fixed period, for plots. Must not depend on requests."""

from array import array

from simulator.run.fleet import ReplicaFleet
from simulator.run.kernel import Kernel


class Timeline:
    """Columns by engine, sampled every ``period_s``."""

    def __init__(self, kernel: Kernel, fleet: ReplicaFleet, period_s: float) -> None:
        """From now until nothing else is to come."""
        self.period_s = period_s
        self.at_s = array("d")
        self.usd = array("d")
        self.replicas = array("d")
        self.running: dict[str, array[float]] = {}
        self.waiting: dict[str, array[float]] = {}
        self.kv_usage: dict[str, array[float]] = {}
        self._kernel, self._fleet = kernel, fleet
        self._sample(None)

    def _sample(self, _: object) -> None:
        now_s = self._kernel.now_s
        self.at_s.append(now_s)
        self.usd.append(self._fleet.cost(now_s))
        self.replicas.append(sum(engine.alive for engine in self._fleet.serving()))
        for name, engine in self._fleet.engines.items():
            replica = engine.replica
            there = (
                (self.running, replica.running),
                (self.waiting, replica.waiting),
                (self.kv_usage, replica.kv_usage()),
            )
            for columns, value in there:
                column = columns.setdefault(name, array("d"))
                column.extend([0.0] * (len(self.at_s) - 1 - len(column)))
                column.append(float(value))
        self._kernel.at(now_s + self.period_s, self._sample)
