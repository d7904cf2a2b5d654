"""The clairvoyant router: it reads reply lengths, true step times and engine states, which no real router can.

It projects each engine to its last token (``projection.py``) and sends a request where no SLO is violated. Where there
is no such engine, the request waits while an idle engine could still meet all its bounds. After that its SLO is lost:
it is served if an engine is idle and dropped otherwise, so that it does not delay requests that can meet theirs. Future
arrivals are not read; each ``Strategy`` makes another assumption about them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Final, Literal

from router.core import Admission, Admit, Choice, Dispatch, Fleet, Forecast, Hold, Memory, Reason, Request, Rng, Shed
from router.core.types import Slo
from simulator.bounds.projection import Projection, SloState, in_engine, project, project_alone, slo_uses
from simulator.replica.sequence import Sequence
from simulator.run.fleet import SimulatedEngine
from simulator.run.play import RequestLookup
from simulator.workload.arrivals import Arrival

_RETRY_S: Final = 0.1
_VALID_S: Final = 0.1  # lifetime of a projection of an engine without events, whose speed drifts meanwhile
_BEFORE_S: Final = 1e-3  # before the hold time of the admission policy ends
_STRETCH_MAX: Final = 5.0  # how much future prompts may slow decoding in a projection
_TYPICAL_BATCH: Final = 32  # sequences that share a step, where the work of requests is compared


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to decide with full knowledge of the present.

    ``order``: the waiting request that is served first: the one that must start ``soonest``, or the one that takes the
    least engine time (``lightest``; the newest of equals). ``reserve``: whether an engine keeps room for as many
    prompts as arrived lately. ``sheds``: False sends every request at once to the engine where it ends first.
    """

    name: str
    order: Literal["soonest", "lightest"] = "soonest"
    reserve: bool = True
    sheds: bool = True


PORTFOLIO: Final = (
    Strategy("soonest"),
    Strategy("lightest", "lightest"),
    Strategy("greedy", "lightest", reserve=False),
    Strategy("fastest", sheds=False),
)
"""The strategies whose best run is the bound. ``soonest`` (earliest deadline first) is best up to capacity and where
loose SLOs meet tight ones; beyond capacity it serves requests that are nearly too late, and ``lightest`` meets more
SLOs for the same work; ``greedy`` is best in bursts, after which fewer prompts arrive; ``fastest`` needs no SLO.
"""


@dataclass(frozen=True, slots=True)
class SendEffect:
    """The consequences of sending a request to one engine. ``end_s``: its last token, seconds from now.

    ``slo_use``: the largest used share of a bound among the requests that meet theirs; ``violations``: requests whose
    SLO would be violated because of the send, the new one included.
    """

    end_s: float
    slo_use: float
    violations: int


@dataclass(slots=True)
class _Waiter:
    """One held request. ``latest_s``: see ``Clairvoyant._latest_s``; ``refused``: for each engine where a send was last
    found to violate an SLO, the version of the engine then, and the time.
    """

    latest_s: float
    refused: dict[str, tuple[tuple[int, ...], float]]


class _EngineView:
    """One engine with the projection of its present sequences, computed once for all requests to be decided."""

    __slots__ = (
        "_enters_s",
        "_made_s",
        "_sequences",
        "_slo_of",
        "_version",
        "assigned",
        "engine",
        "fits",
        "meets",
        "slos",
    )

    def __init__(self, engine: SimulatedEngine) -> None:
        """Nothing is projected yet."""
        self.engine = engine
        self.assigned: list[Sequence] = []  # sent at this moment: not in the engine yet
        self.slos: list[SloState] = []
        self._slo_of: dict[str, SloState] = {}
        self.meets: list[bool] = []  # whether each meets its SLO if no other request comes
        self.fits = True  # whether the KV cache has room for all of them
        self._version: tuple[int, ...] = ()
        self._made_s = -inf
        self._sequences: list[Sequence] = []
        self._enters_s: list[float] = []

    @property
    def idle(self) -> bool:
        """Whether the engine had no sequence at the last refresh."""
        return not self._sequences

    def version(self) -> tuple[int, ...]:
        """Changes whenever a sequence arrives, ends, or has its first token."""
        return (*self.engine.replica.change_counts(), len(self.assigned))

    def refresh(self, now_s: float, lookup: RequestLookup) -> None:
        """Read the sequences of the engine, and project them if anything has changed."""
        replica, version, before = self.engine.replica, self.version(), self._sequences
        self._sequences, self._enters_s = in_engine(replica)
        if self.assigned:
            there = {sequence.id for sequence in self._sequences}
            for sequence in self.assigned:
                if sequence.id not in there:
                    self._sequences.append(sequence)
                    self._enters_s.append(self._enters_last_s(sequence))
        if version == self._version and now_s - self._made_s < _VALID_S and self._sequences == before:
            return
        self._version, self._made_s = version, now_s
        self._refresh_slos(lookup)
        projection = project(replica, self._sequences, self._enters_s)
        self.meets = [share <= 1.0 for share in slo_uses(self.slos, projection, now_s, 1.0)]
        self.fits = projection.fits

    def _refresh_slos(self, lookup: RequestLookup) -> None:
        """The SLO state of every sequence; it no longer changes once the first token is there."""
        before = self._slo_of
        self._slo_of = {}
        for sequence in self._sequences:
            state = before.get(sequence.id)
            if state is None or isnan(state.first_token_s):
                state = _slo_state(lookup(sequence.id))
            self._slo_of[sequence.id] = state
        self.slos = [self._slo_of[sequence.id] for sequence in self._sequences]

    def with_newcomer(self, newcomer: Sequence) -> Projection:
        """The projection of the present sequences and of the newcomer."""
        enters_s = [*self._enters_s, self._enters_last_s(newcomer)]
        return project(self.engine.replica, [*self._sequences, newcomer], enters_s)

    def _enters_last_s(self, newcomer: Sequence) -> float:
        send_s = self.engine.send_s(newcomer.prompt_tokens)
        return max(send_s, self._enters_s[-1]) if self._enters_s else send_s

    @property
    def accepts(self) -> bool:
        """Whether the engine would accept one more request."""
        replica = self.engine.replica
        return self.engine.alive and not replica.refuses(1 + len(self.assigned))


