"""The time per token that the SLO of a request leaves to others: alone, through the dispatcher and between routers."""

from math import inf, nan

import pytest

from router.core.fleet import Fleet
from router.core.slo_bounds import e2e_tpot_bound_s, tpot_bound_s
from router.core.types import Load, Slo
from tests.fakes import backend, core, request, sent


@pytest.mark.parametrize(
    ("slo", "predicted", "expected"),
    [
        (Slo(), (0.1, 0.01), (inf, inf)),
        (Slo(tpot_s=0.05), (0.1, 0.01), (0.05, inf)),
        (Slo(e2e_s=11.0), (1.0, 0.01), (inf, 0.1)),  # 10 s of 11 are left to the 100 tokens after the first
        (Slo(tpot_s=0.05, e2e_s=11.0), (1.0, 0.01), (0.05, 0.1)),
        (Slo(tpot_s=0.05), (0.1, 0.06), (inf, inf)),  # lost already
        (Slo(e2e_s=0.5), (1.0, 0.01), (inf, inf)),
        (Slo(tpot_s=0.05, e2e_s=11.0), (nan, nan), (0.05, inf)),
    ],
)
def test_the_time_per_token_that_bounds_leave(slo, predicted, expected):
    """TPOT as it is, E2E by what it leaves to the tokens, a lost bound not at all."""
    asked, (ttft_s, tpot_s) = request(slo=slo), predicted
    assert tpot_bound_s(asked, tpot_s) == expected[0]
    assert e2e_tpot_bound_s(asked, ttft_s, tpot_s, output_tokens=101.0) == pytest.approx(expected[1])


def test_slos_that_are_equal_are_one_key():
    """Whatever made them; each of the fields tells them apart."""
    base = (2.0, 0.1, 60.0, 0.9, False, ())
    others = [(1.0,), (2.0, 0.2), (2.0, 0.1, 61.0), (*base[:3], 0.5), (*base[:4], True), (*base[:5], (1.0,))]
    counts = {Slo(*base): 1} | {Slo(*given): 2 for given in others}
    assert len(counts) == 1 + len(others)
    assert counts[Slo(*base)] == 1
    assert hash(Slo(*base)) == hash(Slo(*base))


def bounds(it):
    """The tightest TPOT bound in force on each backend, as a decision reads it."""
    return Fleet(it.ledger, it.ledger.roster.pool("m"), 0.0).tpot_bound_s.tolist()


def e2e_bounds(it):
    """What E2E bounds leave to a token on each backend."""
    return Fleet(it.ledger, it.ledger.roster.pool("m"), 0.0).e2e_tpot_bound_s.tolist()


def test_an_e2e_slo_bounds_the_backend_until_the_request_is_over():
    """It leaves a time per token; afterwards there is no bound."""
    it = core(backend("a"), routing="slo_headroom")
    it.arrived(request("r", slo=Slo(e2e_s=30.0), output_tokens_max=101), 0.0)
    assert 0.1 < e2e_bounds(it)[0] < 0.5
    assert bounds(it) == [inf]  # it is no TPOT bound: a step that takes a prompt in costs it little
    it.client_left("r", 1.0)
    assert e2e_bounds(it) == [inf]


def test_the_time_that_a_request_has_waited_does_not_tighten_what_it_asks_of_others():
    """Sent after 10 s of its 30: the time per token that it leaves them is the same, and so is that of a TPOT SLO."""
    for slo, look in ((Slo(e2e_s=30.0), e2e_bounds), (Slo(tpot_s=0.05, e2e_s=60.0), bounds)):
        found = []
        for now_s in (0.0, 10.0):
            it = core(backend("a"), routing="slo_headroom")
            sent(it.arrived(request("r", slo=slo, output_tokens_max=101), now_s))
            found.append(look(it)[0])
        assert found[0] == pytest.approx(found[1])
        assert found[0] < inf


def test_an_e2e_slo_leaves_the_time_after_the_first_token_to_the_expected_reply():
    """Divided by its tokens after the first; a reply of one token divides by one."""
    asked = request(slo=Slo(e2e_s=10.0))
    assert e2e_tpot_bound_s(asked, 1.0, 0.01, output_tokens=91.0) == pytest.approx(0.1)
    assert e2e_tpot_bound_s(asked, 1.0, 0.01, output_tokens=1.0) == pytest.approx(9.0)
    assert e2e_tpot_bound_s(asked, 10.5, 0.01, output_tokens=91.0) == inf


def test_an_slo_that_is_predicted_to_be_violated_is_no_bound():
    """One infeasible SLO must not keep a backend empty."""
    it = core(backend("a"), routing="slo_headroom", parameters={"best_effort": "send"})
    sent(it.arrived(request("r", slo=Slo(tpot_s=1e-6, ttft_s=1e-6)), 0.0))
    assert bounds(it) == [inf]


def test_routers_publish_their_tightest_tpot_bound():
    """The tighter of ours and theirs holds; when the peer is gone, ours alone."""
    ours, theirs = core(backend("a")), core(backend("a"))
    ours.arrived(request("r", slo=Slo(tpot_s=0.05)), 0.0)
    theirs.arrived(request("s", slo=Slo(tpot_s=0.03)), 0.0)
    assert theirs.loads()["a"].tpot_bound_s == 0.03
    ours.on_peer_load("peer", theirs.loads(), 0.1)
    assert bounds(ours) == [0.03]
    ours.on_peer_load("other", {"a": Load(decoding=1.0)}, 0.1)
    assert bounds(ours) == [0.03]
    ours.peer_lost("peer", 0.2)
    assert bounds(ours) == [0.05]


def test_a_peers_bound_holds_whatever_becomes_of_this_routers():
    """A tighter bound of this router's comes and goes; the peer's is what is left, and it is not published as ours."""
    for slo, look in ((Slo(tpot_s=0.02), bounds), (Slo(e2e_s=8.0), e2e_bounds)):
        it = core(backend("a"), routing="slo_headroom")
        it.on_peer_load("peer", {"a": Load(decoding=1.0, tpot_bound_s=0.03, e2e_tpot_bound_s=0.2)}, 0.0)
        before = look(it)[0]
        it.arrived(request("r", slo=slo, output_tokens_max=101), 0.0)
        assert look(it)[0] < before < inf
        it.client_left("r", 0.2)
        assert look(it) == [before]
        assert it.loads()["a"] == Load()


def test_routers_publish_the_time_per_token_that_e2e_slos_leave():
    """The same of E2E bounds, until the reply is over."""
    ours, theirs = core(backend("a")), core(backend("a"), routing="slo_headroom")
    theirs.arrived(request("s", slo=Slo(e2e_s=30.0), output_tokens_max=101), 0.0)
    ours.on_peer_load("peer", theirs.loads(), 0.1)
    assert e2e_bounds(ours) == e2e_bounds(theirs) != [inf]
    theirs.client_left("s", 0.2)
    ours.on_peer_load("peer", theirs.loads(), 0.2)
    assert e2e_bounds(ours) == [inf]
