"""The pace that a request's promises leave to others, alone and through the dispatcher and between routers."""

from math import inf, nan

import pytest

from router.core.fleet import Fleet
from router.core.promises import pace_bound_s
from router.core.types import Load, Slo
from tests.fakes import backend, core, request, sent


@pytest.mark.parametrize(
    ("slo", "predicted", "expected"),
    [
        (Slo(), (0.1, 0.01), inf),
        (Slo(tpot_s=0.05), (0.1, 0.01), 0.05),
        (Slo(e2e_s=11.0), (1.0, 0.01), 0.1),  # 10 s of 11 are left to the 100 tokens after the first
        (Slo(tpot_s=0.05, e2e_s=11.0), (1.0, 0.01), 0.05),
        (Slo(tpot_s=0.05), (0.1, 0.06), inf),  # lost already
        (Slo(e2e_s=0.5), (1.0, 0.01), inf),
        (Slo(tpot_s=0.05, e2e_s=11.0), (nan, nan), 0.05),
    ],
)
def test_the_pace_that_promises_need(slo, predicted, expected):
    """TPOT as it is, E2E by what it leaves to the tokens, a lost promise not at all."""
    assert pace_bound_s(request(slo=slo), 0.0, *predicted, output_tokens=101.0) == pytest.approx(expected)


def bounds(it):
    """What a decision sees promised on each backend."""
    return Fleet(it.ledger, it.ledger.pool("m"), 0.0).tpot_bound_s.tolist()


def test_a_promise_to_end_in_time_binds_the_backend_while_it_runs():
    """An E2E SLO is a pace to be kept; once the request is over nothing is."""
    it = core(backend("a"), routing="slo_headroom")
    it.arrived(request("r", slo=Slo(e2e_s=30.0), output_tokens_max=101), 0.0)
    assert 0.1 < bounds(it)[0] < 0.5
    it.client_left("r", 1.0)
    assert bounds(it) == [inf]


def test_a_promise_that_nobody_can_keep_binds_nobody():
    """One infeasible SLO must not keep a backend empty."""
    it = core(backend("a"), routing="slo_headroom", parameters={"best_effort": "send"})
    sent(it.arrived(request("r", slo=Slo(tpot_s=1e-6, ttft_s=1e-6)), 0.0))
    assert bounds(it) == [inf]


def test_routers_tell_each_other_the_tightest_pace_they_promised():
    """The tighter of ours and theirs holds; when the peer is gone, ours alone."""
    ours, theirs = core(backend("a")), core(backend("a"))
    ours.arrived(request("r", slo=Slo(tpot_s=0.05)), 0.0)
    theirs.arrived(request("s", slo=Slo(tpot_s=0.03)), 0.0)
    assert theirs.loads()["a"].tpot_bound_s == 0.03
    ours.heard("peer", theirs.loads(), 0.1)
    assert bounds(ours) == [0.03]
    ours.heard("other", {"a": Load(decoding=1.0)}, 0.1)
    assert bounds(ours) == [0.03]
    ours.peer_lost("peer", 0.2)
    assert bounds(ours) == [0.05]
