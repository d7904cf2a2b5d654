"""Parity: a recorded run, replayed through a fresh core, gives the same commands."""

import json
import pickle
import random
from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.advances import Advance
from router.core.columns import TERMS
from router.core.decisions import Send
from router.core.evidence import Outcome
from router.core.flight import DispatchLimits, Failure
from router.core.held_lines import HeldLine
from router.core.peer_change import PeerChange
from router.core.record import Recording, replay, request_of
from router.core.types import EngineReport, Load, Slo, Usage
from tests.fakes import backend, core, request


def world(routing, seed):
    """The same core twice: everything that is not an event."""
    return core(routing=routing, seed=seed, limits=DispatchLimits(first_byte_s_max=2.0), admission={"hold_s_max": 1.0})


def drive(it, chance):
    """A busy minute with every kind of event, driven by chance."""
    for number in range(3):
        it.backend_joined(backend(f"b{number}", slower=1.0 + number, seqs_max=4, labels={"card": "x"}), 0.0)
    now_s, running = 0.0, []
    for number in range(120):
        now_s += chance.random() * 0.1
        slo = chance.choice([Slo(), Slo(ttft_s=0.5, tpot_s=0.03)])
        made = request(f"r{number}", arrived_s=now_s, slo=slo, prompt_tokens=chance.randrange(4000), prefix=(1, number))
        commands = [*it.arrived(made, now_s), *(it.ticked(now_s) if it.wake_s <= now_s else ())]
        running += [(c.request_id, c.attempt) for c in commands if isinstance(c, Send)]
        chance.shuffle(running)
        if running:
            happen(it, chance, running.pop(), now_s)
        it.probe_started("b0", now_s)
        it.reported("b0", EngineReport(now_s, chance.randrange(9), 0.0, chance.random()), now_s)
        it.on_peer_load("peer", {"b1": Load(1.0, 100.0, chance.randrange(9), 500.0)}, now_s)
        if number == 60:
            it.backend_draining("b2", True, now_s)
            it.backend_health("b1", False, now_s)
        if number == 90:
            it.backend_left("b2", now_s)
            it.backend_health("b1", True, now_s)


def happen(it, chance, attempt, now_s):
    """One of the things that can become of an attempt."""
    match chance.randrange(4):
        case 0:
            it.failed(*attempt, Failure("reset"), now_s)
        case 1:
            it.client_left(attempt[0], now_s)
        case 2:
            it.committed(*attempt, now_s)
            it.first_token(*attempt, now_s + 0.005)
            it.ended(*attempt, Usage(chance.randrange(300)), now_s + 0.01)
        case _:
            it.first_token(*attempt, now_s)
            it.ended(*attempt, Usage(chance.randrange(300)), now_s + 0.01)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["round_robin", "least_request", "power_of_two", "least_work", "slo_headroom"]), st.integers(0, 99)
)
def test_a_recorded_run_told_to_a_fresh_core_gives_the_same_commands(routing, seed):
    """Through JSON, as the file would hold it: inf and nan survive."""
    lines = []
    drive(
        Recording(world(routing, seed), lambda event: lines.append(json.dumps(event, allow_nan=False))),
        random.Random(seed),
    )
    events = [json.loads(line) for line in lines]
    again = list(replay(events, world(routing, seed)))
    assert len(again) > 300
    for event, commands in again:
        assert json.loads(json.dumps(commands)) == event["answer"], event


def test_a_request_is_read_again_as_it_was_written():
    """Its SLO with every field, ``infeasible`` included; also by pickle, as between processes."""
    for slo in (Slo(), Slo(ttft_s=0.5, quantile=0.95), Slo(tpot_s=0.001, refuse_infeasible=True)):
        events = []
        asked = request("r", slo=slo, prefix=(1, 2))
        Recording(core(backend()), lambda event, to=events: to.append(json.dumps(event))).arrived(asked, 0.0)
        assert request_of(json.loads(events[0])["request"]) == asked
        assert pickle.loads(pickle.dumps(asked)) == asked


def test_numbers_that_the_core_dropped_are_dropped_again():
    """A record holds no inf and no nan; what stood there is as if it had not been said."""
    lines = []
    it = Recording(core(routing="slo_headroom"), lambda event: lines.append(json.dumps(event, allow_nan=False)))
    it.backend_joined(backend("a", price_per_hour=nan), 0.0)
    it.reported("a", EngineReport(inf, 3.0), 1.0)
    it.reported("a", EngineReport.by_name(1.0, nan, inf, 1e300, kv_usage=-1.0, prefix_hit_rate=48.0), 1.0)
    it.on_peer_load("peer", {"a": Load(2.0, nan, 3.0, inf, -1.0)}, nan)
    made = request("r", arrived_s=2.0)
    it.arrived(made, 2.0)
    it.first_token("r", 1, inf)
    it.ended("r", 1, Usage(10**12, 3, 7), 1.0)
    again = core(routing="slo_headroom")
    events = [json.loads(line) for line in lines]
    for event, commands in replay(events, again):
        assert json.loads(json.dumps(commands)) == event["answer"], event
    assert len(events) == 7
    assert again.ledger.table.peers[:, 0].tolist() == [2.0, 0.0, 3.0, 0.0]


def test_what_peers_sent_and_the_core_dropped_is_dropped_again():
    """Each value of a peer's that is none, beside one that is: the same are counted."""
    lines = []
    first = core(backend("a"))
    it = Recording(first, lambda event: lines.append(json.dumps(event, allow_nan=False)))
    line, terms = HeldLine("m", (0.0, ""), (1.0, inf), 1, ((5.0,),)), (0.01,) * TERMS
    change = PeerChange(
        {},
        held=(line, replace(line, ranks=((inf,),))),
        outcomes=(Outcome("a", 1, 0, 0, 1.0, 0.0, 0.0, (inf, *terms[1:])), Outcome("a", 1, 0, 0, inf, nan, inf, terms)),
        advances=(Advance(1, nan, 1.0), Advance(1, 1.0, inf)),
    )
    it.on_peer_change("peer", change, 1.0)
    again = core(backend("a"))
    assert [commands for _, commands in replay(map(json.loads, lines), again)] == [[]]
    assert again.dropped_numbers.by_source == first.dropped_numbers.by_source
    assert again._held_elsewhere.count("m") == first._held_elsewhere.count("m") == 1


def test_an_unknown_event_is_named():
    """A record of a later version says what is wrong with it."""
    with pytest.raises(ValueError, match="unknown event 'exploded'"):
        list(replay([{"event": "exploded", "at_s": 0.0}], core()))
