"""Quotas: how much of the router each tenant and each key may use, and how much of that is left.

Pure: the time is an argument, and what other routers used comes as numbers. A limit per minute is a token bucket
(Turner 1986) that holds a minute's worth; what a month may have is a sum. Tokens are charged as estimated when a
request arrives and settled by what it used when it ends, so a bucket can be in debt: then it admits nothing until it
is not.

Several routers share one quota: each publishes how much it has admitted since it started, and takes from its own
buckets what the others' counts have grown by. What all admit between two syncs is the slack of the limit.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, inf
from typing import Final

from router.core.types import Fact, Request, RequestId

MINUTE_S: Final = 60.0
OTHERS: Final = "*"  # the name of the quota that each tenant without one of its own has
ACCOUNTS_MOST: Final = 10_000  # tenants that are named by clients alone are no bounded set
ADDITION_MOST: Final = 200
MONTHS_MOST: Final = 2  # before this one, whose use the store does not have yet
SHARES_MOST: Final = 500  # accounts that a router publishes: its view must stay small, and has its load too
OVERFLOW: Final = "tenant:*"  # one account for all that come when there are so many in use
_MEAN_SHARE: Final = 0.05  # of the newest reply in the mean length of replies
_OUTPUT_FIRST: Final = 256.0  # tokens of a reply, before any has ended
_TOKENS_MOST: Final = 1e9  # of one request, whatever is said
_RUNNING_MOST: Final = 1e6  # requests in flight, whatever a peer says


class Limit(StrEnum):
    """Which limit refuses a request; the value is a label of metrics."""

    REQUESTS = "requests-per-minute"
    TOKENS = "tokens-per-minute"
    PARALLEL = "parallel-requests"
    TOO_LARGE = "request-too-large"  # its prompt alone exceeds what a minute may have
    MONTH_TOKENS = "tokens-per-month"
    MONTH_USD = "usd-per-month"


@dataclass(frozen=True, slots=True)
class Quota(Fact):
    """The limits of one tenant or key; inf: none. Tokens are those of prompts and replies together."""

    requests_per_minute: float = inf
    tokens_per_minute: float = inf
    requests_parallel_max: float = inf
    tokens_per_month: float = inf
    usd_per_month: float = inf

    @property
    def monthly(self) -> bool:
        """Whether a month is limited."""
        return self.tokens_per_month < inf or self.usd_per_month < inf


@dataclass(frozen=True, slots=True)
class Price(Fact):
    """USD per million tokens of a prompt, of that part of it which a cache had, and of a reply."""

    input: float = 0.0
    cached_input: float = 0.0
    output: float = 0.0

    def usd(self, prompt_tokens: float, cached_tokens: float, output_tokens: float) -> float:
        """What one request costs."""
        cached = min(cached_tokens, prompt_tokens)
        return ((prompt_tokens - cached) * self.input + cached * self.cached_input + output_tokens * self.output) / 1e6


FREE: Final = Price()


@dataclass(init=False, slots=True, unsafe_hash=True)
class Use(Fact):
    """What was used: requests that were admitted, tokens, and their price. Several are made for a request, and a
    dataclass's own constructor is never compiled.
    """

    requests: Final[float]
    prompt_tokens: Final[float]
    cached_tokens: Final[float]
    output_tokens: Final[float]
    usd: Final[float]

    def __init__(
        self,
        requests: float = 0.0,
        prompt_tokens: float = 0.0,
        cached_tokens: float = 0.0,
        output_tokens: float = 0.0,
        usd: float = 0.0,
    ) -> None:
        self.requests = requests
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.output_tokens = output_tokens
        self.usd = usd

    @property
    def tokens(self) -> float:
        """Of prompts and replies."""
        return self.prompt_tokens + self.output_tokens

    def plus(self, more: "Use") -> "Use":
        """Both together."""
        return Use(
            self.requests + more.requests,
            self.prompt_tokens + more.prompt_tokens,
            self.cached_tokens + more.cached_tokens,
            self.output_tokens + more.output_tokens,
            self.usd + more.usd,
        )


NOTHING: Final = Use()
NONE_USED: Final[Mapping[str, Use]] = {}


@dataclass(frozen=True, slots=True)
class Shares(Fact):
    """What one router publishes of an account. ``requests`` and ``tokens``: taken from its buckets since it started,
    never less than before; ``running``: its requests in flight; ``requests_left`` and ``tokens_left``: the levels of
    its buckets, which a router that starts takes over.
    """

    requests: float
    tokens: float
    running: float
    requests_left: float
    tokens_left: float


@dataclass(init=False, slots=True, unsafe_hash=True)
class Standing(Fact):
    """How one limit per minute stands: what it is, what is left, and in how many seconds all of it is again."""

    limit: Final[float]
    remaining: Final[float]
    reset_s: Final[float]

    def __init__(self, limit: float, remaining: float, reset_s: float) -> None:
        self.limit = limit
        self.remaining = remaining
        self.reset_s = reset_s


@dataclass(frozen=True, slots=True)
class AccountState(Fact):
    """One account: its quota, its limits per minute, its requests in flight at all routers, and its use: of this month
    where a store counts it, else since this router started.
    """

    name: str
    quota: Quota
    requests: Standing | None
    tokens: Standing | None
    running: float
    used: Use


class Verdict:
    """Whether a request is admitted, and how the tightest account of it stands.

    ``limit``: what refuses it, None: nothing; ``account``: whose limit that is; ``retry_s``: when there is room for it,
    inf: trying again is of no use before the quota changes or the month ends. No dataclass: one is made for a request.
    """

    __slots__ = ("account", "limit", "requests", "retry_s", "tokens")

    def __init__(
        self,
        limit: Limit | None,
        account: str,
        retry_s: float,
        requests: Standing | None,
        tokens: Standing | None,
    ) -> None:
        self.limit = limit
        self.account = account
        self.retry_s = retry_s
        self.requests = requests
        self.tokens = tokens


class _Bucket:
    """A level that rises by a minute's worth in a minute, up to that."""

    __slots__ = ("_at_s", "_level", "size", "taken")

    def __init__(self, size: float, now_s: float) -> None:
        self.size = size
        self.taken = 0.0  # in all, by this router alone; never less than before
        self._level = size
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """What is in it; below 0: owed."""
        if now_s > self._at_s:
            self._level = min(self.size, self._level + (now_s - self._at_s) * self.size / MINUTE_S)
            self._at_s = now_s
        return self._level

    def take(self, amount: float, now_s: float) -> None:
        """Take it, whether it is there or not; a negative amount is given back."""
        self._level = min(self.size, self.level(now_s) - amount)

    def lower(self, level: float, now_s: float) -> None:
        """To no more than that, and not below what two minutes make good."""
        self._level = min(self.level(now_s), max(level, -self.size))

    def resize(self, size: float, now_s: float) -> None:
        """Another size; what was taken stays taken."""
        missing = self.size - self.level(now_s)
        self.size = size
        self._level = size - missing

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until so much is in it (at most: until it is full)."""
        return max(min(amount, self.size) - self.level(now_s), 0.0) * MINUTE_S / self.size

    def standing(self, now_s: float) -> Standing:
        """For the client's headers."""
        level = self.level(now_s)
        return Standing(self.size, max(level, 0.0), (self.size - level) * MINUTE_S / self.size)


