"""Whatever the order of events: nothing negative, everything back to zero, every request answered exactly once."""

from collections import Counter

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from router.core.decisions import Abort, Break, EndState, Refuse, RequestRecord, Send
from router.core.flight import LACKING, DispatchLimits, Failure, FailureKind
from router.core.types import EngineReport, Load, Slo, Usage
from tests.fakes import backend, core, request

NAMES = ("a", "b", "c")
SLOS = st.sampled_from([Slo(), Slo(ttft_s=0.3), Slo(ttft_s=1.0, tpot_s=0.02), Slo(e2e_s=2.0)])
FAILURES = st.sampled_from(
    [
        Failure("reset"),
        Failure("400", backend_fault=False, retryable=False, kind=FailureKind.CLIENT_ERROR),
        *[Failure(kind.value, backend_fault=False, kind=kind) for kind in sorted(LACKING)],
        Failure("too long", backend_fault=False, kind=FailureKind.CONTEXT_EXCEEDED),
        Failure("5000 > 4096", False, True, False, FailureKind.CONTEXT_EXCEEDED, 5_000, False, 4_096),
        Failure(">= 4097", False, True, False, FailureKind.CONTEXT_EXCEEDED, 4_097, True, 4_096),
    ]
)
ENDPOINTS = st.sampled_from(["", "/v1/responses"])
POLICIES = st.sampled_from(["round_robin", "least_work", "power_of_two", "slo_headroom"])


