"""No number from outside can harm the core: whatever engines, peers, stores, configs and clocks say, every forecast
stays finite and every policy answers.
"""

import copy
import random
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import policies
from router.core import border
from router.core.belief import Belief
from router.core.columns import PEERS_TPOT_BOUND_S, PREFILL_RATE
from router.core.decisions import Choice, Send
from router.core.errors import Implausible
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.score import TRUSTED_AFTER
from router.core.signals import names
from router.core.text_size import TEXT_SIGMA
from router.core.types import EngineReport, Load, Slo, Usage
from tests.fakes import backend, core, request, sent

NAMES = ("a", "b")
ROUTING = [policies.find("routing", name) for name in policies.names("routing")]
ADMISSION = [policies.find("admission", name) for name in policies.names("admission")]
ODD = st.sampled_from([nan, inf, -inf, -1.0, -1e-9, 0.0, 1e-300, 0.5, 1.02, 3.0, 1e5, 1e12, 1e18, 1.7e308])
NUMBERS = ODD | st.floats()
COUNTS = st.sampled_from([-1, 0, 1, 2, 7, 100, 5_000, 1 << 20, 10**9, 10**30]) | st.integers(0, 3_000)
LOADS = st.builds(Load, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
ASKED = [
    request("plain"),
    request("long", prompt_tokens=60_000, slo=Slo(ttft_s=0.5, tpot_s=0.02, quantile=0.999999)),
    request("prefixed", prompt_tokens=640, prefix=(1, 2, 3), prefix_block_tokens=128, slo=Slo(e2e_s=3.0)),
    request("capped", output_tokens_max=16, slo=Slo(tpot_s=1e-6, quantile=0.01), slo_class="tight"),
]


def numbers_of(plain, path=()):
    """The paths to every number in nested dicts and lists."""
    if isinstance(plain, dict | list):
        items = plain.items() if isinstance(plain, dict) else enumerate(plain)
        return [found for key, value in items for found in numbers_of(value, (*path, key))]
    return [path]


def with_number(plain, path, value):
    """A copy of *plain* with one number replaced."""
    changed = copy.deepcopy(plain)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def check_every_forecast_and_policy(dispatcher, now_s):
    """Means, tails, cached tokens and load of every candidate are finite and not negative; every policy answers."""
    slots = dispatcher.ledger.roster.pool("m")
    if not len(slots):
        return
    for asked in ASKED:
        fleet = Fleet(dispatcher.ledger, slots, now_s)
        forecast = Forecast(replace_arrival(asked, now_s), fleet, dispatcher.belief)
        parts = (
            forecast.means_s,
            forecast.tails_s(asked.slo.quantile),
            forecast.tails_s(0.99),
            forecast.cached_tokens,
            forecast.prefill_tokens,
            forecast.expected_tpot_violations,
            forecast.rows,
        )
        for part in parts:
            assert np.isfinite(part).all()
            assert (part >= -1e-6).all()
        for policy in ROUTING:
            assert isinstance(policy.choose(asked, fleet, forecast, random.Random(3)), Choice)
        for policy in ADMISSION:
            policy.admit(asked, fleet, forecast, None)


def replace_arrival(asked, now_s):
    """The same request, arrived now."""
    return request(
        asked.id, arrived_s=now_s, prompt_tokens=asked.prompt_tokens, slo=asked.slo, slo_class=asked.slo_class,
        prefix=asked.prefix, prefix_block_tokens=asked.prefix_block_tokens, output_tokens_max=asked.output_tokens_max,
    )  # fmt: skip


class AnyNumbers(RuleBasedStateMachine):
    """A shell whose engines, peers, store, config and clock say anything at all, between requests that go well."""

    @initialize(routing=st.sampled_from(["slo_headroom", "least_work", "prefix_affinity"]))
    def start(self, routing):
        """Two unequal backends."""
        self.core = core(backend("a"), backend("b", slower=3.0, seqs_max=4), routing=routing)
        self.now_s = 1.0
        self.open = []

    @rule(
        took_s=st.sampled_from([0.0, 1e-12, 0.01, 0.3, 30.0]),
        lasted_s=st.sampled_from([0.0, 1e-12, 0.5, 4.0, 1e4]),
        usage=st.builds(Usage, COUNTS, COUNTS, COUNTS),
        prefixed=st.booleans(),
        times=st.integers(1, TRUSTED_AFTER),
    )
    def served(self, took_s, lasted_s, usage, prefixed, times):
        """Some requests in a row, whose engine counts as it likes."""
        for _ in range(times):
            prefix = {"prefix": (1, 2, 3), "prefix_block_tokens": 128} if prefixed else {}
            asked = request(arrived_s=self.now_s, prompt_tokens=500, **prefix)
            for command in self.core.arrived(asked, self.now_s):
                if isinstance(command, Send):
                    self.core.first_token(asked.id, command.attempt, self.now_s + took_s)
                    self.core.ended(asked.id, command.attempt, usage, self.now_s + took_s + lasted_s)
            self.now_s += took_s + lasted_s
            self.core.client_left(asked.id, self.now_s)

    @rule(first=st.booleans())
    def stays(self, first):
        """A request that is not over yet."""
        asked = request(arrived_s=self.now_s, prompt_tokens=300, slo=Slo(ttft_s=2.0, tpot_s=0.05))
        for command in self.core.arrived(asked, self.now_s):
            if isinstance(command, Send) and first:
                self.core.first_token(asked.id, command.attempt, self.now_s)

    @rule(passed_s=st.floats(0.0, 60.0))
    def time_passes(self, passed_s):
        """As it should."""
        self.now_s += passed_s
        self.core.ticked(self.now_s)

    @rule(now_s=NUMBERS)
    def clock_shows(self, now_s):
        """Anything, but for a leap ahead that nobody can tell from a long sleep."""
        self.core.ticked(now_s if not self.now_s < now_s < 1e12 else -now_s)

    @rule(name=st.sampled_from(NAMES), said=st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS), asked_s=NUMBERS)
    def reported(self, name, said, asked_s):
        """At a time of its own, and at the right one."""
        self.core.probe_started(name, self.now_s)
        signals = dict(zip(names(), said[3:], strict=True))
        for at_s in (asked_s, self.now_s):
            self.core.reported(name, EngineReport.by_name(at_s, *said[:3], **signals), self.now_s)

    @rule(peer=st.sampled_from("xy"), loads=st.dictionaries(st.sampled_from([*NAMES, "unknown"]), LOADS))
    def on_peer_load(self, peer, loads):
        """A peer."""
        self.core.on_peer_load(peer, loads, self.now_s)

    @rule(name=st.sampled_from(NAMES), data=st.data(), value=NUMBERS)
    def adopt_belief(self, name, data, value):
        """A belief with one number replaced: taken whole, or refused whole."""
        learnt = self.core.beliefs()[name]
        path = data.draw(st.sampled_from(numbers_of(learnt)))
        before = copy.deepcopy(learnt)
        try:
            self.core.adopt_belief(name, with_number(learnt, path, value), self.now_s)
        except ValueError:
            assert self.core.beliefs()[name] == before

    @rule(name=st.sampled_from([*NAMES, "c"]), field=st.sampled_from(["price_per_hour", "network_s", "weight"]),
          value=NUMBERS, slower=ODD)  # fmt: skip
    def joins(self, name, field, value, slower):
        """A backend whose facts or physics are anything."""
        self.core.backend_joined(replace(backend(name, slower=2.0), **{field: value}), self.now_s)
        self.core.backend_joined(backend(name, slower=slower), self.now_s)

    @invariant()
    def all_is_finite(self):
        """At every moment."""
        if hasattr(self, "core"):
            ledger = self.core.ledger
            for part in (ledger.table.own, ledger.table.peers, ledger.table.unattributed):
                assert np.isfinite(part).all()
                assert (part >= -1e-6).all()
            check_every_forecast_and_policy(self.core, self.now_s)

    @invariant()
    def what_is_learnt_passes_the_border(self):
        """Whatever this core keeps for others, they can take."""
        if hasattr(self, "core"):
            for learnt in self.core.beliefs().values():
                border.belief(learnt)