class _Account:
    """One tenant's or key's quota and use."""

    __slots__ = (
        "elsewhere", "lent", "month", "name", "output_mean", "quota", "requests", "reserved_tokens", "reserved_usd",
        "running", "seen", "shown", "tokens", "unsaved", "used_s",
    )  # fmt: skip

    def __init__(self, name: str, shown: str, quota: Quota, now_s: float) -> None:
        self.name = name
        self.shown = shown  # the name that metrics have for it
        self.quota = quota
        self.requests = _bucket(quota.requests_per_minute, now_s)
        self.tokens = _bucket(quota.tokens_per_minute, now_s)
        self.lent = 0.0  # tokens given back so far: what is published must not become less
        self.running = 0
        self.reserved_tokens = self.reserved_usd = 0.0  # of those that run
        self.output_mean = _OUTPUT_FIRST
        self.elsewhere: dict[str, float] = {}  # by router, its requests in flight
        self.seen: dict[str, tuple[float, float]] = {}  # by router, its counts when they were read last
        self.month = NOTHING  # as the store has it, by all routers
        self.unsaved = NOTHING  # since
        self.used_s = now_s

    @property
    def summed(self) -> bool:
        """Whether what it uses is summed: the config names it, or it has a limit of a month. The names of all others
        are the clients', without a bound.
        """
        return self.quota.monthly or self.shown != OVERFLOW

    def adopt(self, quota: Quota, shown: str, now_s: float) -> None:
        """Another quota."""
        self.quota, self.shown = quota, shown
        self.requests = _resized(self.requests, quota.requests_per_minute, now_s)
        self.tokens = _resized(self.tokens, quota.tokens_per_minute, now_s)

    def refuses(self, prompt_tokens: float, tokens: float, now_s: float) -> tuple[Limit, float] | None:
        """The limit that a request of so many tokens exceeds, and after how long it need not."""
        if self.running + sum(self.elsewhere.values(), 0.0) + 1.0 > self.quota.requests_parallel_max:
            return Limit.PARALLEL, 1.0
        if self.requests is not None and (wait_s := self.requests.wait_s(1.0, now_s)) > 0.0:
            return Limit.REQUESTS, wait_s
        if self.tokens is not None:
            if prompt_tokens > self.tokens.size:
                return Limit.TOO_LARGE, inf
            if (wait_s := self.tokens.wait_s(tokens, now_s)) > 0.0:
                return Limit.TOKENS, wait_s
        spent = self._spent()
        return (spent, inf) if spent is not None else None

    def _spent(self) -> Limit | None:
        """The limit of a month that is used up."""
        if self.month.tokens + self.unsaved.tokens + self.reserved_tokens >= self.quota.tokens_per_month:
            return Limit.MONTH_TOKENS
        spent_usd = self.month.usd + self.unsaved.usd + self.reserved_usd
        return Limit.MONTH_USD if spent_usd >= self.quota.usd_per_month else None

    def idle(self, now_s: float) -> bool:
        """Whether it may be forgotten: it has nothing to keep that a new one would not have."""
        owed = self.unsaved.requests > 0.0 and self.summed
        return self.running == 0 and now_s - self.used_s > 2 * MINUTE_S and not owed


