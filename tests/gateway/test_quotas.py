"""Quotas on the wire: what a client gets, what several routers share, what the store keeps of a month."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import openai
import pytest
from redis.asyncio import Redis

from router.core.errors import StateFault, StoreGone
from router.core.quota import ADDITION_MOST, Limit, Price, Quota, QuotaRules, Quotas, Standing, Use, Verdict
from router.gateway.control.quota_view import usage
from router.gateway.protocols.ingress import Caller, Ingress
from router.gateway.protocols.quota_answers import duration, fields, problem
from router.gateway.state.monthly_use import MonthlyUse
from router.gateway.state.redis import RedisStore
from router.gateway.state.servers import RedisServers
from tests.fakes import request
from tests.fakes_router import HEALTHY, Router, backend, config, router
from tests.fakes_wire import STREAM_HEAD, Act, Gateway, ScriptedEngine, chat, pair, reply, stream
from tests.gateway.test_settings import BACKENDS, plan, refused
from tests.pages import Pages
from tests.redis_server import RedisServer, server_binary
from tests.waiting import until, until_async

USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
needs_redis = pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")


def quotas(**limits: float) -> Quotas:
    """Of tenant t, by the driver's clock, which does not begin at 0."""
    return Quotas(QuotaRules({"t": Quota(**limits)}), asyncio.get_running_loop().time())


async def asked(gate: Gateway, tenant: str = "t", *, streamed: bool = True) -> tuple[int, Mapping[str, str]]:
    """Status and header lines of one completion."""
    got = await gate.chat(stream=streamed, more=f"x-llm-d-inference-fairness-id: {tenant}\r\n")
    return got.status, got.headers


async def test_a_reply_says_what_is_left_and_a_refusal_when_to_come_again() -> None:
    """OpenAI's header lines; nothing of a refused request reaches the core or an engine."""
    async with pair([stream("a", usage=USAGE)], quotas=quotas(requests_per_minute=2, tokens_per_minute=600)) as (
        gate,
        engine,
    ):
        status, first = await asked(gate)
        assert (status, first["x-ratelimit-limit-requests"], first["x-ratelimit-remaining-requests"]) == (200, "2", "1")
        assert first["x-ratelimit-limit-tokens"] == "600"
        assert first["x-ratelimit-reset-requests"].startswith(("30s", "29."))
        await asked(gate)
        status, headers = await asked(gate)
        assert (status, headers["retry-after"], headers["x-headroom-dropped-reason"]) == (
            429, "30", "quota-requests-per-minute",
        )  # fmt: skip
        assert len(engine.requests) == len(gate.seen.outcomes) == 2
        assert (await asked(gate, "other"))[0] == 200


async def test_what_an_engine_states_is_what_is_charged() -> None:
    """Of a stream, of a whole reply, and of one whose client has left: then what came until then."""
    whole = reply(b'{"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 30, "completion_tokens": 5}}')
    given = quotas(tokens_per_minute=1e6)
    async with pair([stream("a", usage=USAGE)], [whole], [STREAM_HEAD, Act.UNTIL_LEFT], quotas=given) as (gate, engine):
        await asked(gate)
        await asked(gate, streamed=False)
        assert given.counted["tenant:t"].tokens == 12 + 35
        client = await gate.client()
        client.send(chat(more="x-llm-d-inference-fairness-id: t\r\n"))
        await until(lambda: len(engine.requests) == 3)
        client.close()
        await until(lambda: not gate.driver._in_flight)
        state = next(iter(given.states(gate.driver.clock())))
        assert state.running == 0


async def test_the_official_client_meets_an_error_of_its_own_kind() -> None:
    """A minute that is used up is a rate limit; it is not tried again where no wait helps."""
    async with pair([stream("a", usage=USAGE)], quotas=quotas(tokens_per_minute=5)) as (gate, engine):
        client = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{gate.port}/v1",
            api_key="k",
            default_headers={"x-llm-d-inference-fairness-id": "t"},
        )
        with pytest.raises(openai.RateLimitError, match="the prompt alone has more tokens") as caught:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "word " * 100}])
        assert caught.value.code == "rate_limit_exceeded"
        assert engine.requests == []
        await client.close()


