"""The engines of a run: how they start, fail, slow down and stop, and what they cost.

Depends on the pool and the faults of the world. Must not depend on the routers' decisions.
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
from simulator.run.choices import SequenceListener, multiply, share
from simulator.run.kernel import Kernel
from simulator.workload.arrivals import Arrival
from simulator.world import Fault

REFUSED: Final = Failure("connection refused", backend_fault=True, retryable=True)
RESET: Final = Failure("connection reset", backend_fault=True, retryable=True)
QUEUE_FULL: Final = Failure("refused: the engine's queue is full", backend_fault=False, retryable=True)
TOO_LONG: Final = Failure("refused: prompt too long", backend_fault=False, retryable=False)
_DRAIN_CHECK_S: Final = 1.0  # period of checks whether a draining replica is empty


class Router(SequenceListener, Protocol):
    """A router as the fleet sees it."""

    core: Dispatcher

    def on_commands(self, commands: Sequence[Command]) -> None:
        """The dispatcher returned *commands* for an event of the fleet."""
        ...


class SimulatedEngine:
    """A replica behind an API server and a network, with constant delays except for jitter."""

    __slots__ = (
        "_adapters",
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
        """The overheads come from the truth; costs count from *ordered_s* on."""
        hidden = site.truth.hidden
        self.name, self.site, self.replica = site.name, site, replica
        self.delay_s = site.member.network_s
        self._adapters = frozenset(site.member.adapters)
        self.room_tokens = site.limits.prompt_tokens_max + 1
        self.alive, self.joined, self.draining = True, False, False
        self.ordered_s, self.paid_s = ordered_s, 0.0
        self._api_s, self._api_token_s, self._api_jitter = hidden.api_s, hidden.api_token_s, hidden.api_jitter
        self._draw = Random(f"{site.truth.seed}/api").random

    def sequence(self, arrival: Arrival, attempt: int, listener: SequenceListener) -> EngineSequence:
        """The request as this engine runs it. The reply ends at its cap, or where the engine has no room for it."""
        sequence = self.preview(arrival, attempt)
        sequence.listener = listener
        if arrival.request.sequences > 1:
            multiply(sequence, arrival.request, arrival.output_tokens, listener)
        return sequence

    def preview(self, arrival: Arrival, attempt: int = 0) -> EngineSequence:
        """The same sequence without a listener; of several, the first."""
        request, length, prompt_tokens = arrival.request, arrival.output_tokens, arrival.request.prompt_tokens
        if request.sequences > 1:
            length, prompt_tokens = share(length, 0, request.sequences), share(prompt_tokens, 0, request.prompts)
        if 0 < request.output_tokens_max < length:
            length = request.output_tokens_max
        room = self.room_tokens - prompt_tokens
        sequence = EngineSequence(
            request.id,
            prompt_tokens,
            length if length < room else max(1, room),
            attempt,
            request.priority,
            arrival.known_prefix or request.prefix,
            request.prefix_block_tokens,
            request.prompt_tokens + arrival.output_tokens if arrival.known_prefix else 0,
        )
        sequence.ends_itself = length < min(request.output_tokens_max or room, room)
        if self._adapters and request.model in self._adapters:
            sequence.adapter = request.model
            sequence.prefix = tuple([(request.model, block) for block in sequence.prefix])  # an adapter has its own KV
        if request.output_tokens_max or self.site.limits.no_evict:  # without a cap, all that the engine has room for
            sequence.reply_tokens_max = max(sequence.output_tokens, min(request.output_tokens_max or room, room))
        return sequence

    def send_s(self, prompt_tokens: int) -> float:
        """Mean seconds from the router to the engine's queue: network and API server."""
        return self.delay_s + self._api_s + self._api_token_s * prompt_tokens

    def accept(self, sequence: EngineSequence, now_s: float) -> Failure | None:
        """Send the sequence into the engine's queue, after network and API server. Returns the failure if it is
        refused.
        """
        replica = self.replica
        if not self.alive:
            return REFUSED
        if sequence.prompt_tokens >= self.room_tokens:
            return TOO_LONG
        if replica.refuses(1 + len(sequence.siblings)):
            return QUEUE_FULL
        api_s = self._api_s * (1.0 + self._api_jitter * (2.0 * self._draw() - 1.0))
        reached_s = now_s + self.delay_s + api_s + self._api_token_s * sequence.prompt_tokens
        replica.add(sequence, reached_s)
        for sibling in sequence.siblings:
            replica.add(sibling, reached_s)
        return None

    def cost(self, until_s: float) -> float:
        """USD spent on it until *until_s*."""
        seconds = self.paid_s if self.ordered_s < 0 else self.paid_s + until_s - self.ordered_s
        return self.site.backend.price_per_hour / 3600 * seconds


def _first_token(sequence: EngineSequence) -> None:
    sequence.listener.on_first_token(sequence)


def _finished(sequence: EngineSequence) -> None:
    sequence.listener.on_finished(sequence)


