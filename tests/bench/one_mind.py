"""Ways for several routers to act as one, beside one router: `python -m tests.bench.one_mind`. Simulated.

For each trace the highest rate at which one router attains the goal is found first. Then several routers play the same
trace at a share of that rate, in each of these ways:

views    each router reads what the others have in flight every 100 ms
load     each sends what changed of its load to all others at once, over connections of their own: one hop
prefixes ... and the prompts that it sent
held     ... and what it holds
mesh     ... and what it measured: everything, as the gateway does
pubsub   the same through a store that passes messages on: two hops
owner    views; a send waits for a grant of the one router that owns the backend, which refuses where another was
         granted that the sender did not know of: it learns of that and decides anew
reserve  the same at a store, for every send

The figure is the share of requests that met their SLO, in percent. It is at least the goal where so many routers reach
that share of one router's rate. All but `views`, `mesh` and `pubsub` subclass parts of the simulator, so they need
interpreted modules.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from time import process_time
from typing import Final

from router.core.decisions import Send
from router.core.dispatcher import Dispatcher
from router.core.flight import Failure, FailureKind
from router.core.peer_change import PeerChange
from simulator.commands.capacity import highest
from simulator.experiment import Case, Source
from simulator.experiment.options import admission_of, routing_of
from simulator.pool import Member, Pool
from simulator.run.play import Run
from simulator.run.result_table import ResultTable
from simulator.run.router import SimulatedRouter
from simulator.run.sharing import Sharing
from simulator.workload.arrivals import parse_slo
from simulator.world import Fault, World

HOP_S: Final = 0.001
VIEWS_S: Final = 0.1
MODES: Final = ("views", "load", "prefixes", "held", "mesh", "pubsub", "owner", "reserve")
POLICY: Final = "slo_headroom"
PRECISION: Final = 0.015  # of a rate
CONFLICTS_MOST: Final = 2  # after which a request is sent whatever others were granted
AZURE: Final = Path("../shared/data/traces/AzureLLMInferenceTrace_conv.csv.gz")
FOUR: Final = Pool(
    members=(Member("a100", "a100-80g-sxm", count=4),), classes=(parse_slo("ttft=1s,tpot=60ms"),), name="four A100"
)
ONE_SLOW: Final = replace(
    FOUR,
    members=(Member("a100", "a100-80g-sxm", count=3), Member("slow", "a100-80g-sxm", count=1)),
    world=World(faults=(Fault(0.0, "slow", "slow", factor=3.0),)),
    name="four A100, one of them slow",
)
TRACES: Final[dict[str, tuple[Pool, str]]] = {
    "azure": (FOUR, str(AZURE)),
    "chat": (FOUR, "gen:gamma:rate=24,requests={requests},cv=3"),
    "code": (FOUR, "gen:gamma:rate=12,requests={requests},cv=3,lengths=azure-code"),
    "sessions": (FOUR, "gen:sessions:turns=5,think=10s,system=1500,rate=1.5,requests={requests}"),
    "alike": (FOUR, "gen:poisson:rate=30,requests={requests},prompt=1000,output=150"),
    "slow": (ONE_SLOW, "gen:poisson:rate=24,requests={requests},prompt=1000,output=150"),
}


class LoadAlone(Sharing):
    """Shares load at once, and nothing else."""

    def passed(self, change: PeerChange) -> PeerChange:
        return replace(change, prompts=(), held=None, outcomes=(), replies=(), advances=())


class WithPrefixes(Sharing):
    """... and prompts."""

    def passed(self, change: PeerChange) -> PeerChange:
        return replace(change, held=None, outcomes=(), replies=(), advances=())


class WithHeld(Sharing):
    """... and what is held."""

    def passed(self, change: PeerChange) -> PeerChange:
        return replace(change, outcomes=(), replies=())


PARTLY: Final[dict[str, type[Sharing]]] = {"load": LoadAlone, "prefixes": WithPrefixes, "held": WithHeld}


class PartialRun(Run):
    """A run whose routers share a part of what they might."""

    shares: type[Sharing]

    def sharing(self) -> Sharing:
        return self.shares(self.routers, self.kernel, self.world)


class Grants:
    """What an arbiter has granted: when, where and to whom, and until when each router knows of it."""

    def __init__(self) -> None:
        self.routers: list[SimulatedRouter] = []
        self._granted: dict[str, list[tuple[float, str]]] = {}
        self._known_s: dict[tuple[str, str], float] = {}
        self.asked = self.conflicts = 0

    def take(self, router: SimulatedRouter, backend: str) -> bool:
        """Grant a send, unless another was granted of which neither a view nor an answer has spoken."""
        self.asked += 1
        now_s = router.kernel.now_s
        known_s = max(self._known_s.get((router.name, backend), 0.0), now_s - VIEWS_S)
        self._known_s[router.name, backend] = now_s
        for when_s, name in reversed(self._granted.get(backend, ())):
            if when_s <= known_s:
                break
            if name != router.name:
                self.conflicts += 1
                return False
        self.count(router, backend)
        return True

    def count(self, router: SimulatedRouter, backend: str) -> None:
        """The router sends there."""
        self._granted.setdefault(backend, []).append((router.kernel.now_s, router.name))


class GrantedRouter(SimulatedRouter):
    """A router whose every send waits for a grant."""

    grants: Grants
    own_share = 0.0  # of backends, for which it grants itself

    def _send(self, send: Send) -> None:
        hop_s = HOP_S * (1.0 - self.own_share)
        self.kernel.at(self.kernel.now_s + hop_s, self._at_arbiter, (send, hop_s))

    def _at_arbiter(self, asked: tuple[Send, float]) -> None:
        send, hop_s = asked
        granted = self.grants.take(self, send.backend)
        self.kernel.at(self.kernel.now_s + hop_s, self._on_answer, (send, granted))

    def _on_answer(self, answer: tuple[Send, bool]) -> None:
        send, granted = answer
        if not self.has(send.request_id):
            return
        if granted or send.attempt > CONFLICTS_MOST:
            if not granted:
                self.grants.count(self, send.backend)
            super()._send(send)
            return
        for other in self.grants.routers:
            if other is not self:
                self.core.on_peer_load(other.name, other.core.loads(), self.kernel.now_s)
        flight = self.core._flights[send.request_id]
        flight.tried = flight.tried[:-1]  # nothing was sent there
        why = Failure("another router was granted it", backend_fault=False, kind=FailureKind.UNSUPPORTED)
        self.perform(self.core.failed(send.request_id, send.attempt, why, self.kernel.now_s))


class GrantedRun(Run):
    """A run whose routers ask for grants."""

    own_share = 0.0

    def router(self, name: str, core: Dispatcher) -> SimulatedRouter:
        made = GrantedRouter(name, core, self.kernel, self.fleet.engines, self._on_end)
        made.own_share = self.own_share
        made.grants = self.__dict__.setdefault("grants", Grants())
        made.grants.routers.append(made)
        return made


class OwnedRun(GrantedRun):
    """Each router owns an equal share of the backends."""

    own_share = 0.25


@dataclass(frozen=True, slots=True)
class Played:
    """One run: the share that met the SLO in percent, how many were held, and the CPU time that it took."""

    attained: float
    held: int
    cpu_s: float


def case_of(trace: str, requests: int, seed: int) -> Case:
    """One router before the pool of a trace, at the trace's own rate."""
    pool, source = TRACES[trace]
    given = Source((source.format(requests=requests),), limit=requests)
    return Case(given, pool, POLICY, seed=seed)


