"""The engines of a run, as they come, fail, slow down and go; and what they cost meanwhile.

Believes: the pool and the world's faults. Must not know: what the routers decide.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Final, Protocol

from router.core.decisions import Command
from router.core.dispatcher import Dispatcher
from router.core.flight import Failure
from simulator.pool import Member, Pool, Site
from simulator.replica.replica import Replica
from simulator.replica.sequence import Sequence as EngineSequence
from simulator.run.kernel import Kernel
from simulator.workload.arrivals import Arrival
from simulator.world import Fault

REFUSED: Final = Failure("connection refused", backend_fault=True, retryable=True)
RESET: Final = Failure("connection reset", backend_fault=True, retryable=True)
QUEUE_FULL: Final = Failure("refused: the engine's queue is full", backend_fault=False, retryable=True)
TOO_LONG: Final = Failure("refused: prompt too long", backend_fault=False, retryable=False)
_GONE_AFTER_S: Final = 1.0  # how often a draining replica is looked at


class Owner(Protocol):
    """Who sent a sequence and hears of it."""

    def first_token(self, sequence: EngineSequence) -> None:
        """Its first token has come."""
        ...

    def finished(self, sequence: EngineSequence) -> None:
        """Its reply is complete."""
        ...

    def fail(self, lost: tuple[EngineSequence, Failure]) -> None:
        """It is lost."""
        ...


class Router(Owner, Protocol):
    """What the fleet tells a router."""

    core: Dispatcher

    def tell(self, commands: Sequence[Command]) -> None:
        """The core answered to news of the fleet."""
        ...


class SimulatedEngine:
    """A replica as routers see it: behind an API server and a network, with constant delays but for jitter."""

    __slots__ = (
        "_api_jitter",
        "_api_s",
        "_api_token_s",
        "_draw",
        "alive",
        "delay_s",
        "draining",
        "joined",
        "name",
        "ordered_s",
        "paid_s",
        "replica",
        "room_tokens",
        "site",
    )

    def __init__(self, site: Site, replica: Replica, ordered_s: float) -> None:
        """The overheads are the truth's; it is paid for from *ordered_s* on."""
        hidden = site.truth.hidden
        self.name, self.site, self.replica = site.name, site, replica
        self.delay_s = site.member.network_s
        self.room_tokens = site.limits.prompt_tokens_max + 1
        self.alive, self.joined, self.draining = True, False, False
        self.ordered_s, self.paid_s = ordered_s, 0.0
        self._api_s, self._api_token_s, self._api_jitter = hidden.api_s, hidden.api_token_s, hidden.api_jitter
        self._draw = Random(f"{site.truth.seed}/api").random

    def sequence(self, arrival: Arrival, attempt: int, owner: Owner) -> EngineSequence:
        """The request as this engine will run it: its reply ends at its cap, or where the engine has no room."""
        sequence = self.preview(arrival, attempt)
        sequence.owner = owner
        return sequence

    def preview(self, arrival: Arrival, attempt: int = 0) -> EngineSequence:
        """The same, sent by nobody yet."""
        request, length = arrival.request, arrival.output_tokens
        if 0 < request.output_tokens_max < length:
            length = request.output_tokens_max
        room = self.room_tokens - request.prompt_tokens
        sequence = EngineSequence(
            request.id,
            request.prompt_tokens,
            length if length < room else max(1, room),
            attempt,
            request.priority,
            arrival.known_prefix or request.prefix,
            request.prefix_block_tokens,
            request.prompt_tokens + arrival.output_tokens if arrival.known_prefix else 0,
        )
        if request.output_tokens_max:
            sequence.reply_tokens_max = max(sequence.output_tokens, min(request.output_tokens_max, room))
        return sequence

    def way_s(self, prompt_tokens: int) -> float:
        """Seconds from the router to the engine's queue, on average: network and API server."""
        return self.delay_s + self._api_s + self._api_token_s * prompt_tokens

    def accept(self, sequence: EngineSequence, now_s: float) -> Failure | None:
        """Send it: it is in the engine's queue after the network and the API server. Or why not."""
        replica = self.replica
        if not self.alive:
            return REFUSED
        if sequence.prompt_tokens >= self.room_tokens:
            return TOO_LONG
        if replica.waiting_at_most >= replica.limits.queue_max:
            return QUEUE_FULL
        api_s = self._api_s * (1.0 + self._api_jitter * (2.0 * self._draw() - 1.0))
        replica.add(sequence, now_s + self.delay_s + api_s + self._api_token_s * sequence.prompt_tokens)
        return None

    def cost(self, until_s: float) -> float:
        """USD for it so far."""
        seconds = self.paid_s if self.ordered_s < 0 else self.paid_s + until_s - self.ordered_s
        return self.site.backend.price_per_hour / 3600 * seconds


def _first_token(sequence: EngineSequence) -> None:
    sequence.owner.first_token(sequence)


def _finished(sequence: EngineSequence) -> None:
    sequence.owner.finished(sequence)