def _bucket(per_minute: float, now_s: float) -> _Bucket | None:
    return _Bucket(per_minute, now_s) if per_minute < inf else None


def _resized(bucket: _Bucket | None, per_minute: float, now_s: float) -> _Bucket | None:
    if bucket is None or per_minute == inf:
        return _bucket(per_minute, now_s)
    bucket.resize(per_minute, now_s)
    return bucket


class _Charge:
    """What was taken for a request in flight."""

    __slots__ = ("accounts", "model", "sequences", "tokens", "usd")

    def __init__(self, accounts: list[_Account], request: Request, tokens: list[float], usd: float) -> None:
        self.accounts = accounts
        self.model = request.model
        self.sequences = request.sequences
        self.usd = usd
        self.tokens = tokens


@dataclass(frozen=True, slots=True)
class QuotaRules(Fact):
    """The quotas of a config. ``tenants``: by tenant, ``*``: each one that has none of its own; ``keys``: by the name
    of a key's account; ``prices``: by model, ``*``: each one that has none.
    """

    tenants: Mapping[str, Quota] = field(default_factory=dict)
    keys: Mapping[str, Quota] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)


NO_QUOTAS: Final = QuotaRules()


class Quotas:
    """The accounts of one router. ``active``: there is any quota at all; nothing else need be called where not.

    ``refused`` and ``counted`` have the accounts that the config names; all other tenants are one (``tenant:*``), so
    that clients cannot make series of metrics.
    """

    def __init__(self, rules: QuotaRules = NO_QUOTAS, now_s: float = 0.0) -> None:
        self._accounts: dict[str, _Account] = {}
        self._charges: dict[RequestId, _Charge] = {}
        self.month = ""  # the one that is summed
        self._month: Mapping[str, Use] = NONE_USED  # by account, as the store has it
        self._months: dict[str, Mapping[str, Use]] = {}  # the same of months that were summed before
        self._past: dict[str, dict[str, Use]] = {}  # by month before that and account, what is not in the store yet
        self._rules = rules
        self.refused: dict[tuple[str, Limit], int] = {}  # by account and limit, since the start
        self.counted: dict[str, Use] = {}  # by account, what was used since the start
        self.active = False
        self.adopt(rules, now_s)

    def adopt(self, rules: QuotaRules, now_s: float) -> None:
        """Take the quotas of another config; what was used stays used, and requests in flight are settled."""
        self._rules = rules
        self.active = bool(rules.tenants or rules.keys)
        for name, account in tuple(self._accounts.items()):
            quota = self._quota(name)
            if quota is not None:
                account.adopt(quota, self._named(name), now_s)
            elif not account.running and not account.unsaved.requests:
                del self._accounts[name]

    @property
    def in_flight(self) -> bool:
        """Whether any request is to be settled: also of a quota that is no more."""
        return bool(self._charges)

    def _quota(self, account: str) -> Quota | None:
        kind, _, name = account.partition(":")
        rules = self._rules
        return rules.keys.get(name) if kind == "key" else rules.tenants.get(name, rules.tenants.get(OTHERS))

    # -- a request ---------------------------------------------------------------------------------------------

    def admit(self, request: Request, key: str, generates: bool, now_s: float) -> Verdict:
        """Take what a request is expected to use from the accounts of its tenant and of its *key* (empty: it has none),
        or nothing from either where one refuses it. *generates*: its reply has tokens that count.
        """
        accounts = self._of(request.tenant, key, now_s)
        prompt = min(float(request.prompt_tokens), _TOKENS_MOST)
        cap = float(request.output_tokens_max) if request.output_tokens_max > 0 else inf
        needs: list[float] = []
        for account in accounts:
            output = request.sequences * min(account.output_mean, cap) if generates else 0.0
            tokens = min(prompt + output, _TOKENS_MOST)
            found = account.refuses(prompt, tokens, now_s)
            if found is not None:
                limit, wait_s = found
                counted = account.shown, limit
                self.refused[counted] = self.refused.get(counted, 0) + 1
                return _verdict(accounts, now_s, limit, account.name, wait_s)
            needs.append(tokens)
        usd = self._price(request.model).usd(prompt, 0.0, max(needs, default=prompt) - prompt) if needs else 0.0
        for account, tokens in zip(accounts, needs, strict=True):
            _take(account, tokens, now_s)
            account.reserved_usd += usd
        if accounts:
            self._charges[request.id] = _Charge(accounts, request, needs, usd)
        return _verdict(accounts, now_s)

    def settle(
        self,
        request_id: RequestId,
        prompt_tokens: float,
        cached_tokens: float,
        output_tokens: float,
        now_s: float,
        model: str = "",
    ) -> None:
        """A request has ended that used so much (all 0: no engine worked for it). Nothing for one without a quota.
        *model*: what served it (empty: the model that it named).
        """
        charge = self._charges.pop(request_id, None)
        if charge is None:
            return
        prompt, output = min(max(prompt_tokens, 0.0), _TOKENS_MOST), min(max(output_tokens, 0.0), _TOKENS_MOST)
        cached = min(max(cached_tokens, 0.0), prompt)
        usd = self._price(model or charge.model).usd(prompt, cached, output)
        use = Use(1.0, prompt, cached, output, usd)
        for account, reserved in zip(charge.accounts, charge.tokens, strict=True):
            _give_back(account, reserved - use.tokens, now_s)
            account.running -= 1
            account.reserved_tokens = max(account.reserved_tokens - reserved, 0.0) if account.running else 0.0
            account.reserved_usd = max(account.reserved_usd - charge.usd, 0.0) if account.running else 0.0
            account.unsaved = account.unsaved.plus(use)
            account.used_s = now_s
            self.counted[account.shown] = self.counted.get(account.shown, NOTHING).plus(use)
            if output > 0.0:
                account.output_mean += _MEAN_SHARE * (output / charge.sequences - account.output_mean)

    def _price(self, model: str) -> Price:
        prices = self._rules.prices
        return prices.get(model, prices.get(OTHERS, FREE))

    def _of(self, tenant: str, key: str, now_s: float) -> list[_Account]:
        rules = self._rules
        found = []
        if key and key in rules.keys:
            found.append(self._account(f"key:{key}", rules.keys[key], now_s))
        if tenant and rules.tenants:
            quota = rules.tenants.get(tenant, rules.tenants.get(OTHERS))
            if quota is not None:
                found.append(self._account(f"tenant:{tenant}", quota, now_s))
        return found

    def _account(self, name: str, quota: Quota, now_s: float) -> _Account:
        account = self._accounts.get(name)
        if account is None:
            if len(self._accounts) >= ACCOUNTS_MOST and not self._forget(now_s):
                name = OVERFLOW
                if name in self._accounts:
                    return self._accounts[name]
            account = self._accounts[name] = _Account(name, self._named(name), quota, now_s)
            account.month = self._month.get(name, account.month)
        return account

    def _forget(self, now_s: float) -> bool:
        """Make room by the accounts that are idle; False: there are none."""
        idle = [name for name, account in self._accounts.items() if account.idle(now_s)]
        for name in idle:
            del self._accounts[name]
        return bool(idle)

    def _named(self, account: str) -> str:
        """The name that metrics have for it."""
        kind, _, name = account.partition(":")
        return account if kind == "key" or name in self._rules.tenants else OVERFLOW

    # -- other routers -----------------------------------------------------------------------------------------

    def shares(self, now_s: float) -> dict[str, Shares]:
        """What this router publishes: its accounts that were used in the last minutes, the newest if they are many."""
        recent = [
            (account.used_s, name)
            for name, account in self._accounts.items()
            if account.running or now_s - account.used_s < 2 * MINUTE_S
        ]
        recent.sort(reverse=True)
        published = ((name, self._accounts[name]) for _, name in recent[:SHARES_MOST])
        return {
            name: Shares(
                account.requests.taken if account.requests is not None else 0.0,
                account.tokens.taken if account.tokens is not None else 0.0,
                float(account.running),
                account.requests.level(now_s) if account.requests is not None else 0.0,
                account.tokens.level(now_s) if account.tokens is not None else 0.0,
            )
            for name, account in published
        }

    def heard(self, peer: str, shares: Mapping[str, Shares], now_s: float) -> None:
        """What another router publishes: its growth is taken from here, and its requests in flight count."""
        for name, account in self._accounts.items():
            if name not in shares:
                account.elsewhere.pop(peer, None)
        for name, each in shares.items():
            quota = self._quota(name)
            if quota is not None:
                self._heard(peer, self._account(name, quota, now_s), each, now_s)

    def _heard(self, peer: str, account: _Account, each: Shares, now_s: float) -> None:
        account.elsewhere[peer] = min(max(each.running, 0.0), _RUNNING_MOST)
        before = account.seen.get(peer)
        account.seen[peer] = each.requests, each.tokens
        if account.requests is not None:
            _follow(account.requests, each.requests, None if before is None else before[0], each.requests_left, now_s)
        if account.tokens is not None:
            _follow(account.tokens, each.tokens, None if before is None else before[1], each.tokens_left, now_s)

    def lost(self, peer: str) -> None:
        """Another router is gone: its requests in flight count no longer."""
        for account in self._accounts.values():
            account.elsewhere.pop(peer, None)
            account.seen.pop(peer, None)

    # -- the month ---------------------------------------------------------------------------------------------

    def turn(self, month: str) -> None:
        """It is this month. What was used in the one before counts in its sums alone, whether the store has it yet or
        not; a request counts in the month in which it ends. A clock may be set back over the end of a month: what was
        used in that month, and what the store had of it, count again.
        """
        if month == self.month:
            return
        before, self.month = self.month, month
        if before:
            self._put_aside(before)
        self._month = self._months.pop(month, NONE_USED)
        unsaved = self._past.pop(month, {})
        for name, account in self._accounts.items():
            account.month = self._month.get(name, NOTHING)
            account.unsaved = unsaved.pop(name, NOTHING) if before else account.unsaved
        if unsaved:  # of accounts that are no more: it is added to the sums all the same
            self._past[month] = unsaved

    def _put_aside(self, month: str) -> None:
        """Keep what was used in a month that is no longer summed, until the store has it."""
        unsaved = self._past.pop(month, {})
        for name in self.summed:
            use = self._accounts[name].unsaved
            if use.requests:
                unsaved[name] = unsaved.get(name, NOTHING).plus(use)
        if unsaved:
            self._past[month] = unsaved
        self._months[month] = self._month
        while len(self._past) > MONTHS_MOST:
            del self._past[next(iter(self._past))]
        while len(self._months) > MONTHS_MOST:
            del self._months[next(iter(self._months))]

    def unsaved(self) -> tuple[str, dict[str, Use]]:
        """A month, and by account what has been used in it and is not in the store yet: of as many accounts as one
        addition may have, of an earlier month first.
        """
        for month, used in self._past.items():
            return month, dict(list(used.items())[:ADDITION_MOST])
        accounts = self._accounts
        due = [name for name in self.summed if accounts[name].unsaved.requests]
        return self.month, {name: accounts[name].unsaved for name in due[:ADDITION_MOST]}

    @property
    def summed(self) -> tuple[str, ...]:
        """The accounts whose use is summed in the store."""
        return tuple(name for name, account in self._accounts.items() if account.summed)

    def added(self, month: str, used: Mapping[str, Use]) -> None:
        """The store has taken this: it counts in what is read of the month, and until then here."""
        late = self._past.get(month, {})
        for name, use in used.items():
            account = self._accounts.get(name) if month == self.month else None
            if name in late:
                rest = late.pop(name).plus(_negative(use))
                if rest.requests > 0.0:  # used between that addition and the end of the month
                    late[name] = rest
            elif account is not None:
                account.unsaved = account.unsaved.plus(_negative(use))
            if account is not None:
                account.month = account.month.plus(use)
        if not late:
            self._past.pop(month, None)
        if (before := self._months.get(month)) is not None:
            self._months[month] = dict(before) | {n: before.get(n, NOTHING).plus(use) for n, use in used.items()}

    def read(self, month: Mapping[str, Use]) -> None:
        """What the store has of the month, by all routers."""
        self._month = month
        for name, account in self._accounts.items():
            account.month = month.get(name, NOTHING)

    def resume(self, used: Mapping[str, Use], now_s: float) -> None:
        """What an earlier process of this router used, where no store sums it."""
        for name, use in used.items():
            quota = self._quota(name)
            if quota is not None:
                account = self._account(name, quota, now_s)
                account.unsaved = account.unsaved.plus(use)

    def states(self, now_s: float, names: Iterable[str] | None = None) -> Iterator[AccountState]:
        """How each account stands that is in use here; *names*: of these alone."""
        accounts = self._accounts
        for name in sorted(accounts if names is None else names):
            account = accounts[name]
            requests, tokens = account.requests, account.tokens
            yield AccountState(
                name,
                account.quota,
                requests.standing(now_s) if requests is not None else None,
                tokens.standing(now_s) if tokens is not None else None,
                account.running + sum(account.elsewhere.values(), 0.0),
                account.month.plus(account.unsaved),
            )


