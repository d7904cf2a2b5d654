"""A router that reads what routers never see: every reply's length, every engine's true step, who is where just now.

It follows each engine to its last token (``projection.py``) and sends where nobody misses an SLO. A request that finds
no such engine waits only as long as an engine with nobody else could still keep every bound of it. After that it is
lost: it is served where an engine stands idle, else dropped, so that it takes nothing from those that keep theirs.
The clairvoyant decides request by request and does not know who will come; a few ``Strategy``s guess that differently.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Final, Literal

from router.core import Admission, Admit, Choice, Dispatch, Fleet, Forecast, Hold, Memory, Reason, Request, Rng, Shed
from simulator.bounds.projection import Foreseen, Promised, alone, follow, in_engine, shares_used
from simulator.replica.sequence import Sequence
from simulator.run.fleet import SimulatedEngine
from simulator.run.play import RequestLookup
from simulator.workload.arrivals import Arrival

_ASK_AGAIN_S: Final = 0.1
_VALID_S: Final = 0.1  # of what was foreseen of an engine to which nothing happened: its speed drifts
_BEFORE_S: Final = 1e-3  # the end of the time for which a request may be held
_STRETCH_MAX: Final = 5.0  # of decoding, by the prompts of those to come
_TYPICAL_BATCH: Final = 32  # sequences among which a step is shared, where the work of requests is compared


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to use what is known.

    ``order``: who of those waiting is served first: who must start ``soonest``, or who is the ``lightest``, by engine
    time (the newest of equals). ``reserve``: whether room is kept on an engine for as many prompts as came lately.
    ``sheds``: False sends everything at once, to where it ends first.
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
"""What the bound is the best of. ``soonest`` (earliest deadline first) is best up to capacity and where patient
requests meet urgent ones; beyond capacity it serves those that are nearly too late, and ``lightest`` keeps more SLOs
for the same work; ``greedy`` is best in bursts, where as many prompts do not go on coming; ``fastest`` needs no SLO.
"""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What would happen on one engine. ``end_s``: the newcomer's last token, seconds from now; ``use``: the largest
    share that anybody would use of a bound that is kept; ``missed``: how many would miss their SLO who would keep it
    otherwise, the newcomer among them.
    """

    end_s: float
    use: float
    missed: int


@dataclass(slots=True)
class _Waiter:
    """One request that waits. ``latest_s``: see ``Clairvoyant._latest_s``; ``refused``: by engine, what its mark was
    and when, where it was last found that somebody would miss.
    """

    latest_s: float
    refused: dict[str, tuple[tuple[int, ...], float]]


class _View:
    """One engine as it stands: what becomes of everybody there is worked out once for all who are asked about."""

    __slots__ = (
        "_enters_s",
        "_made_s",
        "_mark",
        "_promised_to",
        "_sequences",
        "coming",
        "engine",
        "fits",
        "keeps",
        "promised",
    )

    def __init__(self, engine: SimulatedEngine) -> None:
        """Nothing foreseen yet."""
        self.engine = engine
        self.coming: list[Sequence] = []  # chosen at this moment: not in the engine yet
        self.promised: list[Promised] = []
        self._promised_to: dict[str, Promised] = {}
        self.keeps: list[bool] = []  # who keeps its SLO if nobody else comes
        self.fits = True  # whether the KV cache holds them all
        self._mark: tuple[int, ...] = ()
        self._made_s = -inf
        self._sequences: list[Sequence] = []
        self._enters_s: list[float] = []

    @property
    def idle(self) -> bool:
        """Whether nobody is there, as of the last look."""
        return not self._sequences

    def mark(self) -> tuple[int, ...]:
        """Changes whenever somebody comes, ends, or has its first token."""
        return (*self.engine.replica.turns_so_far(), len(self.coming))

    def look(self, now_s: float, known: RequestLookup) -> None:
        """See who is there, and what becomes of them."""
        replica, mark, before = self.engine.replica, self.mark(), self._sequences
        self._sequences, self._enters_s = in_engine(replica)
        if self.coming:
            there = {sequence.id for sequence in self._sequences}
            for sequence in self.coming:
                if sequence.id not in there:
                    self._sequences.append(sequence)
                    self._enters_s.append(self._enters_last_s(sequence))
        if mark == self._mark and now_s - self._made_s < _VALID_S and self._sequences == before:
            return
        self._mark, self._made_s = mark, now_s
        self._promises(known)
        foreseen = follow(replica, self._sequences, self._enters_s)
        self.keeps = [share <= 1.0 for share in shares_used(self.promised, foreseen, now_s, 1.0)]
        self.fits = foreseen.fits

    def _promises(self, known: RequestLookup) -> None:
        """Of everybody there: nothing changes any more of one that had its first token when last looked at."""
        before = self._promised_to
        self._promised_to = {}
        for sequence in self._sequences:
            promised = before.get(sequence.id)
            if promised is None or isnan(promised.had_s):
                promised = _promised(known(sequence.id))
            self._promised_to[sequence.id] = promised
        self.promised = [self._promised_to[sequence.id] for sequence in self._sequences]

    def beside(self, newcomer: Sequence) -> Foreseen:
        """What becomes of everybody there and of the newcomer."""
        enters_s = [*self._enters_s, self._enters_last_s(newcomer)]
        return follow(self.engine.replica, [*self._sequences, newcomer], enters_s)

    def _enters_last_s(self, newcomer: Sequence) -> float:
        way_s = self.engine.way_s(newcomer.prompt_tokens)
        return max(way_s, self._enters_s[-1]) if self._enters_s else way_s

    @property
    def takes(self) -> bool:
        """Whether the engine would accept one more."""
        replica = self.engine.replica
        return self.engine.alive and replica.waiting_at_most + len(self.coming) < replica.limits.queue_max