AnyNumbers.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestAnyNumbers = AnyNumbers.TestCase


# -- a reply that counts more cached tokens than prompt tokens ---------------------------------------------------------


def expected_tokens(dispatcher, estimate):
    """What a prompt of that estimate is expected to count."""
    return dispatcher.belief.prompts.tokens(request(prompt_tokens=estimate, prompt_sigma=TEXT_SIGMA))


def served(dispatcher, usage, replies, now_s=0.0):
    """So many replies of this usage, one after the other."""
    for _ in range(replies):
        asked = request(arrived_s=now_s, prompt_tokens=1_000, prompt_sigma=TEXT_SIGMA)
        attempt = sent(dispatcher.arrived(asked, now_s)).attempt
        dispatcher.first_token(asked.id, attempt, now_s + 0.1)
        dispatcher.ended(asked.id, attempt, usage, now_s + 2.0)
        now_s += 3.0
    return now_s


def test_input_tokens_that_exclude_the_cached_ones_teach_nothing_of_the_cache():
    """Anthropic's convention: 100 input tokens, 900 read from the cache. The lengths are learnt all the same."""
    dispatcher = core(backend("a"), routing="slo_headroom")
    now_s = served(dispatcher, Usage(50, 100, 900), 100)
    assert dispatcher.belief.hit[0] == 0.0
    assert expected_tokens(dispatcher, 1_000) == 1_000
    assert dispatcher.belief.lengths.mean_tokens("m", 0.0) == pytest.approx(50.0)
    assert dispatcher.dropped_numbers.by_source["usage"] == 100
    assert dispatcher.dropped_numbers.first["usage", "a"] == "900 cached tokens of 100 prompt tokens"
    check_every_forecast_and_policy(dispatcher, now_s)


