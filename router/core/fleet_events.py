"""Events of the fleet: backends join, leave, fail and recover, engines report, other routers publish.

Every number that comes in is checked (``border.py``) before it reaches the ledger and the belief. After an event that
may have made room, those who wait are decided anew; how is the dispatcher's, which is one of these and adds the life
of a request. Must not depend on policies, nor on requests in flight.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from router.core import border
from router.core.advances import Advances
from router.core.belief import Belief
from router.core.decisions import Command
from router.core.ejection import BackendFailures, Ejection
from router.core.errors import DOUBTFUL, DownReason, Implausible
from router.core.explain import Explanations
from router.core.held_lines import HeldLine, PeersHeld
from router.core.ledger import Ledger
from router.core.outbox import Outbox
from router.core.peer_change import NO_CHANGE, PeerChange
from router.core.refusals import Refusal, Refusals
from router.core.score import TRUSTED_AFTER, Score
from router.core.types import Backend, EngineReport, Load


class FleetEvents(ABC):
    """What is known of the fleet, and the events that change it."""

    def __init__(self, explained: int) -> None:
        """``explained``: the last so many choices are remembered."""
        self.ledger = Ledger()
        self.outbox = Outbox(self.ledger.table, self.ledger.roster)
        self._held_sent: tuple[HeldLine, ...] = ()
        self._held_elsewhere = PeersHeld()
        self._advances = Advances()
        self.belief = Belief()
        self.dropped_numbers = border.DroppedNumbers()
        self._now_s = 0.0
        self._explanations = Explanations(explained)
        self._ejection = Ejection()
        self._refusals = Refusals(self.ledger.roster)

    @abstractmethod
    def _serve_held(self, now_s: float, model: str | None = None, slot: int = -1) -> Sequence[Command]:
        """Room may have appeared: for one model and others of the backend in *slot*, or (None) for any."""

    @abstractmethod
    def _held_lines(self) -> tuple[HeldLine, ...]:
        """What is held here, for peers."""

    @abstractmethod
    def _advances_here(self) -> Mapping[int, tuple[float, float]]:
        """How far this router has advanced the lanes of its admission policy, and their weights."""

    @abstractmethod
    def _on_advances(self, grown: Mapping[int, tuple[float, float]], now_s: float) -> None:
        """A peer has advanced lanes by so much more."""

    @abstractmethod
    def _on_ejection_elsewhere(self, backend: str) -> None:
        """Another router has ejected a backend of this one's."""

    def _time(self, now_s: float) -> float:
        """The time of an event, as every event's method begins with it; the last one where the clock went back."""
        if self._now_s <= now_s < border.FAR_S:
            self._now_s = now_s
            return now_s
        self.dropped_numbers.add(border.CLOCK, "", f"{now_s} s after {self._now_s} s")
        return self._now_s

    # -- backends ------------------------------------------------------------------------------------------------

    def backend_joined(self, backend: Backend, now_s: float) -> Sequence[Command]:
        """A backend is there, or its facts changed; it is taken to be up until a health check fails. One whose
        physics are implausible does not join.
        """
        now_s, plausible = self._time(now_s), border.backend(backend, self.dropped_numbers)
        if plausible is None:
            return ()
        roster = self.ledger.roster
        at = roster.slot(plausible.name)
        known = roster.backends[at] if at is not None else None
        slot = self.ledger.join(plausible, now_s)
        if known != plausible:
            if known is not None and _same_engine(known, plausible):
                self.belief.serves(slot, plausible)
            else:
                self.belief.joined(slot, plausible)
            self._refusals.forget(plausible.name)
            self._explanations.fleet_changed()
        return self._serve_held(now_s)

    def backend_left(self, name: str, now_s: float) -> Sequence[Command]:
        """A backend is gone for good; the shell fails its open attempts one by one."""
        now_s = self._time(now_s)
        self._refusals.forget(name)
        self.ledger.leave(name)
        self._explanations.fleet_changed()
        self._ejection.leave(name)
        return self._serve_held(now_s)

    def backend_health(self, name: str, up: bool, now_s: float, reason: DownReason | None = None) -> Sequence[Command]:
        """A health check's answer changed; ``reason``: why the backend is down, where that is known. One that is down
        for a reason that says little of it is tried all the same when no other backend is up.
        """
        now_s = self._time(now_s)
        slot = self.ledger.roster.slot(name)
        if slot is not None:
            self.ledger.roster.mark_doubtful(slot, not up and reason in DOUBTFUL)
        if up and slot is not None and not self.ledger.roster.is_up(slot):
            self.belief.restarted(slot)
            self._ejection.restarted(name)  # one crash that cut many streams was no row of faults
            self._refusals.forget(name)
            return self._mark(name, now_s, up=True, ejected=False)
        return self._mark(name, now_s, up=up)

    def backend_draining(self, name: str, draining: bool, now_s: float) -> Sequence[Command]:
        """Send nothing new there (or do so again); what runs there runs on."""
        return self._mark(name, self._time(now_s), draining=draining)

    def _mark(self, name: str, now_s: float, **state: bool) -> Sequence[Command]:
        slot = self.ledger.roster.slot(name)
        if slot is None:
            return ()
        self.ledger.mark_state(slot, **state)
        return self._serve_held(now_s)

    @property
    def failures(self) -> Mapping[str, BackendFailures]:
        """What attempts on each backend failed of; none for one on which none has."""
        return self._ejection.by_backend

    def refusals(self, name: str) -> tuple[Refusal, ...]:
        """What a backend is not chosen for because it refused it."""
        return self._refusals.of(name)

    # -- engines' reports ----------------------------------------------------------------------------------------

    def probe_started(self, name: str, now_s: float) -> None:
        """The shell sends this engine a probe."""
        slot = self.ledger.roster.slot(name)
        if slot is not None:
            self.ledger.reports.probe_started(slot, self._time(now_s))

    def adapters_reported(self, name: str, running: Sequence[str], places: int, now_s: float) -> Sequence[Command]:
        """The engine runs requests for these of its adapters and has places for so many at once."""
        self._time(now_s)
        slot = self.ledger.roster.slot(name)
        backend = self.ledger.roster.backends[slot] if slot is not None else None
        if slot is not None and backend is not None:
            self.ledger.adapters.reported(slot, [each for each in running if each in backend.adapters], places)
        return ()

    def adapters_listed(self, name: str, listed: Sequence[str], asked_s: float, now_s: float) -> Sequence[Command]:
        """The engine lists these adapters as loaded, in an answer to what was sent at ``asked_s``. Those that it had
        refused before are offered again.
        """
        now_s = self._time(now_s)
        again = [each for each in self._refusals.of(name) if each.what in listed and each.since_s < asked_s]
        for each in again:
            self._refusals.offered(each)
        return self._serve_held(now_s) if again else ()

    def reported(self, name: str, report: EngineReport, now_s: float) -> Sequence[Command]:
        """The engine's answer to a probe."""
        now_s, slot = self._time(now_s), self.ledger.roster.slot(name)
        plausible = border.report(report, name, now_s, self.dropped_numbers) if slot is not None else None
        if slot is None or plausible is None:
            return ()
        roster, newest = self.ledger.roster, self.ledger.reports.reported(slot, plausible, now_s)
        if newest and plausible.asleep != roster.sleeps(slot):
            roster.mark_sleep(slot, plausible.asleep)
            self.ledger.prefixes.forget(slot)  # an engine gives its KV cache up when it goes to sleep
        self.belief.reported(slot, plausible.prefix_hit_rate)
        return self._serve_held(now_s)

    # -- other routers -------------------------------------------------------------------------------------------

    def on_peer_load(self, peer: str, loads: Mapping[str, Load], now_s: float) -> Sequence[Command]:
        """What another router has in flight, by backend name; replaces its last message."""
        now_s = self._time(now_s)
        self.ledger.peers.on_peer_load(peer, border.loads(loads, peer, self.dropped_numbers), now_s)
        self._held_elsewhere.keep(self.ledger.peers.sending)
        return self._serve_held(now_s)

    def on_peer_change(self, peer: str, change: PeerChange, now_s: float) -> Sequence[Command]:
        """What another router has in flight where that changed, sent at the moment of the change; what it hints at."""
        now_s, roster = self._time(now_s), self.ledger.roster
        change = border.peer_change(change, peer, self.dropped_numbers)
        self.ledger.peers.on_peer_change(peer, change, now_s)
        for prompt in change.prompts:
            slot = roster.slot(prompt.backend)
            if slot is not None and roster.is_up(slot):
                self.ledger.remember_blocks(slot, prompt.blocks, prompt.block_tokens)
        for name in change.ejected:
            if roster.slot(name) is not None:
                self._on_ejection_elsewhere(name)
        self._learn_from(change)
        whole = change.whole and change.part == 0
        grown = self._advances.grown(peer, change.advances, whole=whole) if change.advances or whole else {}
        if grown:
            self._on_advances(grown, now_s)
        moved = change.held is not None and self._held_elsewhere.replace(peer, change.held, now_s)
        return self._serve_held(now_s) if change.work or moved else ()

    def _learn_from(self, change: PeerChange) -> None:
        """Fold in what a peer measured, of backends and models that are here."""
        roster = self.ledger.roster
        for outcome in change.outcomes:
            slot = roster.slot(outcome.backend)
            if slot is not None:
                self.belief.learn_from_peer(slot, outcome)
        for reply in change.replies:
            if roster.serves(reply.model):
                self.belief.lengths.learn_from_peer(reply)

    def own_change(self, now_s: float, *, whole: bool, part: int = 0, parts: int = 1) -> PeerChange | None:
        """What peers have not been sent of this router (None: nothing), or everything that it has in flight and holds,
        which may be in parts. To be called by the shell, which sends it at once.
        """
        first = whole and part == 0
        if first:
            self.belief.evidence.renew(len(self.ledger.peers.sending))
        change = self.outbox.whole(part, parts) if whole else self.outbox.changes()
        lines = self._held_lines()
        held: tuple[HeldLine, ...] | None = None
        advances = self._advances.to_send(self._advances_here(), whole=first)
        if first or lines != self._held_sent:
            self._held_sent, held = lines, tuple([line.later(-now_s) for line in lines])
        if held is None and not self.belief.evidence and not advances:
            return change
        outcomes, replies = self.belief.evidence.take()
        return replace(change or NO_CHANGE, held=held, outcomes=outcomes, replies=replies, advances=advances)

    def forget_silent_peers(self, now_s: float) -> Sequence[Command]:
        """To be called every second or so where peers send their changes: one that fell silent may be gone."""
        now_s = self._time(now_s)
        silent = self.ledger.peers.forget_silent(now_s)
        gone = self._held_elsewhere.keep(self.ledger.peers.sending)
        self._advances.keep(self.ledger.peers.sending)
        return self._serve_held(now_s) if silent or gone else ()

    def peer_lost(self, peer: str, now_s: float) -> Sequence[Command]:
        """Another router's lease ran out."""
        return self.on_peer_load(peer, {}, now_s)

    def loads(self) -> dict[str, Load]:
        """What we have in flight, by backend name, to be published to peers."""
        return self.ledger.peers.own_loads()

    # -- what was learnt -----------------------------------------------------------------------------------------

    def score(self, name: str) -> Score | None:
        """How the forecasts of a backend did; None for one that is not there."""
        slot = self.ledger.roster.slot(name)
        return None if slot is None else self.belief.score(slot)

    def beliefs(self) -> dict[str, Mapping[str, Any]]:
        """What was learnt, by backend name, as JSON can hold it: what other routers may start from."""
        return {name: self.belief.export(slot) for name, slot in self.ledger.roster.slots}

    def belief_of(self, name: str) -> Mapping[str, Any] | None:
        """The same of one backend; None for one that is not there."""
        slot = self.ledger.roster.slot(name)
        return None if slot is None else self.belief.export(slot)

    def adopt_belief(self, name: str, learnt: Mapping[str, Any], now_s: float) -> Sequence[Command]:
        """What another router learnt of a backend: taken over while little was seen of it here.

        ValueError when it is of another version or other physics, or holds a number that is implausible.
        """
        now_s, slot = self._time(now_s), self.ledger.roster.slot(name)
        if slot is None or self.belief.seen(slot) >= TRUSTED_AFTER:
            return ()
        try:
            self.belief.adopt(slot, learnt)
        except Implausible as odd:
            self.dropped_numbers.add(border.BELIEF, name, str(odd))
            raise
        return self._serve_held(now_s)


def _same_engine(known: Backend, now: Backend) -> bool:
    """Whether nothing differs that predictions start from: what was learnt of an engine outlasts another price, another
    label, and adapters that were loaded or unloaded.
    """
    return (
        known.prior == now.prior
        and known.seqs_max == now.seqs_max
        and known.chunk_tokens == now.chunk_tokens
        and known.kv_tokens_max == now.kv_tokens_max
        and known.network_s == now.network_s
        and known.models[:1] == now.models[:1]
    )
