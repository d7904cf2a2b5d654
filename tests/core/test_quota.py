"""Quotas: what they admit over any time, how several routers share one, and that nothing a peer says lasts."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.quota import ACCOUNTS_MOST, SHARES_MOST, Limit, Price, Quota, QuotaRules, Quotas, Shares, Use
from tests.fakes import request

A_MINUTE = 60.0


def quotas(*, tokens: float = inf, requests: float = inf, **more: float) -> Quotas:
    """Of tenant t."""
    return Quotas(QuotaRules({"t": Quota(requests_per_minute=requests, tokens_per_minute=tokens, **more)}))


def asks(it: Quotas, name: str, now_s: float, *, tenant: str = "t", key: str = "", **facts: int) -> Limit | None:
    """What refuses a request of 100 tokens and a reply of at most 50."""
    asked = request(name, tenant=tenant, **{"prompt_tokens": 100, "output_tokens_max": 50, **facts})
    return it.admit(asked, key, True, now_s).limit


def left(it: Quotas, now_s: float) -> tuple[float, float]:
    """Requests and tokens that are left."""
    state = next(iter(it.states(now_s)))
    return (
        state.requests.remaining if state.requests is not None else inf,
        state.tokens.remaining if state.tokens is not None else inf,
    )


def test_a_minute_has_so_many_requests_and_they_come_back_one_by_one() -> None:
    """Two a minute: the third waits for 30 s, and that is what the client gets."""
    it = quotas(requests=2)
    assert [asks(it, name, 0.0) for name in "abc"] == [None, None, Limit.REQUESTS]
    verdict = it.admit(request("d", tenant="t"), "", True, 6.0)
    assert verdict.account == "tenant:t"
    assert verdict.retry_s == pytest.approx(24.0)
    assert asks(it, "e", 30.0) is None


def test_what_was_estimated_is_settled_by_what_was_used() -> None:
    """150 tokens are taken at the arrival, 110 were used: 40 are given back; what reached no engine is free."""
    it = quotas(tokens=1000)
    asks(it, "a", 0.0)
    assert left(it, 0.0)[1] == pytest.approx(850)
    it.settle("a", 100, 0, 10, 0.0)
    assert left(it, 0.0)[1] == pytest.approx(890)
    asks(it, "b", 0.0)
    it.settle("b", 0, 0, 0, 0.0)
    assert left(it, 0.0)[1] == pytest.approx(890)


def test_a_long_reply_leaves_a_debt_that_time_pays() -> None:
    """1,900 tokens of 1,000: nothing is admitted until the level is above what the next one needs."""
    it = quotas(tokens=1000)
    asks(it, "a", 0.0)
    it.settle("a", 100, 0, 1800, 0.0)
    assert asks(it, "b", 0.0) is Limit.TOKENS
    verdict = it.admit(request("c", tenant="t", output_tokens_max=50), "", True, 0.0)
    assert verdict.retry_s == pytest.approx((900 + 150) * 60 / 1000)
    assert verdict.tokens is not None
    assert verdict.tokens.remaining == 0.0
    assert asks(it, "d", verdict.retry_s + 1e-6) is None


def test_a_prompt_that_never_fits_is_refused_for_good_and_a_long_cap_is_not() -> None:
    """A cap of 100,000 tokens is no reply of 100,000: it takes what is there."""
    it = quotas(tokens=1000)
    assert it.admit(request("a", tenant="t", prompt_tokens=1001), "", True, 0.0).retry_s == inf
    assert asks(it, "b", 0.0, prompt_tokens=990, output_tokens_max=100_000) is None


def test_a_request_is_charged_by_what_replies_are_like() -> None:
    """Without a cap the mean of replies so far counts, for each of its sequences."""
    it = quotas(tokens=1e6)
    for n in range(200):
        asks(it, f"r{n}", 0.0, output_tokens_max=0)
        it.settle(f"r{n}", 100, 0, 20, 0.0)
    before = left(it, 0.0)[1]
    asks(it, "x", 0.0, output_tokens_max=0, sequences=4)
    assert before - left(it, 0.0)[1] == pytest.approx(180, rel=0.01)


def test_requests_that_run_at_once_are_bounded() -> None:
    """Whatever they use; an end makes room."""
    it = quotas(requests_parallel_max=2.0)
    assert [asks(it, name, 0.0) for name in "abc"] == [None, None, Limit.PARALLEL]
    it.settle("a", 100, 0, 10, 1.0)
    assert asks(it, "d", 1.0) is None


def test_a_month_is_over_when_its_tokens_or_its_money_are() -> None:
    """What runs counts with its estimate, so that many at once do not exceed it by much."""
    it = quotas(tokens_per_month=300.0)
    assert [asks(it, name, 0.0) for name in "abc"] == [None, None, Limit.MONTH_TOKENS]
    it.settle("a", 100, 0, 10, 0.0)
    assert asks(it, "d", 0.0) is None
    prices = {"*": Price(1.0, 0.1, 10.0)}
    it = Quotas(QuotaRules({"t": Quota(usd_per_month=0.001)}, prices=prices))
    asks(it, "a", 0.0)
    it.settle("a", 1000, 500, 45, 0.0)  # 500 x 1 + 500 x 0.1 + 45 x 10 = 1000 millionths
    assert asks(it, "b", 0.0) is Limit.MONTH_USD
    assert it.counted["tenant:t"].usd == pytest.approx(0.001)


def test_a_key_and_its_tenant_both_count_and_a_refusal_takes_from_neither() -> None:
    """The key's own limit is the tighter one here."""
    rules = QuotaRules({"t": Quota(requests_per_minute=10)}, {"t/k": Quota(requests_per_minute=1)})
    it = Quotas(rules)
    assert [asks(it, name, 0.0, key="t/k") for name in "ab"] == [None, Limit.REQUESTS]
    assert {each.name: each.requests.remaining for each in it.states(0.0) if each.requests is not None} == {
        "key:t/k": 0.0,
        "tenant:t": 9.0,
    }
    assert it.refused == {("key:t/k", Limit.REQUESTS): 1}