def test_a_plausible_usage_is_learnt_from_and_nothing_is_counted():
    """The other side of the border."""
    dispatcher = core(backend("a"), routing="slo_headroom")
    served(dispatcher, Usage(50, 1_200, 600), 100)
    assert dispatcher.belief.hit[0] == pytest.approx(0.5, abs=0.02)
    assert expected_tokens(dispatcher, 1_000) == pytest.approx(1_200, rel=0.02)
    assert not any(dispatcher.dropped_numbers.by_source.values())


@settings(max_examples=200, deadline=None)
@given(usage=st.builds(Usage, COUNTS, COUNTS, COUNTS), cap=st.integers(0, 4_096), estimated=st.integers(1, 100_000))
def test_a_checked_usage_is_plausible(usage, cap, estimated):
    """Each count is in range or 0, checking twice is checking once, and what was changed was counted."""
    asked = request(prompt_tokens=estimated, output_tokens_max=cap)
    dropped = border.DroppedNumbers()
    checked = border.usage(usage, asked, "a", 131_072, dropped)
    assert 0 <= checked.output_tokens <= (8 * cap + 16 if cap else 1 << 20)
    assert 0 <= checked.cached_tokens <= checked.prompt_tokens <= 131_072
    assert checked.prompt_tokens == 0 or estimated / 32 <= checked.prompt_tokens <= 32 * estimated + 4_096
    assert (checked == usage) == (dropped.by_source["usage"] == 0)
    assert border.usage(checked, asked, "a", 131_072, dropped) is checked


# -- reports, loads, clocks, backends ----------------------------------------------------------------------------------