class ReplicaFleet:
    """Every engine there was, by name; ``routers`` hear of what changes, health checks ``health_s`` late."""

    def __init__(self, pool: Pool, kernel: Kernel, seed: int, health_s: float) -> None:
        """No engine yet: ``start`` them."""
        self.pool, self.kernel, self.seed, self.health_s = pool, kernel, seed, health_s
        self.engines: dict[str, SimulatedEngine] = {}
        self.routers: list[Router] = []
        self.log: list[tuple[float, str]] = []  # what happened, for reports

    # ---- coming and going --------------------------------------------------------

    def start(self, site: Site, cold_s: float = 0.0) -> SimulatedEngine:
        """An engine is ordered; the routers hear of it *cold_s* later."""
        replica = Replica(site.name, site.truth, site.limits, self.kernel, _first_token, _finished)
        engine = self.engines[site.name] = SimulatedEngine(site, replica, self.kernel.now_s)
        if cold_s:
            engine.alive = False
            self.kernel.at(self.kernel.now_s + cold_s, self._join, engine)
        else:
            self._join(engine)
        return engine

    def _join(self, engine: SimulatedEngine) -> None:
        if engine.ordered_s < 0:
            return
        engine.alive = engine.joined = True
        self._told(lambda core, now_s: core.backend_joined(engine.site.backend, now_s))

    def another(self, member: Member, cold_s: float) -> SimulatedEngine:
        """One more replica of *member*, under a name of its own."""
        number = len([1 for engine in self.engines.values() if engine.site.member.name == member.name])
        single = replace(member, name=f"{member.name}-{number}", count=1)
        site = replace(self.pool.site(single, single.name, self.seed), member=member)
        site = replace(site, backend=replace(site.backend, variant=member.name))
        self._note(f"{site.name} ordered")
        return self.start(site, cold_s)

    def drain(self, engine: SimulatedEngine) -> None:
        """Nothing new goes there; when it is empty it is given back."""
        engine.draining = True
        self._note(f"{engine.name} draining")
        self._told(lambda core, now_s: core.backend_draining(engine.name, True, now_s))
        self._look(engine)

    def _look(self, engine: SimulatedEngine) -> None:
        now_s = self.kernel.now_s
        if engine.replica.running or engine.replica.waiting_at_most:
            self.kernel.at(now_s + _GONE_AFTER_S, self._look, engine)
            return
        if engine.ordered_s >= 0:
            engine.paid_s += now_s - engine.ordered_s
            engine.ordered_s, engine.alive = -1.0, False
            self._told(lambda core, now_s: core.backend_left(engine.name, now_s))

    # ---- faults -----------------------------------------------------------------------

    def plan(self, faults: tuple[Fault, ...]) -> None:
        """Have every fault happen in its time."""
        begin = {"crash": self._crash, "slow": self._slow, "drain": self._put_aside}
        end = {"crash": self._recover, "slow": self._quicken, "drain": self._take_back}
        for fault in faults:
            self.kernel.at(fault.at_s, begin[fault.kind], fault)
            if fault.for_s < float("inf"):
                self.kernel.at(fault.at_s + fault.for_s, end[fault.kind], fault)

    def _crash(self, fault: Fault) -> None:
        engine = self.engines[fault.backend]
        engine.alive = False
        self._note(f"{engine.name} crashed")
        for sequence in engine.replica.abandon():
            self.kernel.at(self.kernel.now_s + engine.delay_s, sequence.owner.fail, (sequence, RESET))
        self._health(engine)

    def _recover(self, fault: Fault) -> None:
        engine = self.engines[fault.backend]
        engine.alive = True
        self._note(f"{engine.name} is back")
        self._health(engine)

    def _health(self, engine: SimulatedEngine) -> None:
        self.kernel.at(self.kernel.now_s + self.health_s, self._checked, (engine, engine.alive))

    def _checked(self, seen: tuple[SimulatedEngine, bool]) -> None:
        engine, up = seen
        self._told(lambda core, now_s: core.backend_health(engine.name, up, now_s))

    def _slow(self, fault: Fault) -> None:
        self._note(f"{fault.backend} is {fault.factor:g} times slower")
        self.engines[fault.backend].replica.slow(fault.factor)

    def _quicken(self, fault: Fault) -> None:
        self._note(f"{fault.backend} is as fast as ever")
        self.engines[fault.backend].replica.slow(1.0)

    def _put_aside(self, fault: Fault) -> None:
        self._note(f"{fault.backend} draining")
        self._told(lambda core, now_s: core.backend_draining(fault.backend, True, now_s))

    def _take_back(self, fault: Fault) -> None:
        self._note(f"{fault.backend} takes requests again")
        self._told(lambda core, now_s: core.backend_draining(fault.backend, False, now_s))

    def _told(self, say: Callable[[Dispatcher, float], Sequence[Command]]) -> None:
        for router in self.routers:
            router.tell(say(router.core, self.kernel.now_s))

    def _note(self, what: str) -> None:
        self.log.append((self.kernel.now_s, what))

    # ---- what can be asked ---------------------------------------------------------------

    def cost(self, until_s: float) -> float:
        """USD for all of it."""
        return sum(engine.cost(until_s) for engine in self.engines.values())

    def serving(self) -> list[SimulatedEngine]:
        """Those that are paid for and not on their way out."""
        return [engine for engine in self.engines.values() if engine.ordered_s >= 0 and not engine.draining]
