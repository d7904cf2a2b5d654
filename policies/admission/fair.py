"""Priorities, deadlines and a fair share for every tenant, by tokens; and no wait that cannot end in time.

Who waits is ranked by one moment: its deadline, later for a less urgent priority, later by as much as its tenant is
ahead of its fair share. Newcomers' moments lie ever later, so ever fewer overtake a request that waits: even the least
urgent request of the greediest tenant has its turn.

The lead is counted as in Virtual Clock (Zhang 1990): a tenant's clock advances by tokens over its share of the rate at
which the pool serves tokens now, and never falls behind real time. Who stays within its share has no lead, whatever
others do; of those over it, the lowest clock goes first, which serves them in proportion to their weights. Tenants are
distinguished by a hash into ``LANES`` (stochastic fairness queueing, McKenney 1990), so what is remembered is bounded.

While others wait, a request that they will not let through in time is refused at once, with the time after which they
should be served. What would be late even on an idle pool is routing's to judge.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar, Final
from zlib import crc32

from policies.admission._drain import drain_s, retry_after_s
from router.core import Admit, Fleet, Forecast, Memory, Reason, Request, Shed

LANES: Final = 1_024


@dataclass(frozen=True, slots=True)
class Clocks:
    """What is remembered: per lane that is ahead of real time its clock, its weight, and by how many seconds this
    router's own requests have advanced that clock since it is ahead.
    """

    lanes: Mapping[int, tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class Fair:
    """``weights``: a tenant's share against others' (1 where none is given); ``held_max`` and ``hold_s_max``: bounds
    of the queue of one model; ``priority_s``: seconds of waiting that one step of priority is worth; ``patience_s``:
    the deadline of a request that has none; ``early``: refuse at once what the queue will not let through in time.
    """

    rank_times: ClassVar[tuple[int, ...]] = (0, 1)  # the moments in a rank
    weights: Mapping[str, float] = field(default_factory=dict)
    held_max: int = 2_048
    hold_s_max: float = 30.0
    priority_s: float = 5.0
    patience_s: float = 10.0
    early: bool = True

    def __post_init__(self) -> None:
        """Refuse bounds and weights that mean nothing."""
        if self.held_max < 0 or self.hold_s_max < 0 or self.priority_s < 0 or self.patience_s < 0:
            raise ValueError("fair: held_max, hold_s_max, priority_s and patience_s must not be negative")
        wrong = [tenant for tenant, weight in self.weights.items() if not 0 < weight < inf]
        if wrong:
            raise ValueError(f"fair: the weight of tenant {wrong[0]!r} must be above 0, not {self.weights[wrong[0]]}")

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit | Shed, Memory]:
        """Rank by deadline, priority and the tenant's lead; refuse what would only wait in vain."""
        lead_s, clocks = self._advance(request, fleet, forecast, memory)
        patience_s = min(request.slo.ttft_s, request.slo.e2e_s, self.patience_s)
        rank = request.arrived_s + patience_s + request.priority * self.priority_s + lead_s
        refusal = self._refusal(request, fleet, forecast, rank, lead_s) if self.early and fleet.held else None
        if refusal is not None:
            return refusal, memory
        return Admit((rank, request.arrived_s)), clocks

    def _advance(
        self, request: Request, fleet: Fleet, forecast: Forecast, memory: Clocks | None
    ) -> tuple[float, Clocks]:
        """The tenant's lead before this request, in seconds, and the clocks after it."""
        now_s = fleet.now_s
        lanes = {lane: ahead for lane, ahead in memory.lanes.items() if ahead[0] > now_s} if memory else {}
        weight = self.weights.get(request.tenant, 1.0)
        lane = crc32(request.tenant.encode("utf-8", "surrogatepass")) % LANES
        clock, _, own_s = lanes.get(lane, (now_s, weight, 0.0))
        active = weight + sum(ahead[1] for other, ahead in lanes.items() if other != lane)
        served_s = _served_s(fleet, forecast) * active / weight
        lanes[lane] = clock + served_s, weight, own_s + served_s
        return clock - now_s, Clocks(lanes)

    def advances(self, memory: Clocks | None) -> Mapping[int, tuple[float, float]]:
        """What other routers are to count as well: by lane, how far its clock was advanced here, and its weight."""
        return {lane: (own_s, weight) for lane, (_, weight, own_s) in memory.lanes.items() if own_s} if memory else {}

    def advanced(self, memory: Clocks | None, more: Mapping[int, tuple[float, float]], now_s: float) -> Clocks:
        """The clocks after what other routers have served: a tenant's share is one of the pool, whichever routers its
        requests come to.
        """
        lanes = {lane: ahead for lane, ahead in memory.lanes.items() if ahead[0] > now_s} if memory else {}
        for lane, (seconds, weight) in more.items():
            if lane < LANES:
                clock, known_weight, own_s = lanes.get(lane, (now_s, weight, 0.0))
                lanes[lane] = clock + seconds, known_weight, own_s
        return Clocks(lanes)

    def _refusal(self, request: Request, fleet: Fleet, forecast: Forecast, rank: float, lead_s: float) -> Shed | None:
        """Why this request need not even wait, if so; only while others do."""
        if lead_s > self.hold_s_max:
            why = f"its tenant is {lead_s:.0f} s ahead of its fair share while others wait"
            return Shed(Reason.UNFAIR_SHARE, why, min(lead_s - self.hold_s_max + 1.0, 60.0))
        overtakes = bool(fleet.held_rank) and rank < fleet.held_rank[0]
        wait_s = 0.0 if overtakes else drain_s(fleet, forecast)
        if fleet.now_s + wait_s + float(forecast.ttft_s.min()) > request.first_token_due_s and wait_s > 0.0:
            why = f"{fleet.held} requests wait in front, for {wait_s:.1f} s yet"
            return Shed(Reason.SATURATED, why, retry_after_s(fleet, forecast))
        return None


def _served_s(fleet: Fleet, forecast: Forecast) -> float:
    """Seconds in which the pool as it runs now serves as many tokens as this request will hold.

    By Little's law (1961) what a backend holds, over how long a request stays, is what it serves a second; one that is
    idle is taken to serve this request.
    """
    held = fleet.prefill_tokens + fleet.context_tokens + forecast.tokens
    tokens_per_s = float((held / forecast.e2e_s).sum())
    return forecast.tokens / tokens_per_s if tokens_per_s > 0.0 else 0.0


policy = Fair