def reported(report, now_s=10.0):
    """The report as the core takes it, and what was dropped."""
    dropped = border.DroppedNumbers()
    return border.report(report, "a", now_s, dropped), dropped.by_source


def test_a_field_that_an_engine_did_not_say_is_not_counted():
    """nan is how a reading says so."""
    taken, counts = reported(EngineReport(10.0, running=3.0))
    assert (taken.running, taken.kv_usage != taken.kv_usage) == (3.0, True)
    assert not any(counts.values())


@pytest.mark.parametrize(
    ("field", "value"),
    [("running", -1.0), ("waiting", inf), ("kv_usage", 48.0), ("prefix_hit_rate", -0.1), ("kv_tokens_max", 1e30)],
)
def test_a_field_of_a_report_that_cannot_be_is_dropped_and_the_rest_taken(field, value):
    """One bad field of an engine's page must not cost the others."""
    taken, counts = reported(EngineReport.by_name(10.0, **({"running": 3.0, "waiting": 2.0} | {field: value})))
    assert getattr(taken, field) != getattr(taken, field)
    assert counts["report"] == 1
    assert (taken.running == 3.0) == (field != "running")
    assert (taken.waiting == 2.0) == (field != "waiting")


def test_a_share_a_little_above_one_is_one():
    """A rounded KV usage is no lie."""
    taken, counts = reported(EngineReport.by_name(10.0, kv_usage=1.01))
    assert taken.kv_usage == 1.0
    assert counts["report"] == 0


def test_a_report_from_the_future_is_dropped_and_the_next_one_taken():
    """Its time would hide every later report."""
    dispatcher = core(backend("a"))
    dispatcher.reported("a", EngineReport(1e9, running=5.0, waiting=0.0), 10.0)
    assert dispatcher.dropped_numbers.by_source["clock"] == 1
    dispatcher.reported("a", EngineReport(11.0, running=7.0, waiting=0.0), 11.0)
    assert dispatcher.ledger.table.unattributed[:, 0].sum() == pytest.approx(7.0)


def test_a_field_of_a_peers_load_that_cannot_be_counts_as_nothing():
    """The rest of it is taken; a sum of floats a little below 0 is 0 and no fault."""
    dispatcher = core(backend("a"))
    dispatcher.on_peer_load("peer", {"a": Load(2.0, nan, 3.0, -1e-9, -1.0)}, 1.0)
    assert dispatcher.ledger.table.peers[:, 0].tolist() == [2.0, 0.0, 3.0, 0.0]
    assert dispatcher.ledger.table.columns[PEERS_TPOT_BOUND_S][0] == inf
    assert dispatcher.dropped_numbers.by_source["peer"] == 2
    assert ("peer", "peer") in dispatcher.dropped_numbers.first


@pytest.mark.parametrize("odd_s", [nan, inf, -inf, 4.9, -1.0])
def test_a_clock_that_goes_back_or_is_no_number_stands_still(odd_s):
    """An event at such a time happens at the last one."""
    dispatcher = core(backend("a"))
    dispatcher.ticked(5.0)
    asked = request(arrived_s=5.0)
    attempt = sent(dispatcher.arrived(asked, odd_s)).attempt
    dispatcher.first_token(asked.id, attempt, 5.1)
    assert dispatcher.first_token_s(asked.id) == 5.1
    assert dispatcher.dropped_numbers.by_source["clock"] == 1
    assert np.isfinite(dispatcher.ledger.table.columns[PREFILL_RATE]).all()


def test_a_fact_of_a_backend_that_cannot_be_is_its_default():
    """The backend serves all the same."""
    dispatcher = core(replace(backend("a"), price_per_hour=nan, weight=-1.0, network_s=inf, kv_tokens_max=0))
    assert dispatcher.ledger.roster.backends[0] == backend("a")
    assert dispatcher.dropped_numbers.by_source["backend"] == 4
    check_every_forecast_and_policy(dispatcher, 0.0)