class ReplicaFleet:
    """All engines of the run, by name. Changes are passed to ``routers``; health checks see them ``health_s`` later."""

    def __init__(self, pool: Pool, kernel: Kernel, seed: int, health_s: float) -> None:
        """No engine yet; ``start`` adds one."""
        self.pool, self.kernel, self.seed, self.health_s = pool, kernel, seed, health_s
        self.engines: dict[str, SimulatedEngine] = {}
        self.routers: list[Router] = []
        self.log: list[tuple[float, str]] = []  # events, for reports

    # ---- coming and going --------------------------------------------------------

    def start(self, site: Site, cold_s: float = 0.0) -> SimulatedEngine:
        """Order an engine; it joins the routers after *cold_s*."""
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
        self._notify(lambda core, now_s: core.backend_joined(engine.site.backend, now_s))

    def add_replica(self, member: Member, cold_s: float) -> SimulatedEngine:
        """Order one more replica of *member*, under a name of its own."""
        number = len([1 for engine in self.engines.values() if engine.site.member.name == member.name])
        while f"{member.name}-{number}" in self.engines:  # such as a member of that name
            number += 1
        single = replace(member, name=f"{member.name}-{number}", count=1)
        site = replace(self.pool.site(single, single.name, self.seed), member=member)
        site = replace(site, backend=replace(site.backend, variant=member.variant or member.name))
        self._note(f"{site.name} ordered")
        return self.start(site, cold_s)

    def drain(self, engine: SimulatedEngine) -> None:
        """Stop sending to the engine, and remove it once it is empty; one that still starts is cancelled."""
        engine.draining = True
        self._note(f"{engine.name} draining")
        if not engine.joined:
            engine.paid_s += self.kernel.now_s - engine.ordered_s
            engine.ordered_s = -1.0
            return
        self._notify(lambda core, now_s: core.backend_draining(engine.name, True, now_s))
        self._remove_when_empty(engine)

    def _remove_when_empty(self, engine: SimulatedEngine) -> None:
        now_s = self.kernel.now_s
        if engine.replica.running or engine.replica.waiting_max:
            self.kernel.at(now_s + _DRAIN_CHECK_S, self._remove_when_empty, engine)
            return
        if engine.ordered_s >= 0:
            engine.paid_s += now_s - engine.ordered_s
            engine.ordered_s, engine.alive = -1.0, False
            self._notify(lambda core, now_s: core.backend_left(engine.name, now_s))

    # ---- faults -----------------------------------------------------------------------

    def schedule(self, faults: tuple[Fault, ...]) -> None:
        """Schedule begin and end of every fault."""
        begin = {"crash": self._crash, "slow": self._begin_slow, "drain": self._begin_drain}
        end = {"crash": self._recover, "slow": self._end_slow, "drain": self._end_drain}
        for fault in faults:
            self.kernel.at(fault.at_s, begin[fault.kind], fault)
            if fault.for_s < float("inf"):
                self.kernel.at(fault.at_s + fault.for_s, end[fault.kind], fault)

    def _crash(self, fault: Fault) -> None:
        engine = self.engines[fault.backend]
        engine.alive = False
        self._note(f"{engine.name} crashed")
        for sequence in engine.replica.abandon():
            self.kernel.at(self.kernel.now_s + engine.delay_s, sequence.listener.on_failed, (sequence, RESET))
        self._schedule_health_check(engine)

    def _recover(self, fault: Fault) -> None:
        engine = self.engines[fault.backend]
        engine.alive = True
        self._note(f"{engine.name} is back")
        self._schedule_health_check(engine)

    def _schedule_health_check(self, engine: SimulatedEngine) -> None:
        self.kernel.at(self.kernel.now_s + self.health_s, self._on_health_check, (engine, engine.alive))

    def _on_health_check(self, seen: tuple[SimulatedEngine, bool]) -> None:
        engine, up = seen
        self._notify(lambda core, now_s: core.backend_health(engine.name, up, now_s))

    def _begin_slow(self, fault: Fault) -> None:
        self._note(f"{fault.backend} is {fault.factor:g} times slower")
        self.engines[fault.backend].replica.slow(fault.factor)

    def _end_slow(self, fault: Fault) -> None:
        self._note(f"{fault.backend} is back to its normal speed")
        self.engines[fault.backend].replica.slow(1.0)

    def _begin_drain(self, fault: Fault) -> None:
        self._note(f"{fault.backend} draining")
        self._notify(lambda core, now_s: core.backend_draining(fault.backend, True, now_s))

    def _end_drain(self, fault: Fault) -> None:
        self._note(f"{fault.backend} no longer draining")
        self._notify(lambda core, now_s: core.backend_draining(fault.backend, False, now_s))

    def _notify(self, say: Callable[[Dispatcher, float], Sequence[Command]]) -> None:
        for router in self.routers:
            router.on_commands(say(router.core, self.kernel.now_s))

    def _note(self, what: str) -> None:
        self.log.append((self.kernel.now_s, what))

    # ---- queries ------------------------------------------------------------------------

    def cost(self, until_s: float) -> float:
        """USD spent on all engines until *until_s*."""
        return sum(engine.cost(until_s) for engine in self.engines.values())

    def serving(self) -> list[SimulatedEngine]:
        """The engines that are paid for and not draining."""
        return [engine for engine in self.engines.values() if engine.ordered_s >= 0 and not engine.draining]