class AnyOrder(RuleBasedStateMachine):
    """A shell that performs the commands and reports in any order, some of it twice and some of it late."""

    sends = Bundle("sends")
    ids = Bundle("ids")

    @initialize(routing=POLICIES, hedge=st.booleans())
    def start(self, routing, hedge):
        """Three unequal backends, small bounds so that every path is walked."""
        limits = DispatchLimits(
            first_byte_s_max=2.0,
            hedge_slo_share=0.5 if hedge else float("inf"),
            hedges_max_share=1.0,
            failures_max=2,
            refused_s=3.0,
        )
        fleet = [backend(name, slower=1.0 + i, seqs_max=2) for i, name in enumerate(NAMES)]
        self.core = core(*fleet, routing=routing, admission={"held_max": 3, "hold_s_max": 1.0}, limits=limits)
        self.now_s, self.count = 0.0, 0
        self.asked, self.answered, self.accounted = set(), Counter(), Counter()
        self.open = set()
        self.sequences = {}

    def perform(self, commands):
        """Record the commands in the shell's own account."""
        for command in commands:
            match command:
                case Send():
                    assert command.request_id in self.asked
                    assert self.core.ledger.roster.slot(command.backend) is not None
                    self.open.add((command.request_id, command.attempt))
                case Abort():
                    self.open.discard((command.request_id, command.attempt))
                case Refuse() | Break():
                    self.answered[command.request_id] += 1
                case RequestRecord():
                    self.accounted[command.request.id] += 1
                    if command.outcome in (EndState.SERVED, EndState.LEFT):
                        self.answered[command.request.id] += 1
                    self.open = {pair for pair in self.open if pair[0] != command.request.id}

    @rule(passed_s=st.floats(0.0, 1.5))
    def time_passes(self, passed_s):
        """The shell's one timer."""
        self.now_s += passed_s
        if self.core.wake_s <= self.now_s:
            self.perform(self.core.ticked(self.now_s))

    @rule(passed_s=st.floats(-1.0, 5.0))
    def stands_still(self, passed_s):
        """A pause of the shell."""
        self.now_s += max(passed_s, 0.0)
        self.perform(self.core.paused(passed_s, self.now_s))

    @rule(
        target=ids,
        slo=SLOS,
        model=st.sampled_from(["m", "m", "m", "x"]),
        prompt=st.integers(0, 5000),
        streamed=st.booleans(),
        endpoint=ENDPOINTS,
        sequences=st.sampled_from([1, 1, 4]),
        sigma=st.sampled_from([0.0, 0.35]),
    )
    def arrives(self, slo, model, prompt, streamed, endpoint, sequences, sigma):
        """A new request, of a model that may not exist, for one reply or several, of a size that is known or not."""
        self.count += 1
        facts = {"slo": slo, "model": model, "streamed": streamed, "endpoint": endpoint}
        facts |= {"sequences": sequences, "prompt_sigma": sigma}
        made = request(f"r{self.count}", arrived_s=self.now_s, prompt_tokens=prompt, **facts)
        self.asked.add(made.id)
        self.sequences[made.id] = sequences
        self.perform(self.core.arrived(made, self.now_s))
        return made.id

    @rule(request_id=ids, attempt=st.integers(1, 3))
    def committed(self, request_id, attempt):
        """Of an attempt that may be closed, or never was."""
        self.perform(self.core.committed(request_id, attempt, self.now_s))

    @rule(request_id=ids, attempt=st.integers(1, 3))
    def first_token(self, request_id, attempt):
        """The same, committed or not."""
        self.perform(self.core.first_token(request_id, attempt, self.now_s))

    @rule(request_id=ids, attempt=st.integers(1, 3), tokens=st.integers(0, 300))
    def ends(self, request_id, attempt, tokens):
        """The same for the end."""
        was_open = (request_id, attempt) in self.open
        self.open.discard((request_id, attempt))
        commands = self.core.ended(request_id, attempt, Usage(tokens), self.now_s)
        assert was_open or not commands
        self.perform(commands)

    @rule(request_id=ids, attempt=st.integers(1, 3), failure=FAILURES)
    def fails(self, request_id, attempt, failure):
        """The same for a failure."""
        self.open.discard((request_id, attempt))
        self.perform(self.core.failed(request_id, attempt, failure, self.now_s))

    @rule(request_id=ids)
    def client_leaves(self, request_id):
        """Even one that left before."""
        self.perform(self.core.client_left(request_id, self.now_s))

    @rule(name=st.sampled_from(NAMES), up=st.booleans())
    def health(self, name, up):
        """Up and down, known or gone."""
        self.perform(self.core.backend_health(name, up, self.now_s))

    @rule(name=st.sampled_from(NAMES), draining=st.booleans())
    def drains(self, name, draining):
        """Drained and undrained."""
        self.perform(self.core.backend_draining(name, draining, self.now_s))

    @rule(name=st.sampled_from(NAMES), slower=st.floats(0.5, 4.0))
    def joins(self, name, slower):
        """Anew, or with other facts while requests are in flight."""
        self.perform(self.core.backend_joined(backend(name, slower=slower, seqs_max=2), self.now_s))

    @rule(name=st.sampled_from(NAMES))
    def leaves(self, name):
        """Gone; its streams fail later, if at all."""
        self.perform(self.core.backend_left(name, self.now_s))

    @rule(name=st.sampled_from(NAMES), running=st.integers(0, 9), waiting=st.integers(0, 9), asked=st.booleans())
    def reports(self, name, running, waiting, asked):
        """An engine's own view, which may contradict ours."""
        if asked:
            self.core.probe_started(name, self.now_s)
        self.perform(self.core.reported(name, EngineReport(self.now_s, running, waiting, 0.5), self.now_s))

    @rule(name=st.sampled_from([*NAMES, "unknown"]), count=st.integers(0, 9))
    def peer(self, name, count):
        """Another router, whose fleet may differ from ours."""
        self.perform(self.core.on_peer_load("peer", {name: Load(1.0, 10.0, count, 10.0 * count)}, self.now_s))

    @invariant()
    def nothing_is_negative_and_no_request_ends_twice(self):
        """At every moment."""
        ledger = self.core.ledger
        for part in (ledger.table.own, ledger.table.peers, ledger.table.unattributed):
            assert (part >= -1e-6).all()
        assert all(n == 1 for n in [*self.answered.values(), *self.accounted.values()])
        assert self.core.in_flight == len(self.asked) - len(self.accounted)
        refused = {(each.what, slot) for name, slot in ledger.roster.slots for each in self.core.refusals(name)}
        assert refused == {(what, slot) for what, slots in ledger.roster._refusing.items() for slot in slots}
        assert all(known.in_a_row >= 0 for known in self.core.failures.values())
        assert self.core._ejection._rows == sum(known.in_a_row > 0 for known in self.core.failures.values())
        open_now = sum(load.prefilling + load.decoding for load in self.core.loads().values())
        assert open_now <= sum(self.sequences[request_id] for request_id, _ in self.open)

    def teardown(self):
        """All clients leave or time out: the ledger is empty and every request has one end."""
        if not hasattr(self, "core"):
            return
        for request_id in sorted(self.asked):
            self.perform(self.core.client_left(request_id, self.now_s))
        assert self.core.in_flight == self.core.held == 0
        assert not self.open
        np.testing.assert_allclose(self.core.ledger.table.own, 0.0, atol=1e-6)
        assert self.asked == set(self.answered) == set(self.accounted)


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestAnyOrder = AnyOrder.TestCase