@pytest.mark.parametrize("slower", [nan, inf, 0.0, -1.0, 1e9])
def test_a_backend_whose_physics_cannot_be_does_not_join(slower):
    """Nothing could be predicted for it; the others serve."""
    dispatcher = core(backend("a"))
    dispatcher.backend_joined(backend("b", slower=slower), 0.0)
    assert dispatcher.ledger.roster.slot("b") is None
    assert dispatcher.dropped_numbers.by_source["backend"] == 1
    assert sent(dispatcher.arrived(request(), 0.0)).backend == "a"


# -- beliefs -----------------------------------------------------------------------------------------------------------

NO_COVARIANCE = np.zeros((7, 7))
NO_COVARIANCE[6, 6] = 1e3
NO_COVARIANCE[0, 3] = NO_COVARIANCE[3, 0] = -0.5  # a variance of -0.5 in one direction, beside a large one
LEARNT = [
    (("hit",), 2.5),
    (("hit",), nan),
    (("state",), 7),
    (("state",), 0.5),
    (("load_band_bias", 0, 0), 0.0),
    (("load_band_bias", 1, 2), inf),
    (("regression", "log_factor", 0), 700.0),
    (("regression", "covariance", 0, 0), -1.0),
    (("regression", "covariance", 0, 1), 5.0),
    (("regression", "covariance"), NO_COVARIANCE.tolist()),
    (("regression", "noise", 0), 0.0),
    (("regression", "seen"), nan),
    (("tails", 0, 0, 0), 9.0),
    (("tails", 2, 4, 1), 1e9),
    (("lengths", "m", "default", "ended", 3), -1.0),
    (("lengths", "m", "default", "cut", 3), 1e300),
    (("lengths", "m", "default"), 5),
    (("lengths", "m"), [1]),
    (("lengths",), []),
    (("regression",), None),
    (("tails",), [[1.0]]),
    (("regression", "log_factor"), "text"),
]


@pytest.mark.parametrize(("path", "value"), LEARNT)
def test_a_poisoned_belief_is_refused_whole_counted_and_the_router_serves(path, value):
    """A fresh router that is offered it stays as its data sheet has it."""
    old = core(backend("a"))
    served(old, Usage(50, 1_000, 100), 30)
    fresh = core(backend("a"), routing="slo_headroom")
    before = fresh.beliefs()
    with pytest.raises(Implausible, match=str(path[0])):
        fresh.adopt_belief("a", with_number(old.beliefs()["a"], path, value), 0.0)
    assert fresh.beliefs() == before
    assert fresh.dropped_numbers.by_source["belief"] == 1
    check_every_forecast_and_policy(fresh, 0.0)
    assert sent(fresh.arrived(request(), 0.0)).backend == "a"


def test_the_lengths_of_models_that_a_backend_does_not_serve_are_not_taken():
    """A belief about one backend says nothing of others."""
    old, fresh = core(backend("a")), core(backend("a"))
    served(old, Usage(50, 1_000, 100), 30)
    learnt = old.beliefs()["a"]
    learnt = {**learnt, "lengths": {"other": learnt["lengths"]["m"]}}
    fresh.adopt_belief("a", learnt, 0.0)
    assert fresh.belief.lengths.export("other") == {}


def test_a_backend_a_million_times_faster_than_believed_is_learnt_within_bounds():
    """Factors stop where no data sheet is of any use, whatever streams say."""
    dispatcher = core(backend("a", slower=1e4), routing="slo_headroom")
    now_s = served(dispatcher, Usage(50, 1_000, 100), 3_000)
    belief: Belief = dispatcher.belief
    assert np.abs(np.log(belief.regression.factor[0])).max() <= 6.0 + 1e-9
    check_every_forecast_and_policy(dispatcher, now_s)