def world_of(case: Case, mode: str, routers: int) -> World:
    """The world with so many routers that share in this way."""
    push_s = {"pubsub": 2 * HOP_S, "views": inf, "owner": inf, "reserve": inf}.get(mode, HOP_S)
    return replace(case.pool.world, routers=routers, sync_s=VIEWS_S, push_s=push_s)


def played(case: Case, mode: str, routers: int) -> Played:
    """Play the case with several routers."""
    began_s = process_time()
    pool = replace(case.pool, world=world_of(case, mode, routers))
    if mode in ("views", "mesh", "pubsub"):
        run = replace(case, pool=pool).play()
        return Played(100.0 * float(run.table.met().mean()), run.held, process_time() - began_s)
    if mode in PARTLY:
        partial = PartialRun(pool, case.seed)
        partial.shares = PARTLY[mode]
        made: Run = partial
    else:
        made = (OwnedRun if mode == "owner" else GrantedRun)(pool, case.seed)
    made.open_routers(routing_of(case.policy), admission_of(case.admission), pool.limits)
    made.play(case.source.arrivals(pool, case.seed), None)
    held = sum(router.held for router in made.routers)
    return Played(100.0 * float(made.table.met().mean()), held, process_time() - began_s)


def at(case: Case, rate: float) -> Case:
    """The same at a multiple of its rate."""
    return replace(case, source=replace(case.source, rate=case.source.rate * rate))


def attains(case: Case, requests: int, goal: float) -> bool:
    """Whether one router does; the run ends once it cannot."""
    misses = (1.0 - goal) * requests

    def missed(seen: ResultTable) -> int:
        return len(seen) - int(seen.met().sum())

    return missed(case.play(stop=lambda seen: missed(seen) > misses).table) <= misses


def rates_of(traces: Sequence[str], requests: int, seed: int, goal: float) -> dict[str, float]:
    """By trace, the multiple of its rate at which one router attains the goal."""

    def rate_of(case: Case) -> float:
        return highest(lambda rate: attains(at(case, rate), requests, goal), PRECISION)

    return {trace: rate_of(case_of(trace, requests, seed)) for trace in traces}


def table(
    rates: dict[str, float], sizes: Sequence[tuple[int, float]], modes: Sequence[str], requests: int, seed: int,
    line: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """A line a trace and size, a column a mode."""
    line(f"{'trace':<10}{'routers':>8}{'rate':>8}" + "".join(f"{mode:>18}" for mode in modes))
    for trace, rate in rates.items():
        for routers, share in sizes:
            case = at(case_of(trace, requests, seed), rate * share)
            cells = [played(case, mode, routers) for mode in modes]
            texts = [f"{each.attained:.2f} ({each.held}, {each.cpu_s:.0f} s)" for each in cells]
            line(f"{trace:<10}{routers:>8}{rate * share:>8.3f}" + "".join(f"{text:>18}" for text in texts))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", choices=tuple(TRACES), action="append")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--routers", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--share", type=float, nargs="*", default=[0.97, 0.93], help="of one router's rate, by size")
    parser.add_argument("--rate", type=float, default=0.0, help="of one router, as a multiple; 0: it is searched for")
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--goal", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    traces = given.trace or [trace for trace in TRACES if trace != "azure" or AZURE.exists()]
    if given.rate:
        rates = dict.fromkeys(traces, given.rate)
    else:
        rates = rates_of(traces, given.requests, given.seed, given.goal)
    sizes = list(zip(given.routers, given.share, strict=True))
    table(rates, sizes, given.mode or MODES, given.requests, given.seed, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