async def test_a_key_has_its_own_quota_beside_its_tenants() -> None:
    """By the digest that it is stored by."""
    made = plan(
        BACKENDS
        + """
api_keys:
  - {key: first-secret, tenant: t, quota: {requests_per_minute: 1}}
  - {key: other-secret, tenant: t}
quotas: {t: {requests_per_minute: 3}}
"""
    )
    now_s = asyncio.get_running_loop().time()
    async with pair([stream("a", usage=USAGE)], ingress=made.ingress, quotas=Quotas(made.quotas, now_s)) as (gate, _):

        async def status(key: str) -> int:
            return (await gate.chat(more=f"authorization: Bearer {key}\r\n")).status

        assert [await status(key) for key in ("first-secret", "first-secret")] == [200, 429]
        assert [await status("other-secret") for _ in range(3)] == [200, 200, 429]


async def test_requests_that_are_not_routed_take_nothing() -> None:
    """One that cannot be read, or that the core sheds at once, has its tokens back; the latter was a request."""
    given = quotas(requests_per_minute=5, tokens_per_minute=1e6)
    async with pair([stream("a", usage=USAGE)], models=("other",), quotas=given) as (gate, _):
        assert (await asked(gate))[0] == 404
        state = next(iter(given.states(gate.driver.clock())))
        assert (state.running, state.used.tokens) == (0, 0.0)
        assert state.tokens is not None
        assert state.tokens.remaining == 1e6


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, b"0ms"), (0.0123, b"12ms"), (1.5, b"1.5s"), (59.0, b"59s"), (360.4, b"6m0s")]
)
def test_a_duration_is_written_as_openai_does(seconds: float, said: bytes) -> None:
    """Of resets."""
    assert duration(seconds) == said


def test_header_lines_are_whole_numbers() -> None:
    """A part of a request is none."""
    lines = fields(Verdict(None, "", 0.0, Standing(2.5, 1.9, 3.0), None))
    assert lines == (
        b"x-ratelimit-limit-requests: 2\r\nx-ratelimit-remaining-requests: 1\r\nx-ratelimit-reset-requests: 3s\r\n"
    )


@pytest.mark.parametrize("limit", Limit)
def test_a_refusal_names_whose_limit_it_is(limit: Limit) -> None:
    """Of a key: which one, by its digest, never the key."""
    said = problem(Verdict(limit, "key:t/0123abcd", 2.2, None, None))
    assert said.status == 429
    assert said.message.startswith("quota of key 0123abcd of tenant t: ")
    final = limit in {Limit.TOO_LARGE, Limit.MONTH_TOKENS, Limit.MONTH_USD}
    assert (b"retry-after: 3" in said.fields, b"x-should-retry: false" in said.fields) == (not final, final)


def test_impossible_quotas_are_refused_with_their_place() -> None:
    """A tenant that no key has, a month without a store, money without prices, a limit below 0."""
    keys = "api_keys: [{key: first-secret, tenant: team-a}]\n"
    assert (
        "r.yaml:5: quotas.team-b: unknown tenant; did you mean 'team-a'?"
        in refused(BACKENDS + keys + "quotas: {team-b: {}}")[0]
    )
    assert (
        "quotas.t.tokens_per_month: needs state.redis_url"
        in refused(BACKENDS + "quotas: {t: {tokens_per_month: 9}}")[0]
    )
    shared = "state: {redis_url: redis://h}\n"
    assert "quotas.t.usd_per_month: needs prices" in refused(BACKENDS + shared + "quotas: {t: {usd_per_month: 9}}")[0]
    assert "greater than 0" in refused(BACKENDS + "quotas: {t: {tokens_per_minute: -1}}")[0]
    prices = "prices: {tiny: {input: 1, output: 2}, '*': {input: 3, output: 4, cached_input: 0.5}}"
    made = plan(BACKENDS + prices)
    assert made.quotas.prices == {"tiny": Price(1, 1, 2), "*": Price(3, 0.5, 4)}


def test_the_caller_of_a_key_without_a_quota_has_no_account() -> None:
    """So that nothing is counted for it."""
    made = plan(BACKENDS + "api_keys: [{key: first-secret, tenant: t}]")
    assert list(made.ingress.keys.values()) == [Caller("t")]
    assert Ingress().keys == {}