def test_a_share_of_a_sequence_does_not_hold_the_whole_queue():
    """Half of one waits, next to none runs, the cache is full: what waits is no larger than the cache."""
    dispatcher = core(backend("a"))
    dispatcher.reported(
        "a", EngineReport.by_name(1.0, running=2e-16, waiting=0.5, kv_usage=1.0, kv_tokens_max=1e6), 1.0
    )
    assert dispatcher.ledger.table.unattributed[:, 0].max() <= 1e6
    check_every_forecast_and_policy(dispatcher, 1.0)


def test_a_belief_of_the_widest_spreads_leaves_every_quantile_finite():
    """Replies of one token or of 250,000, and errors as far apart as they may be: beyond the kept quantiles the line
    through them is not followed.
    """
    old, fresh = core(backend("a")), core(backend("a"))
    served(old, Usage(50, 1_000, 100), 30)
    replies = {"ended": [10.0, *[0.0] * 70, 10.0], "cut": [0.0] * 72}
    learnt = with_number(old.beliefs()["a"], ("tails",), [[[-20.0] * 3] * 4 + [[20.0] * 3]] * 3)
    fresh.adopt_belief("a", with_number(learnt, ("lengths", "m", "default"), replies), 0.0)
    asked = request(slo=Slo(ttft_s=1.0, quantile=1.0 - 1e-16))
    forecast = Forecast(asked, Fleet(fresh.ledger, fresh.ledger.roster.pool("m"), 0.0), fresh.belief)
    assert np.isfinite(forecast.tails_s(asked.slo.quantile)).all()
    assert np.isfinite(forecast.tails_s(0.999999)).all()


def test_a_time_too_short_to_be_measured_teaches_nothing():
    """The ratio of the smallest number there is to a second is 0, which has no logarithm."""
    dispatcher = core(backend("a", slower=900.0), routing="slo_headroom")
    asked = request()
    attempt = sent(dispatcher.arrived(asked, 0.0)).attempt
    dispatcher.first_token(asked.id, attempt, 5e-324)
    dispatcher.ended(asked.id, attempt, Usage(50, 100), 1e-323)
    assert dispatcher.belief.seen(0) == 0
    check_every_forecast_and_policy(dispatcher, 1.0)


def test_outcomes_however_far_off_leave_every_quantile_finite():
    """Replies that take a day where a second was expected, and now and then none: the widest tails there can be."""
    dispatcher = core(backend("a"), routing="slo_headroom")
    now_s = 0.0
    for number in range(200):
        asked = request(arrived_s=now_s, output_tokens_max=1)
        attempt = sent(dispatcher.arrived(asked, now_s)).attempt
        day_s = 1e-8 if number % 2 else 1e5
        dispatcher.first_token(asked.id, attempt, now_s + day_s)
        dispatcher.ended(asked.id, attempt, Usage(1, 100), now_s + 2 * day_s)
        now_s += 3 * day_s
    asked = request(arrived_s=now_s, slo=Slo(ttft_s=1.0, quantile=1.0 - 1e-16))
    forecast = Forecast(asked, Fleet(dispatcher.ledger, dispatcher.ledger.roster.pool("m"), now_s), dispatcher.belief)
    for quantile in (1e-300, 0.5, 0.999999, 1.0 - 1e-16):
        assert np.isfinite(forecast.tails_s(quantile)).all()
    border.belief(dispatcher.beliefs()["a"])


def test_short_prompts_do_not_teach_that_long_ones_are_thousands_of_times_longer():
    """A template of 4,000 tokens around one word says little of a prompt of 100,000."""
    dispatcher = core(backend("a"), routing="slo_headroom")
    for number in range(300):
        asked = request(arrived_s=float(number), prompt_tokens=1, prompt_sigma=TEXT_SIGMA)
        attempt = sent(dispatcher.arrived(asked, float(number))).attempt
        dispatcher.ended(asked.id, attempt, Usage(5, 4_000), number + 0.5)
    assert expected_tokens(dispatcher, 1) > 2_000
    assert expected_tokens(dispatcher, 100_000) < 200_000
