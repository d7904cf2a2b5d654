"""What the core does for one of many backends does not grow with how many there are: laws of work, not of time."""

import random

import pytest

from router.core.columns import BANDS, METRICS
from router.core.ledger import Ledger
from router.core.metering import Metering
from router.core.roster import Roster
from router.core.slot_table import SlotTable
from router.core.tails import Tails
from router.core.types import EngineReport, Load, Slo, Usage
from tests.fakes import backend, core, request, sent

MODELS = ("m", "n", "o")


class Unread(list):
    """A list that is not to be gone through."""

    def __iter__(self):
        raise AssertionError("all backends were looked at")

    __contains__ = index = __iter__


class UnreadDict(dict):
    """The same of a dict."""

    def __iter__(self):
        raise AssertionError("all backends were looked at")

    items = keys = values = __iter__


def roster():
    """An empty one."""
    return Roster(SlotTable(4))


def join(it, name, **facts):
    """A backend, new or with other facts."""
    slot = it.slot(name)
    it.describe(it.claim(name) if slot is None else slot, backend(name, **facts))


def test_a_backend_joins_and_leaves_without_a_look_at_the_others():
    """A thousand that join in a row would be a million looks."""
    it = roster()
    for n in range(8):
        join(it, f"b{n}")
    it.backends = Unread(it.backends)
    join(it, "b8")
    join(it, "b3", models=("m", "n"), adapters=("n",))
    it.remove("b5")
    join(it, "b9")
    assert it.slot("b9") == 5


def test_what_is_served_is_counted_as_if_all_were_looked_at():
    """Any order of joins, changes and departures."""
    chance, it, there = random.Random(7), roster(), {}
    for _ in range(600):
        name = f"b{chance.randrange(12)}"
        if name in there and chance.random() < 0.4:
            it.remove(name)
            del there[name]
        else:
            models = tuple(chance.sample(MODELS, chance.randrange(1, 4)))
            adapters = models[1:] if chance.random() < 0.5 else ()
            join(it, name, models=models, adapters=adapters)
            there[name] = (models, adapters)
        assert it.models == sorted({model for models, _ in there.values() for model in models})
        assert it.adapters == {name for _, adapters in there.values() for name in adapters}
        assert [it.serves(model) for model in MODELS] == [model in it.models for model in MODELS]
        taken = sorted(it.slot(name) for name in there)
        assert len(set(taken)) == len(taken)
        assert it.remove("nobody") is None


def test_the_lowest_free_slot_is_taken_first():
    """So that the slots of a fleet stay neighbours, and a decision reads one piece of memory."""
    it = roster()
    for n in range(6):
        join(it, f"b{n}")
    for n in (4, 1, 3):
        it.remove(f"b{n}")
    for n, slot in ((7, 1), (8, 3), (9, 4), (10, 6)):
        join(it, f"b{n}")
        assert it.slot(f"b{n}") == slot


def test_a_report_of_one_engine_touches_the_meter_of_that_one_alone():
    """A thousand engines report every second; each visit to all would be a million meters a second."""
    it = core(*(backend(name) for name in "abc"))
    meters = it.ledger.metering.meters
    meters[0] = meters[2] = None  # to integrate one raises
    it.reported("b", EngineReport(1.0, 5.0, 2.0), 1.0)
    it.on_peer_load("peer", {"b": Load(decoding=2.0)}, 2.0)
    it.on_peer_load("peer", {}, 3.0)
    assert meters[1].decoding_s == pytest.approx(5.0 * 1.0 + (5.0 + 2.0) * 1.0)


def test_prompts_of_others_add_up_as_if_every_meter_were_integrated_at_every_change():
    """The rate changes with whatever any engine reports; each meter's sum has to follow all of its values."""
    chance, it = random.Random(3), Ledger()
    slots = [it.join(backend(name), 0.0) for name in "abcd"]
    brought, now_s = dict.fromkeys(slots, 0.0), 0.0
    for n in range(300):
        passed_s = chance.random()
        now_s += passed_s
        for slot in slots:
            brought[slot] += it.metering.meters[slot].uncounted * passed_s * it.metering.prompt_tokens_per_s_each
        slot, kind = chance.choice(slots), chance.randrange(3)
        if kind == 0:
            it.load.prefilled(it.load.reserve(slot, 100.0 + n, 200.0, float("inf"), now_s), now_s)
            brought[slot] += 100.0 + n
        elif kind == 1:
            it.reports.reported(slot, EngineReport(now_s, float(chance.randrange(9)), 0.0), now_s)
        else:
            it.peers.on_peer_load("peer", {chance.choice("abcd"): Load(decoding=chance.randrange(5))}, now_s)
    assert it.metering.prompt_tokens_per_s_each > 0.0
    for slot in slots:
        assert it.metering.snapshot(slot, now_s).prefilled_tokens == pytest.approx(brought[slot], rel=1e-9)


def test_what_is_new_in_a_slot_has_brought_nothing():
    """However long others have brought prompts before."""
    it = Metering(SlotTable(4))
    it.start(0, 0.0)
    it.prompt_tokens_per_s_each = 100.0
    it.measure(10.0)
    it.start(0, 10.0)
    it.meters[0].uncounted = 1.0
    assert it.snapshot(0, 10.0).prefilled_tokens == 0.0


def test_scores_of_a_slot_are_forgotten_without_a_look_at_the_others():
    """All facts of a thousand backends may change at once."""
    it = Tails(4)
    for slot in range(3):
        it.joined(slot, "m")
        for metric in range(METRICS):
            for band in range(BANDS):
                it.scores(metric, band, slot)
    it._own = UnreadDict(it._own)
    it.joined(1, "m")
    assert [sum(scores is not None for scores in it._own[slot]) for slot in range(3)] == [9, 0, 9]


def learnt():
    """A core that has seen an engine whose first tokens come far later than its data sheet says."""
    it = core(backend("a"), routing="slo_headroom")
    for n in range(40):
        arrived = request(f"r{n}", arrived_s=5.0 * n)
        it.arrived(arrived, 5.0 * n)
        it.first_token(arrived.id, 1, 5.0 * n + 0.4)
        it.ended(arrived.id, 1, Usage(20, 100), 5.0 * n + 1.2)
    return it


@pytest.mark.parametrize(
    ("facts", "kept"),
    [
        ({"price_per_hour": 3.0}, True),
        ({"weight": 2.0}, True),
        ({"labels": {"zone": "b"}, "variant": "v"}, True),
        ({"models": ("m", "n")}, True),
        ({"slower": 2.0}, False),
        ({"seqs_max": 8}, False),
        ({"models": ("n", "m")}, False),
    ],
)
def test_what_was_learnt_of_an_engine_outlasts_facts_that_no_prediction_starts_from(facts, kept):
    """A price list that changes for a whole fleet must not make every forecast start from its data sheet."""
    it = learnt()
    seen = it.belief.seen(0)
    assert seen >= 40
    it.backend_joined(backend("a", **facts), 300.0)
    assert it.belief.seen(0) == (seen if kept else 0)
    after = sent(it.arrived(request("after", arrived_s=301.0, slo=Slo(ttft_s=60.0)), 301.0))
    assert (after.predicted_ttft_s > 0.2) is kept