class Clairvoyant:
    """Routing and admission that read the engines' state. Not a policy: no policy has access to it."""

    def __init__(
        self,
        engines: Mapping[str, SimulatedEngine],
        lookup: RequestLookup,
        admission: Admission,
        strategy: Strategy = PORTFOLIO[0],
    ) -> None:
        """*engines* by name, always current. As many requests may wait as *admission* allows, and for as long."""
        self.held_max, self.hold_s_max = admission.held_max, admission.hold_s_max
        self._engines, self._lookup, self._strategy = engines, lookup, strategy
        self._views: dict[str, _EngineView] = {}
        self._sent_s = -inf
        self._waiters: dict[str, _Waiter] = {}

    # ---- admission -----------------------------------------------------------------------

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit, Memory]:
        """Admit every request, ranked by the strategy's order."""
        arrival, views = self._arrival(request), self._refresh(fleet)
        if self._strategy.order == "lightest":
            rank = (min(_work(view.engine, arrival) for view in views), -request.arrived_s)
        else:
            rank = (self._latest_s(arrival, views), request.arrived_s)
        return Admit(rank), memory

    def _arrival(self, request: Request) -> Arrival:
        found = self._lookup(request.id)
        assert found is not None
        return found[0]

    def _refresh(self, fleet: Fleet) -> list[_EngineView]:
        """The views of the fleet's engines. What was sent at an earlier time is in the engines by now."""
        if fleet.now_s > self._sent_s:
            for view in self._views.values():
                view.assigned.clear()
        views: list[_EngineView] = []
        for index in range(len(fleet)):
            engine = self._engines[fleet.backend(index).name]
            if engine.name not in self._views:
                self._views[engine.name] = _EngineView(engine)
            views.append(self._views[engine.name])
        return views

    def _latest_s(self, arrival: Arrival, views: list[_EngineView]) -> float:
        """The latest start at which an otherwise empty engine meets every bound (-inf: none could ever)."""
        latest_s = -inf
        slo, first_arrived_s = _bounds_of(arrival), arrival.first_arrived_s
        for view in views:
            sequence = view.engine.preview(arrival)
            first_s, end_s = project_alone(view.engine.replica, sequence, view.engine.send_s(sequence.prompt_tokens))
            if end_s - first_s <= slo.tpot_s * max(1, sequence.output_tokens - 1):
                latest_s = max(latest_s, first_arrived_s + min(slo.ttft_s - first_s, slo.e2e_s - end_s))
        return latest_s

    # ---- routing -----------------------------------------------------------------------

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Send where no SLO is violated and the smallest slack is largest; else hold while that can help."""
        arrival, views = self._arrival(request), self._refresh(fleet)
        open_to = [index for index, view in enumerate(views) if view.accepts]
        if not open_to:
            return Hold(fleet.now_s + _RETRY_S, "no engine accepts it")
        if not self._strategy.sheds:
            return self._best_effort(arrival, views, open_to, fleet)
        best = self._without_violation(arrival, views, open_to, fleet)
        if best >= 0:
            return self._send(arrival, views, best, fleet)
        return self._wait(arrival, views, open_to, fleet)

    def _without_violation(self, arrival: Arrival, views: list[_EngineView], open_to: list[int], fleet: Fleet) -> int:
        """The index of the engine without violations whose smallest slack is largest; -1 if there is none."""
        waiter = self._waiters.get(arrival.request.id)
        rates = fleet.prefill_tokens_per_s if self._strategy.reserve else None
        best, least = -1, inf
        for index in open_to:
            view, version = views[index], views[index].version()
            if waiter is not None:
                refused = waiter.refused.get(view.engine.name)
                if refused is not None and refused[0] == version and fleet.now_s - refused[1] < _VALID_S:
                    continue
            effect = self._effect(view, arrival, float(rates[index]) if rates is not None else 0.0, fleet.now_s)
            if not effect.violations and effect.slo_use < least:
                best, least = index, effect.slo_use
            elif effect.violations and waiter is not None:
                waiter.refused[view.engine.name] = (version, fleet.now_s)
        return best

    def _effect(self, view: _EngineView, arrival: Arrival, prefill_tokens_per_s: float, now_s: float) -> SendEffect:
        """The effect of sending *arrival* to the engine while further prompts come at *prefill_tokens_per_s*; an idle
        engine is projected without further prompts.
        """
        view.refresh(now_s, self._lookup)
        to_come = 0.0 if view.idle else prefill_tokens_per_s * view.engine.replica.prompt_token_s()
        stretch = 1.0 / (1.0 - min(to_come, 1.0 - 1.0 / _STRETCH_MAX))
        after = view.with_newcomer(view.engine.preview(arrival))
        shares = slo_uses([*view.slos, _slo_state((arrival, nan))], after, now_s, stretch)
        violations, slo_use = 0, 0.0
        for meets, share in zip([*view.meets, True], shares, strict=True):
            if share <= 1.0:
                slo_use = max(slo_use, share)
            elif meets:
                violations += 1
        if view.fits and not after.fits and not view.idle:
            violations += 1  # a sequence would be preempted and recomputed
        return SendEffect(after.end_s[-1], slo_use, violations)

    def _send(self, arrival: Arrival, views: list[_EngineView], index: int, fleet: Fleet) -> Dispatch:
        view = views[index]
        view.assigned.append(view.engine.preview(arrival))
        self._sent_s = fleet.now_s
        self._waiters.pop(arrival.request.id, None)
        return Dispatch(int(fleet.slots[index]), "clairvoyant")

    def _wait(self, arrival: Arrival, views: list[_EngineView], open_to: list[int], fleet: Fleet) -> Choice:
        """The choice for a request that would violate an SLO on every engine."""
        request, now_s = arrival.request, fleet.now_s
        waiter = self._waiters.get(request.id)
        if waiter is None:
            until_s = request.arrived_s + self.hold_s_max - _BEFORE_S
            waiter = self._waiters[request.id] = _Waiter(min(self._latest_s(arrival, views), until_s), {})
        if now_s < waiter.latest_s:
            return Hold(min(now_s + _RETRY_S, waiter.latest_s), "every engine would violate an SLO")
        if not request.slo.bounded:
            return self._best_effort(arrival, views, open_to, fleet)  # it has no bound: it only has to be served
        idle = [index for index in open_to if views[index].idle]
        if idle and not fleet.held:
            return self._best_effort(arrival, views, idle, fleet)
        del self._waiters[request.id]
        return Shed(Reason.SATURATED, "its SLO is lost, or would cost another's")

    def _best_effort(self, arrival: Arrival, views: list[_EngineView], among: list[int], fleet: Fleet) -> Dispatch:
        """Send to the engine where it ends first; if the strategy sheds, among those with the fewest violations."""
        ends: list[tuple[int, float, int]] = []
        for index in among:
            effect = self._effect(views[index], arrival, 0.0, fleet.now_s)
            ends.append((effect.violations if self._strategy.sheds else 0, effect.end_s, index))
        return self._send(arrival, views, min(ends)[2], fleet)


def _bounds_of(arrival: Arrival) -> Slo:
    """Its SLO in bounds on TTFT, TPOT and E2E alone, by the true length of its reply."""
    return arrival.request.slo.in_base(arrival.request.prompt_tokens, arrival.output_tokens)


def _slo_state(found: tuple[Arrival, float] | None) -> SloState:
    if found is None:
        return SloState(0.0, inf, inf, inf, 0.0)
    arrival, first_token_s = found
    slo = _bounds_of(arrival)
    return SloState(arrival.first_arrived_s, slo.ttft_s, slo.tpot_s, slo.e2e_s, first_token_s)


def _work(engine: SimulatedEngine, arrival: Arrival) -> float:
    """The engine time a request takes: its prompt in steps full of prompts, and its share of the steps of a typical
    batch. The unit is a step of a single sequence, so that the result does not depend on the engine's present speed.
    """
    replica, sequence = engine.replica, engine.preview(arrival)
    limits, empty_s = replica.limits, replica.step_s(0, 0, 0, 0.0)
    batch = min(_TYPICAL_BATCH, limits.seqs_max)
    token_s = (replica.step_s(0, 0, limits.chunk_tokens, 0.0) - empty_s) / limits.chunk_tokens
    step_s = replica.step_s(batch, batch * (sequence.prompt_tokens + sequence.output_tokens / 2), 0, 0.0)
    cold = sequence.prompt_tokens - replica.cached_tokens_of(sequence)
    return round((cold * token_s + sequence.output_tokens * step_s / batch) / replica.step_s(1, 0, 0, 0.0), 6)