def test_a_tenant_without_a_quota_is_not_limited_unless_all_are() -> None:
    """``*`` gives each its own account, and metrics one for all of them."""
    assert asks(quotas(requests=1), "a", 0.0, tenant="u") is None
    it = Quotas(QuotaRules({"*": Quota(requests_per_minute=1)}))
    assert [asks(it, f"{tenant}{n}", 0.0, tenant=tenant) for tenant in "uv" for n in (1, 2)] == [
        None,
        Limit.REQUESTS,
        None,
        Limit.REQUESTS,
    ]
    assert it.refused == {("tenant:*", Limit.REQUESTS): 2}


def test_tenants_named_by_clients_do_not_fill_the_memory() -> None:
    """Once there are so many in use, the others share one account; idle ones go first."""
    it = Quotas(QuotaRules({"*": Quota(requests_per_minute=1)}))
    for n in range(ACCOUNTS_MOST + 50):
        asks(it, f"r{n}", 0.0, tenant=f"t{n}")
    assert len(list(it.states(0.0))) == ACCOUNTS_MOST + 1
    for n in range(ACCOUNTS_MOST + 50):
        it.settle(f"r{n}", 0, 0, 0, 0.0)
    asks(it, "last", 1000.0, tenant="new")
    assert len(list(it.states(1000.0))) == 1


def test_another_config_keeps_what_was_used() -> None:
    """Of a limit that grows the growth is there at once; a quota that goes frees its tenant."""
    it = quotas(requests=2)
    asks(it, "a", 0.0)
    asks(it, "b", 0.0)
    it.adopt(QuotaRules({"t": Quota(requests_per_minute=3)}), 0.0)
    assert [asks(it, name, 0.0) for name in "cd"] == [None, Limit.REQUESTS]
    it.adopt(QuotaRules(), 0.0)
    assert not it.active
    it.settle("a", 100, 0, 10, 0.0)