class Clairvoyant:
    """Routing and admission that look into the engines. Not policies: a policy could not be so."""

    def __init__(
        self,
        engines: Mapping[str, SimulatedEngine],
        known: RequestLookup,
        admission: Admission,
        strategy: Strategy = PORTFOLIO[0],
    ) -> None:
        """*engines* as they are at any moment; *known* is a request that is not over, and when its first token came
        (nan: not yet), None for one that is over. As many may wait as *admission* lets wait, and for as long.
        """
        self.held_max, self.hold_s_max = admission.held_max, admission.hold_s_max
        self._engines, self._known, self._strategy = engines, known, strategy
        self._views: dict[str, _View] = {}
        self._sent_s = -inf
        self._waiters: dict[str, _Waiter] = {}

    # ---- admission -----------------------------------------------------------------------

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit, Memory]:
        """Let everyone in, ranked as the strategy says."""
        arrival, views = self._arrival(request), self._look(fleet)
        if self._strategy.order == "lightest":
            rank = (min(_work(view.engine, arrival) for view in views), -request.arrived_s)
        else:
            rank = (self._latest_s(arrival, views), request.arrived_s)
        return Admit(rank), memory

    def _arrival(self, request: Request) -> Arrival:
        known = self._known(request.id)
        assert known is not None
        return known[0]

    def _look(self, fleet: Fleet) -> list[_View]:
        """The candidates; who was sent before this moment is in the engines by now."""
        if fleet.now_s > self._sent_s:
            for view in self._views.values():
                view.coming.clear()
        views: list[_View] = []
        for index in range(len(fleet)):
            engine = self._engines[fleet.backend(index).name]
            if engine.name not in self._views:
                self._views[engine.name] = _View(engine)
            views.append(self._views[engine.name])
        return views

    def _latest_s(self, arrival: Arrival, views: list[_View]) -> float:
        """The last moment at which an engine with nobody else could keep every bound (-inf: none ever could)."""
        latest_s = -inf
        slo, came_s = arrival.request.slo, arrival.came_s
        for view in views:
            sequence = view.engine.preview(arrival)
            first_s, end_s = alone(view.engine.replica, sequence, view.engine.way_s(sequence.prompt_tokens))
            if end_s - first_s <= slo.tpot_s * max(1, sequence.output_tokens - 1):
                latest_s = max(latest_s, came_s + min(slo.ttft_s - first_s, slo.e2e_s - end_s))
        return latest_s

    # ---- routing -----------------------------------------------------------------------

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Where nobody misses, and of those where the one worst off has most left; else wait while that can help."""
        arrival, views = self._arrival(request), self._look(fleet)
        open_to = [index for index, view in enumerate(views) if view.takes]
        if not open_to:
            return Hold(fleet.now_s + _ASK_AGAIN_S, "no engine takes it")
        if not self._strategy.sheds:
            return self._best_effort(arrival, views, open_to, fleet)
        best = self._harmless(arrival, views, open_to, fleet)
        if best >= 0:
            return self._send(arrival, views, best, fleet)
        return self._wait(arrival, views, open_to, fleet)

    def _harmless(self, arrival: Arrival, views: list[_View], open_to: list[int], fleet: Fleet) -> int:
        """The engine on which nobody misses and the one worst off has most left; -1 when there is none."""
        waiter = self._waiters.get(arrival.request.id)
        rates = fleet.prefill_tokens_per_s if self._strategy.reserve else None
        best, least = -1, inf
        for index in open_to:
            view, mark = views[index], views[index].mark()
            if waiter is not None:
                refused = waiter.refused.get(view.engine.name)
                if refused is not None and refused[0] == mark and fleet.now_s - refused[1] < _VALID_S:
                    continue
            outlook = self._outlook(view, arrival, float(rates[index]) if rates is not None else 0.0, fleet.now_s)
            if not outlook.missed and outlook.use < least:
                best, least = index, outlook.use
            elif outlook.missed and waiter is not None:
                waiter.refused[view.engine.name] = (mark, fleet.now_s)
        return best

    def _outlook(self, view: _View, arrival: Arrival, prefill_tokens_per_s: float, now_s: float) -> Outlook:
        """With *arrival*, and with as many prompts to come as *prefill_tokens_per_s* says, unless it would be alone."""
        view.look(now_s, self._known)
        to_come = 0.0 if view.idle else prefill_tokens_per_s * view.engine.replica.prompt_token_s()
        stretch = 1.0 / (1.0 - min(to_come, 1.0 - 1.0 / _STRETCH_MAX))
        after = view.beside(view.engine.preview(arrival))
        shares = shares_used([*view.promised, _promised((arrival, nan))], after, now_s, stretch)
        missed, use = 0, 0.0
        for keeps, share in zip([*view.keeps, True], shares, strict=True):
            if share <= 1.0:
                use = max(use, share)
            elif keeps:
                missed += 1
        if view.fits and not after.fits and not view.idle:
            missed += 1  # somebody would be preempted and computed again
        return Outlook(after.end_s[-1], use, missed)

    def _send(self, arrival: Arrival, views: list[_View], index: int, fleet: Fleet) -> Dispatch:
        view = views[index]
        view.coming.append(view.engine.preview(arrival))
        self._sent_s = fleet.now_s
        self._waiters.pop(arrival.request.id, None)
        return Dispatch(int(fleet.slots[index]), "clairvoyant")

    def _wait(self, arrival: Arrival, views: list[_View], open_to: list[int], fleet: Fleet) -> Choice:
        """Somebody would miss wherever it went just now."""
        request, now_s = arrival.request, fleet.now_s
        waiter = self._waiters.get(request.id)
        if waiter is None:
            until_s = request.arrived_s + self.hold_s_max - _BEFORE_S
            waiter = self._waiters[request.id] = _Waiter(min(self._latest_s(arrival, views), until_s), {})
        if now_s < waiter.latest_s:
            return Hold(min(now_s + _ASK_AGAIN_S, waiter.latest_s), "somebody would miss an SLO wherever it went now")
        if min(request.slo.ttft_s, request.slo.tpot_s, request.slo.e2e_s) == inf:
            return self._best_effort(arrival, views, open_to, fleet)  # nothing was promised but that it is served
        idle = [index for index in open_to if views[index].idle]
        if idle and not fleet.held:
            return self._best_effort(arrival, views, idle, fleet)
        del self._waiters[request.id]
        return Shed(Reason.SATURATED, "its SLO is lost, or would cost another's")

    def _best_effort(self, arrival: Arrival, views: list[_View], among: list[int], fleet: Fleet) -> Dispatch:
        """To where it ends first; of a strategy that minds it, where the fewest miss."""
        ends: list[tuple[int, float, int]] = []
        for index in among:
            outlook = self._outlook(views[index], arrival, 0.0, fleet.now_s)
            ends.append((outlook.missed if self._strategy.sheds else 0, outlook.end_s, index))
        return self._send(arrival, views, min(ends)[2], fleet)


def _promised(known: tuple[Arrival, float] | None) -> Promised:
    if known is None:
        return Promised(0.0, inf, inf, inf, 0.0)
    arrival, had_s = known
    slo = arrival.request.slo
    return Promised(arrival.came_s, slo.ttft_s, slo.tpot_s, slo.e2e_s, had_s)


def _work(engine: SimulatedEngine, arrival: Arrival) -> float:
    """What a request takes of an engine: its prompt where prompts fill steps, and its share of the steps of a typical
    batch; in steps of a single sequence, so that the same request weighs the same at any moment.
    """
    replica, sequence = engine.replica, engine.preview(arrival)
    limits, empty_s = replica.limits, replica.step_s(0, 0, 0, 0.0)
    batch = min(_TYPICAL_BATCH, limits.seqs_max)
    token_s = (replica.step_s(0, 0, limits.chunk_tokens, 0.0) - empty_s) / limits.chunk_tokens
    step_s = replica.step_s(batch, batch * (sequence.prompt_tokens + sequence.output_tokens / 2), 0, 0.0)
    cold = sequence.prompt_tokens - replica.cached_tokens_of(sequence)
    return round((cold * token_s + sequence.output_tokens * step_s / batch) / replica.step_s(1, 0, 0, 0.0), 6)
