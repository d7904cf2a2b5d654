"""A new backend of an assumed kind starts slowly: by what was seen of it, not by a timer."""

from typing import Any

import pytest

from router.core.decisions import Send
from router.core.dispatcher import Dispatcher
from router.core.flight import Failure
from router.core.types import Slo, Usage
from tests.fakes import assumed, backend, core, request

SLO = Slo(ttft_s=30.0, tpot_s=1.0)


def burst(it: Dispatcher, count: int, now_s: float, **facts: Any) -> dict[str, list[Send]]:
    """So many requests at once; what was sent where."""
    sends: dict[str, list[Send]] = {}
    for _ in range(count):
        commands = it.arrived(request(arrived_s=now_s, slo=SLO, **facts), now_s)
        for send in (each for each in commands if isinstance(each, Send)):
            sends.setdefault(send.backend, []).append(send)
    return sends


def ended(it: Dispatcher, sends: list[Send], now_s: float) -> None:
    """Each had its first token after 50 ms, and ten more."""
    for send in sends:
        it.first_token(send.request_id, send.attempt, now_s + 0.05)
        it.ended(send.request_id, send.attempt, Usage(11), now_s + 0.2)


@pytest.mark.parametrize("routing", ["least_request", "round_robin", "random"])
def test_each_first_token_allows_one_request_more(routing: str) -> None:
    """Four, then eight, then sixteen at once; then its forecast is its own, and it has its share."""
    it = core(backend("old"), routing=routing)
    it.backend_joined(assumed("new"), 0.0)
    shares = []
    for round_s in (10.0, 20.0, 30.0, 40.0):
        sends = burst(it, 80, round_s)
        shares.append(len(sends["new"]))
        for each in sends.values():
            ended(it, each, round_s)
    assert shares[:3] == [4, 8, 16]
    assert shares[3] > 28


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/embeddings"])
def test_each_whole_reply_allows_one_request_more(endpoint: str) -> None:
    """It has no first token that anybody sees, and embeddings have no tokens at all; it shows as much."""
    it = core(backend("old"), routing="least_request")
    it.backend_joined(assumed("new"), 0.0)
    shares = []
    for round_s in (10.0, 20.0, 30.0):
        sends = burst(it, 80, round_s, streamed=False, endpoint=endpoint)
        shares.append(len(sends["new"]))
        for send in [send for each in sends.values() for send in each]:
            it.ended(send.request_id, send.attempt, Usage(0 if "embeddings" in endpoint else 11), round_s + 0.2)
    assert shares == [4, 8, 16]


def test_a_reply_across_a_pause_of_the_router_allows_one_more() -> None:
    """Its time is none of the engine's, and it has begun all the same."""
    it = core(backend("old"), routing="least_request")
    it.backend_joined(assumed("new"), 0.0)
    sends = burst(it, 80, 10.0)
    it.paused(5.0, 15.0)
    for each in sends.values():
        ended(it, each, 15.0)
    assert len(burst(it, 80, 20.0)["new"]) == 8


def test_an_attempt_that_fails_allows_none() -> None:
    """Nothing was seen of what it takes."""
    it = core(backend("old"), routing="least_request")
    it.backend_joined(assumed("new"), 0.0)
    for send in burst(it, 80, 10.0)["new"]:
        it.failed(send.request_id, send.attempt, Failure("busy", backend_fault=False), 10.1)
    assert len(burst(it, 80, 20.0)["new"]) <= 4


def test_slo_headroom_fills_one_that_is_known_and_tries_one_that_is_not() -> None:
    """By the same prediction: the prior is the same, and only what is known of its error differs."""
    shares = {}
    for new in (backend("new"), assumed("new")):
        it = core(backend("old"), routing="slo_headroom")
        it.backend_joined(new, 0.0)
        shares[new.prior.sigma[0]] = len(burst(it, 80, 10.0)["new"])
    assert shares[1.0] == 4
    assert shares[0.3] > 20


def test_time_alone_allows_none() -> None:
    """An hour without a stream has shown nothing."""
    it = core(backend("old"), routing="least_request")
    it.backend_joined(assumed("new"), 0.0)
    assert len(burst(it, 80, 3600.0)["new"]) == 4


def test_one_whose_card_and_model_are_known_has_its_share_at_once() -> None:
    """Its own forecast says what it takes."""
    it = core(backend("old"), routing="least_request")
    it.backend_joined(backend("new"), 0.0)
    assert len(burst(it, 80, 10.0)["new"]) == 40


def test_it_takes_what_nobody_else_is_there_for() -> None:
    """Alone, or beside others of its kind only, it is better than a refusal; and so once the others are down."""
    it = core(assumed("new"), routing="least_request")
    assert len(burst(it, 20, 10.0)["new"]) == 20
    two = core(assumed("a"), assumed("b"), routing="least_request")
    assert sorted(len(sends) for sends in burst(two, 20, 10.0).values()) == [10, 10]
    beside = core(backend("old"), assumed("new"), routing="least_request")
    beside.backend_health("old", False, 5.0)
    assert len(burst(beside, 20, 10.0)["new"]) == 20


def test_a_retry_goes_there_where_all_others_were_tried() -> None:
    """However many it has: an attempt there is better than none."""
    it = core(backend("old"), assumed("new"), routing="least_request")
    sends = burst(it, 80, 10.0)
    assert len(sends["new"]) == 4
    failed = sends["old"][0]
    (again,) = it.failed(failed.request_id, failed.attempt, Failure("reset"), 10.1)
    assert isinstance(again, Send)
    assert again.backend == "new"


def test_another_in_its_place_starts_by_its_own_facts() -> None:
    """A slot that is taken again has no memory of the backend before."""
    it = core(backend("old"), assumed("new"), routing="least_request")
    it.backend_left("new", 1.0)
    it.backend_joined(backend("known"), 2.0)
    assert len(burst(it, 80, 10.0)["known"]) == 40