def test_requests_end_that_began_under_a_quota_that_is_gone() -> None:
    """When it comes back, they are not in flight for ever."""
    it = quotas(requests_parallel_max=1.0)
    asks(it, "a", 0.0)
    rules = it._rules
    it.adopt(QuotaRules(), 0.0)
    assert (it.active, it.in_flight) == (False, True)
    it.settle("a", 100, 0, 10, 0.0)
    it.adopt(rules, 0.0)
    assert (it.in_flight, asks(it, "b", 0.0)) == (False, None)


def test_money_of_requests_in_flight_counts() -> None:
    """Else all that come at once would have what is left for one."""
    it = Quotas(QuotaRules({"t": Quota(usd_per_month=0.001)}, prices={"*": Price(1.0, 1.0, 10.0)}))
    assert [asks(it, name, 0.0) for name in "abc"] == [None, None, Limit.MONTH_USD]  # 100 x 1 + 50 x 10 millionths
    it.settle("a", 0, 0, 0, 0.0)
    it.settle("b", 0, 0, 0, 0.0)
    assert asks(it, "d", 0.0) is None


def test_only_what_the_config_names_or_limits_by_the_month_is_stored() -> None:
    """Names that clients make up would fill the store; a router publishes no more accounts than a view can hold."""
    it = Quotas(QuotaRules({"*": Quota(requests_per_minute=9), "t": Quota()}))
    for n in range(SHARES_MOST + 9):
        asks(it, f"r{n}", 0.0, tenant=f"t{n}")
        it.settle(f"r{n}", 1, 0, 1, 0.0)
    asks(it, "own", 1.0)
    it.settle("own", 1, 0, 1, 1.0)
    assert set(it.unsaved()[1]) == {"tenant:t"}
    shares = it.shares(1.0)
    assert len(shares) == SHARES_MOST
    assert "tenant:t" in shares


steps = st.lists(
    st.tuples(
        st.floats(0, 40),  # seconds since the one before
        st.integers(1, 400),  # of its prompt
        st.integers(0, 400),  # of its reply
        st.booleans(),  # whether it ends at once
    ),
    max_size=40,
)


@given(steps=steps, per_minute=st.floats(1, 50))
def test_no_window_admits_more_than_its_share(steps: list[tuple[float, int, int, bool]], per_minute: float) -> None:
    """In any stretch of time: a minute's worth and what has come back since."""
    it, now_s, admitted = quotas(requests=per_minute), 0.0, []
    for n, (wait_s, prompt, _, _) in enumerate(steps):
        now_s += wait_s
        if asks(it, str(n), now_s, prompt_tokens=prompt) is None:
            admitted.append(now_s)
    for i, from_s in enumerate(admitted):
        for j, to_s in enumerate(admitted[i:], 1):
            assert j <= per_minute * (1 + (to_s - from_s) / A_MINUTE) + 1e-6


@given(steps=steps)
def test_what_is_charged_is_what_is_used(steps: list[tuple[float, int, int, bool]]) -> None:
    """Once all have ended the level is a minute's worth less what was used, plus what came back; counts only grow."""
    it, now_s, running, taken = quotas(tokens=5000), 0.0, [], 0.0
    for n, (wait_s, prompt, output, ends) in enumerate(steps):
        now_s += wait_s
        if asks(it, str(n), now_s, prompt_tokens=prompt) is None:
            running.append((str(n), prompt, output))
        if ends and running:
            name, *used = running.pop(0)
            it.settle(name, used[0], 0, used[1], now_s)
        published = it.shares(now_s)
        if published:
            assert published["tenant:t"].tokens >= taken
            taken = published["tenant:t"].tokens
    for name, prompt, output in running:
        it.settle(name, prompt, 0, output, now_s)
    for state in it.states(now_s):
        assert state.running == 0
        assert state.tokens is not None
        assert 0.0 <= state.tokens.remaining <= 5000
    if it.counted:
        assert it.counted["tenant:t"].tokens == sum(
            each.used.tokens for each in it.states(now_s)
        )  # nothing is lost between the two