class Sums:
    """A store whose answers can be lost, before or after it has done its work."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Use] = {}
        self.last: dict[tuple[str, str], int] = {}
        self.lose = ""  # "before" or "after" the next addition is made
        self.away = False

    async def add_use(self, month: str, run: str, number: int, used: Mapping[str, Use]) -> None:
        lose, self.lose = "before" if self.away else self.lose, ""
        if lose != "before" and self.last.get((month, run), 0) < number:
            for account, use in used.items():
                self.sums[month, account] = self.sums.get((month, account), Use()).plus(use)
            self.last[month, run] = number
        if lose:
            raise StoreGone("no answer", StateFault.TIMEOUT)

    async def used(self, month: str, accounts: Sequence[str]) -> Mapping[str, Use]:
        return {account: self.sums[month, account] for account in accounts if (month, account) in self.sums}


@pytest.mark.parametrize("lose", ["", "before", "after"])
async def test_an_addition_is_made_once_whether_its_answer_comes_or_not(lose: str) -> None:
    """What was lost before it arrived is added later; what was added is not added again."""
    sums, it = Sums(), Quotas(QuotaRules({"t": Quota()}))
    monthly = MonthlyUse(sums, it, lambda: "2026-11")
    for name in "ab":
        it.admit(request(name, tenant="t"), "", True, 0.0)
        it.settle(name, 100, 0, 10, 0.0)
        sums.lose = lose if name == "a" else ""
        assert await monthly.once() is (name == "b" or not lose)
    assert sums.sums == {("2026-11", "tenant:t"): Use(2.0, 200.0, 0.0, 20.0)}
    assert it.unsaved() == ("2026-11", {})


async def test_accounts_beyond_those_of_one_addition_are_added_in_the_same_round() -> None:
    """The first ones are in use all the time: the others must not wait for a round without them."""
    names = [f"t{n}" for n in range(2 * ADDITION_MOST + 1)]
    sums, it = Sums(), Quotas(QuotaRules(dict.fromkeys(names, Quota())))
    for name in names:
        it.admit(request(name, tenant=name), "", False, 0.0)
        it.settle(name, 7, 0, 0, 0.0)
    assert await MonthlyUse(sums, it, lambda: "2026-11").once()
    assert {account: each.tokens for (_, account), each in sums.sums.items()} == {f"tenant:{n}": 7.0 for n in names}


async def test_a_month_ends_with_its_name() -> None:
    """What is used in the next one counts there."""
    sums, it, month = Sums(), Quotas(QuotaRules({"t": Quota(tokens_per_month=100.0)})), "2026-11"
    monthly = MonthlyUse(sums, it, lambda: month)
    it.admit(request("a", tenant="t"), "", False, 0.0)
    it.settle("a", 100, 0, 0, 0.0)
    await monthly.once()
    assert it.admit(request("b", tenant="t"), "", False, 0.0).limit is Limit.MONTH_TOKENS
    month = "2026-12"
    await monthly.once()
    assert it.admit(request("c", tenant="t"), "", False, 0.0).limit is None


def test_use_is_shown_under_the_month_in_which_it_is_summed() -> None:
    """Which ends with a round of the sums: a moment after midnight it is still the one before."""
    it = Quotas(QuotaRules({"t": Quota()}))
    it.turn("2020-01")
    it.admit(request("a", tenant="t"), "", False, 0.0)
    it.settle("a", 100, 0, 0, 0.0)
    shown = usage(it, 0.0, shared=True)
    assert (shown["month"], shown["accounts"]["tenant:t"]["used"]["prompt_tokens"]) == ("2020-01", 100.0)
    assert usage(it, 0.0, shared=False)["month"] is None


async def test_a_month_ends_while_the_store_is_away() -> None:
    """What was used in it, an addition under way included, is added to its own sums once the store is back."""
    sums, it, month = Sums(), Quotas(QuotaRules({"t": Quota(tokens_per_month=100.0)})), "2026-11"
    monthly = MonthlyUse(sums, it, lambda: month)

    def use(name: str, tokens: int) -> None:
        assert it.admit(request(name, tenant="t"), "", False, 0.0).limit is None
        it.settle(name, tokens, 0, 0, 0.0)

    use("a", 60)
    sums.lose = "after"
    assert not await monthly.once()
    use("b", 50)
    sums.away = True
    assert not await monthly.once()
    assert it.admit(request("c", tenant="t"), "", False, 0.0).limit is Limit.MONTH_TOKENS
    month = "2026-12"
    assert not await monthly.once()
    use("d", 30)
    sums.away = False
    assert await monthly.once()
    assert {key: each.tokens for key, each in sums.sums.items()} == {
        ("2026-11", "tenant:t"): 110.0,
        ("2026-12", "tenant:t"): 30.0,
    }
    assert it.unsaved() == ("2026-12", {})
    assert next(iter(it.states(0.0))).used.tokens == 30.0


@pytest.mark.parametrize("away", [False, True])
async def test_a_clock_that_is_set_back_over_the_end_of_a_month_loses_no_use(away: bool) -> None:
    """Nor adds any twice: each month has what was used while it was that month, whether the store answered or not."""
    sums, it, month = Sums(), Quotas(QuotaRules({"t": Quota(tokens_per_month=100.0)})), "2026-11"
    monthly = MonthlyUse(sums, it, lambda: month)

    def use(name: str, tokens: int) -> None:
        assert it.admit(request(name, tenant="t"), "", False, 0.0).limit is None
        it.settle(name, tokens, 0, 0, 0.0)

    await monthly.once()
    sums.away = away
    use("a", 60)
    await monthly.once()
    for name, now, tokens in (("b", "2026-12", 30), ("c", "2026-11", 50), ("d", "2026-12", 30)):
        month = now
        await monthly.once()
        use(name, tokens)
    month = "2026-11"
    it.turn(month)
    assert it.admit(request("e", tenant="t"), "", False, 0.0).limit is Limit.MONTH_TOKENS
    sums.away = False
    for _ in range(4):
        assert await monthly.once()
    assert {key: each.tokens for key, each in sums.sums.items()} == {
        ("2026-11", "tenant:t"): 110.0,
        ("2026-12", "tenant:t"): 60.0,
    }
    assert it.unsaved() == (month, {})


async def test_use_of_an_account_that_is_gone_is_added_to_a_month_that_comes_back() -> None:
    """A quota may be taken out of the config meanwhile, and be there again later."""
    sums, month = Sums(), "2026-11"
    rules = QuotaRules({"t": Quota(), "u": Quota()})
    it = Quotas(rules)
    monthly = MonthlyUse(sums, it, lambda: month)
    await monthly.once()
    it.admit(request("a", tenant="t"), "", False, 0.0)
    it.settle("a", 60, 0, 0, 0.0)
    sums.away = True
    month = "2026-12"
    await monthly.once()
    it.adopt(QuotaRules({"u": Quota()}), 0.0)
    month = "2026-11"
    await monthly.once()
    it.adopt(rules, 0.0)
    it.admit(request("b", tenant="t"), "", False, 0.0)
    it.settle("b", 7, 0, 0, 0.0)
    sums.away = False
    for _ in range(4):
        assert await monthly.once()
    assert {key: each.tokens for key, each in sums.sums.items()} == {("2026-11", "tenant:t"): 67.0}


async def test_months_without_a_store_are_held_within_a_bound() -> None:
    """Of a router that runs for a year alone."""
    sums, it = Sums(), Quotas(QuotaRules({"t": Quota(tokens_per_month=1e9)}))
    sums.away = True
    for n in range(1, 13):
        monthly = MonthlyUse(sums, it, lambda n=n: f"2026-{n:02d}")
        assert not await monthly.once() or n == 1
        it.admit(request(f"r{n}", tenant="t"), "", False, 0.0)
        it.settle(f"r{n}", 10, 0, 0, 0.0)
    assert list(it._past) == ["2026-10", "2026-11"]


@needs_redis
async def test_a_real_store_sums_what_several_routers_add() -> None:
    """Whole numbers, by account; what is no number there is nothing, and everything expires."""
    async with RedisServer() as server, AsyncExitStack() as stack:
        stores = [RedisStore(RedisServers.of_urls(server.url), "p", name, 5.0, timeout_s=1.0) for name in "ab"]
        for each in stores:
            stack.push_async_callback(each.close)
        for each in stores:
            for number in (1, 2, 2, 1):  # the last two come late: they were made before
                await each.add_use("2026-11", "run", number, {"tenant:t": Use(1.0, 50.0, 25.0, 3.5, 0.125)})
        assert await stores[0].used("2026-11", ["tenant:t", "tenant:u"]) == {
            "tenant:t": Use(4.0, 200.0, 100.0, 16.0, 0.5),
            "tenant:u": Use(),
        }
        client = await stack.enter_async_context(Redis.from_url(server.url, protocol=2))
        key = "{headroom:p}:use:2026-11"
        assert await client.ttl(key) > 40 * 24 * 3600
        await client.hset(key, "output_tokens:tenant:t", "garbage")
        assert (await stores[0].used("2026-11", ["tenant:t"]))["tenant:t"] == Use(4.0, 200.0, 100.0, 0.0, 0.5)
        await stores[0].add_use("2026-11", "later", 1, {"tenant:t": Use(1.0, 0.0, 0.0, 5.0)})
        assert (await stores[0].used("2026-11", ["tenant:t"]))["tenant:t"] == Use(5.0, 200.0, 100.0, 5.0, 0.5)
        await client.set(key, "no hash")
        with pytest.raises(StoreGone):
            await stores[0].used("2026-11", ["tenant:t"])
        with pytest.raises(StoreGone):
            await stores[0].add_use("2026-11", "later", 2, {"tenant:t": Use(1.0)})


@asynccontextmanager
async def routers(
    server: RedisServer, folder: Path, engine: ScriptedEngine, count: int, more: str
) -> AsyncIterator[list[Router]]:
    """So many routers of one pool."""
    async with AsyncExitStack() as stack:
        pages = await stack.enter_async_context(Pages(dict(HEALTHY)))
        made = []
        for n in range(count):
            state = f"state: {{redis_url: '{server.url}', router_id: r{n}, sync_s: 0.02}}\n"
            text = config(backend("a", engine, pages), more=state + more)
            made.append(await stack.enter_async_context(router(folder / f"r{n}.yaml", text)))
        yield made


@needs_redis
async def test_routers_share_a_minute_and_a_month(tmp_path: Path) -> None:
    """Six requests a minute are six through three routers, and a month's use outlives all of them."""
    more = "quotas: {t: {requests_per_minute: 6, tokens_per_month: 1000}}\n"
    by = {"headers": {"x-llm-d-inference-fairness-id": "t"}}
    async with RedisServer() as server, ScriptedEngine([stream("a", usage=USAGE)]) as engine:
        async with routers(server, tmp_path, engine, 3, more) as three:
            for n in range(6):
                assert (await three[n % 3].chat(**by)).status_code == 200
                await until(lambda n=n: all(_requests_left(each) <= 6 - (n + 1) + 0.9 for each in three))
            assert [(await each.chat(**by)).status_code for each in three] == [429] * 3

            async def used() -> bool:
                shown = (await three[0].get("/admin/usage")).json()
                return bool(shown["accounts"]["tenant:t"]["used"]["prompt_tokens"] == 60)

            await until_async(used)
            page = (await three[0].get("/metrics")).text
            assert 'headroom_quota_refused_requests_total{account="tenant:t",limit="requests-per-minute"} 1.0' in page
        async with routers(server, tmp_path, engine, 1, "quotas: {t: {tokens_per_month: 72}}\n") as (new,):

            async def spent() -> bool:
                return (await new.chat(**by)).status_code == 429

            await until_async(spent)
            error = (await new.chat(**by)).json()["error"]
            assert (error["code"], error["message"]) == (
                "insufficient_quota", "quota of tenant t: the tokens of this month are used up",
            )  # fmt: skip


def _requests_left(of: Router) -> float:
    gateway = of.gateway
    left = [each.requests for each in gateway.quotas.states(gateway.clock()) if each.requests is not None]
    return left[0].remaining if left else 6.0


async def test_a_reload_changes_quotas_and_keeps_what_was_used(tmp_path: Path) -> None:
    """From one request a minute to two: one more, not two."""
    by = {"headers": {"x-llm-d-inference-fairness-id": "t"}}
    async with ScriptedEngine([stream("a", usage=USAGE)]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages), more="quotas: {t: {requests_per_minute: 1}}\n")
        async with router(tmp_path / "r.yaml", text) as it:
            assert [(await it.chat(**by)).status_code for _ in range(2)] == [200, 429]
            (tmp_path / "r.yaml").write_text(text.replace("minute: 1}", "minute: 2}"), encoding="utf-8")
            assert (await it.client.post("/admin/reload")).status_code == 200
            assert [(await it.chat(**by)).status_code for _ in range(2)] == [200, 429]
            shown = (await it.get("/admin/usage")).json()
            assert (shown["month"], shown["accounts"]["tenant:t"]["limits"]) == (None, {"requests_per_minute": 2.0})