def _follow(bucket: _Bucket, count: float, before: float | None, level: float, now_s: float) -> None:
    """Take what another router's count has grown by. Where it is new here, its level says how far it has come: what was
    taken before is not taken once more.
    """
    if before is None:
        bucket.lower(level, now_s)
    else:
        grown = count if count < before else count - before  # less: it has started anew
        bucket.lower(bucket.level(now_s) - grown, now_s)


def _take(account: _Account, tokens: float, now_s: float) -> None:
    account.running += 1
    account.reserved_tokens += tokens
    account.used_s = now_s
    if account.requests is not None:
        account.requests.take(1.0, now_s)
        account.requests.taken += 1.0
    if account.tokens is not None:
        account.tokens.take(tokens, now_s)
        _publish(account, account.tokens, tokens)


def _give_back(account: _Account, tokens: float, now_s: float) -> None:
    """The difference of what was taken and what was used; negative: more was used."""
    if account.tokens is not None:
        account.tokens.take(-tokens, now_s)
        _publish(account, account.tokens, -tokens)


def _publish(account: _Account, bucket: _Bucket, tokens: float) -> None:
    """Count what was taken; what was given back is set against what is taken next, since a count only grows."""
    due = tokens - account.lent
    account.lent = max(-due, 0.0)
    bucket.taken += max(due, 0.0)


def _negative(use: Use) -> Use:
    return Use(-use.requests, -use.prompt_tokens, -use.cached_tokens, -use.output_tokens, -use.usd)


def _verdict(
    accounts: list[_Account], now_s: float, limit: Limit | None = None, account: str = "", retry_s: float = 0.0
) -> Verdict:
    """With the standing of whichever account has least left."""
    requests = tokens = None
    for each in accounts:
        if each.requests is not None:
            requests = _tighter(requests, each.requests.standing(now_s))
        if each.tokens is not None:
            tokens = _tighter(tokens, each.tokens.standing(now_s))
    return Verdict(limit, account, retry_s, requests, tokens)


def _tighter(one: Standing | None, other: Standing) -> Standing:
    return other if one is None or other.remaining < one.remaining else one


def whole_seconds(wait_s: float) -> int:
    """For Retry-After: rounded up, at least 1."""
    return max(1, ceil(min(wait_s, 1e9)))