def exchange(several: list[Quotas], now_s: float) -> None:
    """Each hears of all others."""
    views = [each.shares(now_s) for each in several]
    for i, each in enumerate(several):
        for j, view in enumerate(views):
            if i != j:
                each.heard(str(j), view, now_s)


@given(steps=steps, count=st.integers(2, 4))
def test_routers_that_hear_each_other_at_once_admit_as_one(
    steps: list[tuple[float, int, int, bool]], count: int
) -> None:
    """Requests that go round several routers meet the same limits as at one. Each uses what was expected: what is given
    back is published with what is taken next.
    """
    alone, *several = (quotas(tokens=3000, requests=20, requests_parallel_max=6.0) for _ in range(count + 1))
    running: list[tuple[Quotas, str, int]] = []
    now_s = 0.0
    for n, (wait_s, prompt, _, ends) in enumerate(steps):
        now_s += wait_s
        exchange(several, now_s)
        here = several[n % count]
        got = asks(here, str(n), now_s, prompt_tokens=prompt)
        assert asks(alone, str(n), now_s, prompt_tokens=prompt) is got
        if got is None:
            running.append((here, str(n), prompt))
        if ends and running:
            at, name, used = running.pop(0)
            at.settle(name, used, 0, 50, now_s)
            alone.settle(name, used, 0, 50, now_s)


numbers = st.floats() | st.sampled_from([inf, -inf, nan, 1e300, -1e300, 0.0])


@given(views=st.lists(st.tuples(st.sampled_from("xy"), numbers, numbers, numbers, numbers, numbers), max_size=12))
def test_nothing_that_a_peer_says_lasts(views: list[tuple[str, float, float, float, float, float]]) -> None:
    """Two minutes after the last word and its lease's end, a tenant may use all that it may."""
    it = quotas(tokens=1000, requests=10, requests_parallel_max=4.0)
    for peer, *numbers_ in views:
        it.heard(peer, {"tenant:t": Shares(*numbers_), "key:no": Shares(*numbers_)}, 1.0)
    for peer in "xy":
        it.lost(peer)
    assert asks(it, "a", 121.0 + 1e-3) is None
    assert left(it, 121.0 + 1e-3) == (pytest.approx(9.0), pytest.approx(850.0))


def test_a_router_that_starts_takes_over_what_its_peers_have_left() -> None:
    """Else each restart would give a tenant another minute's worth."""
    old, new = quotas(requests=10), quotas(requests=10)
    for n in range(9):
        asks(old, str(n), 0.0)
    new.heard("old", old.shares(0.0), 0.0)
    assert [asks(new, name, 0.0) for name in "ab"] == [None, Limit.REQUESTS]


def test_the_store_has_the_month_and_this_router_what_it_has_not_added_yet() -> None:
    """An addition moves from one to the other; another month begins at what the store has of it: nothing."""
    it = quotas(tokens_per_month=1000.0)
    asks(it, "a", 0.0)
    it.settle("a", 100, 0, 100, 0.0)
    month, used = it.unsaved()
    assert used == {"tenant:t": Use(1.0, 100.0, 0.0, 100.0)}
    it.added(month, used)
    assert it.unsaved() == (month, {})
    it.read({"tenant:t": Use(40.0, 900.0, 0.0, 100.0)})
    assert asks(it, "b", 0.0) is Limit.MONTH_TOKENS
    it.read({})
    assert asks(it, "c", 0.0) is None
