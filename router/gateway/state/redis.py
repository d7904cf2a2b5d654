"""The store of several routers: Redis 7.0 or later or Valkey, one pipelined call a sync, every wait bounded.

Keys share the hash tag ``{headroom:POOL}`` and so one slot of a cluster. Each command has one key, so that a slot can
be moved while it is in use: a command of several keys is refused as long as some of them have moved.

    {headroom:POOL}:routers         set    ids that ever spoke; who finds one without a view takes it out
    {headroom:POOL}:router:ID       string a router's view as JSON, expiring with its lease
    {headroom:POOL}:report:BACKEND  string an engine's report as JSON, its time on the server's clock, expiring
    {headroom:POOL}:belief:V:BACKEND  string what was learnt of it in the form of version V, expiring in a week
    {headroom:POOL}:autoscaler      string the autoscaler that applies advice, expiring with its lease (``leases.py``)
    {headroom:POOL}:kept:NAME       string a value that outlives its writer: ``seen:ID``, the backends that a router has
                                           (``seen.py``); ``autoscaler``, its memory; expiring
    {headroom:POOL}:engines         hash   what engines announce of themselves (``sources/engine_record.py``), by name
    {headroom:POOL}:use:MONTH       hash   what accounts of quotas used: PART:ACCOUNT; last:ID:RUN: the number of the
                                           last addition of a router's process (by a script: EVAL has to be allowed)
    {headroom:POOL}:beliefs         hash   the same as the release before this one saves it; only read

Every key expires, a view that somebody wrote without a lease as well. A value is read up to a bound of its size,
checked, and skipped where it is no good; one that stands in our way (the set is no set) is replaced. A time goes
through the server's clock (TIME, read in the same call), so routers and sidecars need no common one. A peer seen for
the first time is read with the next sync, one period later: that keeps a sync one round trip without a script.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import nan
from typing import Any, Final, TypeVar

from redis.exceptions import NoPermissionError, ResponseError

from router.core.belief import VERSION
from router.core.errors import SkipReason, StoreGone, Unreadable
from router.core.quota import Use
from router.core.types import EngineReport
from router.engines import RunningAdapters
from router.gateway.state import NO_ADAPTERS, SEEN, RouterView, Shared
from router.gateway.state.redis_clients import Command
from router.gateway.state.redis_faults import store_gone
from router.gateway.state.redis_link import RedisLink
from router.gateway.state.seen import seen_from
from router.gateway.state.servers import RedisServers
from router.gateway.state.skipped import Kind, SkippedValues
from router.gateway.state.wire import UNREADABLE, published_from, report_json, view_from, view_json

REPORT_LEASE_MS: Final = 30_000  # as long as the core believes a report at all
BELIEFS_LEASE_S: Final = 7 * 24 * 3600
ROUTERS_LEASES: Final = 60  # after that many leases without any router the set of their ids goes too
JOIN_SYNCS: Final = 20
ROUTERS_MOST: Final = 1_000  # of one pool
REPORTS_A_SYNC: Final = 64  # more backends take turns: their reports change once a second, and syncs are many
BELIEFS_A_CALL: Final = 32  # a save of a thousand backends must not take longer than one call may
USE_LEASE_S: Final = 62 * 24 * 3600  # of a month's sums: the month after it can still be compared with it
USE_PARTS: Final = (  # of an account's sums, each an integer: USD in millionths of a thousandth
    ("requests", 1.0),
    ("prompt_tokens", 1.0),
    ("cached_tokens", 1.0),
    ("output_tokens", 1.0),
    ("usd", 1e9),
)
# The number of the last addition is written first: what the server refuses, it refuses before any sum has changed. A
# sum that is no number begins anew.
_ADD_USE: Final = """
if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0') >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
for i = 4, #ARGV, 2 do
  local sum = redis.pcall('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
  if type(sum) == 'table' then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
return 1
"""
ACCOUNTS_A_CALL: Final = 200
_DIGITS_MOST: Final = 18
VIEW_BYTES_MOST: Final = 1 << 20
REPORT_BYTES_MOST: Final = 1 << 14
BELIEF_BYTES_MOST: Final = 1 << 20
KEPT_BYTES_MOST: Final = 1 << 21
_ID_BYTES_MOST: Final = 200
_BELIEF: Final = f"belief:{VERSION}"  # one key for each form: two releases in one pool replace only what they can read

Read = TypeVar("Read")


class RedisStore:
    """One router's (or sidecar's, or autoscaler's) connection to the pool's Redis."""

    def __init__(
        self,
        servers: RedisServers,
        pool: str,
        router_id: str,
        lease_s: float,
        timeout_s: float,
    ) -> None:
        """Opens nothing yet. ``timeout_s`` bounds every call; ``lease_s``: how long a view outlives its sync."""
        self._tag = f"{{headroom:{pool}}}:"
        self.link = RedisLink(servers, self._tag + "routers", timeout_s)
        self.skipped = SkippedValues()
        self._router_id = router_id
        self._lease_ms = int(lease_s * 1e3)
        self._peers: dict[str, bytes] = {}  # to read at the next sync, with the id as it is stored
        self._mend: list[Command] = []  # what has to be done at the next sync for keys that are in no good state
        self._turn = 0
        self._join_in = 0  # syncs from now
        self._clock_ahead_s = nan  # of the server's before ours, as of the last sync

    async def sync(self, own: RouterView, backends: tuple[str, ...], now_s: float) -> Shared:
        """Publish this router's view and read the peers' in one round trip."""
        mend, join, peers, named = self._mend, self._joining(), self._peers, self._next(backends)
        commands: list[Command] = [
            ("TIME",),
            (
                *("SET", self._key("router", self._router_id), view_json(own, now_s + self._clock_ahead_s)),
                *("PX", self._lease_ms),
            ),
            *mend,
            *join,
            ("SRANDMEMBER", self._tag + "routers", ROUTERS_MOST),
            *(self._read("router", peer, VIEW_BYTES_MOST) for peer in peers),
            *(self._read("report", name, REPORT_BYTES_MOST) for name in named),
        ]
        clock, published, *rest = await self.link.run(commands)
        joined, (members, *values) = rest[len(mend) :][: len(join)], rest[len(mend) + len(join) :]
        found = dict(zip(peers, values[: len(peers)], strict=True))
        self._mend = self._mending(found, peers, members)
        views = self._views(found)
        self._peers = self._others(members)
        self._mend += [
            ("PEXPIRE", self._key("router", each), self._lease_ms, "NX") for each in self._peers.keys() - peers
        ]
        ahead_s = _ahead_s(clock, now_s)
        self._clock_ahead_s = self._clock_ahead_s if ahead_s is None else ahead_s
        reports, adapters = self._reports(dict(zip(named, values[len(peers) :], strict=True)), ahead_s)
        return Shared(views, reports, self._fault(clock, published, *joined, members), adapters)

    def _joining(self) -> list[Command]:
        """Adds this router's id to the set where it is missing, and now and then, so that the set does not expire."""
        self._join_in -= 1
        if self._join_in > 0:
            return []
        routers = self._tag + "routers"
        return [("SADD", routers, self._router_id), ("PEXPIRE", routers, ROUTERS_LEASES * self._lease_ms)]

    def _next(self, backends: tuple[str, ...]) -> tuple[str, ...]:
        """The backends whose reports are read now."""
        if len(backends) <= REPORTS_A_SYNC:
            return backends
        first = self._turn % len(backends)
        self._turn = first + REPORTS_A_SYNC
        return (backends + backends)[first : first + REPORTS_A_SYNC]

    def _mending(self, found: Mapping[str, Any], peers: Mapping[str, bytes], members: Any) -> list[Command]:
        """What the next sync does: take out the ids without a view, replace what should be the set of ids."""
        routers = self._tag + "routers"
        gone = [peers[peer] for peer, raw in found.items() if raw == b""]
        if isinstance(members, ResponseError) and _is_wrong_type(members):
            self.skipped.add(Kind.ROUTERS, "routers", SkipReason.WRONG_TYPE, f"{members}; it is replaced")
            return [("DEL", routers)]
        self.skipped.taken(Kind.ROUTERS, "routers")
        return [("SREM", routers, *gone)] if gone else []

    def _others(self, members: Any) -> dict[str, bytes]:
        """The other routers' ids. One that no router has leaves the set."""
        others: dict[str, bytes] = {}
        odd: list[bytes] = []
        ids = sorted(members) if isinstance(members, list) else []
        if self._router_id.encode() not in ids:
            self._join_in = 0
        elif self._join_in <= 0:
            self._join_in = JOIN_SYNCS
        for raw in ids:
            name = _id(raw)
            if name is None:
                odd.append(raw)
            elif name != self._router_id:
                others[name] = raw
        if not odd:
            self.skipped.taken(Kind.ROUTERS, "id")
        else:
            self.skipped.add(Kind.ROUTERS, "id", SkipReason.UNREADABLE, repr(odd[0][:_ID_BYTES_MOST]))
            self._mend.append(("SREM", self._tag + "routers", *odd))
        return others

    def _views(self, found: Mapping[str, Any], at_s: float = nan) -> dict[str, RouterView]:
        """The views that are there. One that cannot be read is of a router all the same, with nothing in flight.
        ``at_s``: now, by the server's clock.
        """
        views = {}
        for peer, raw in found.items():
            if raw != b"":
                views[peer] = (
                    self._taken(Kind.VIEW, peer, raw, VIEW_BYTES_MOST, self._view_of(peer, at_s)) or UNREADABLE
                )
        return views

    def _view_of(self, peer: str, at_s: float) -> Callable[[bytes], RouterView]:
        return lambda raw: view_from(
            raw, lambda what: self.skipped.add(Kind.DEMAND, peer, SkipReason.IMPLAUSIBLE, what), at_s
        )

    def _reports(
        self, found: Mapping[str, Any], ahead_s: float | None
    ) -> tuple[dict[str, EngineReport], dict[str, RunningAdapters]]:
        """The reports that are there, moved onto this router's clock, and the adapters that they name; none where the
        server's clock could not be read.
        """
        reports: dict[str, EngineReport] = {}
        adapters: dict[str, RunningAdapters] = {}
        if ahead_s is None:
            return reports, adapters
        read = partial(published_from, ahead_s=ahead_s)
        for name, raw in found.items():
            if raw != b"":
                taken = self._taken(Kind.REPORT, name, raw, REPORT_BYTES_MOST, read)
                if taken is not None:
                    reports[name] = taken[0]
                    if taken[1] is not None:
                        adapters[name] = taken[1]
        return reports, adapters

    def _taken(self, kind: Kind, name: str, raw: Any, most: int, read: Callable[[bytes], Read]) -> Read | None:
        """The value of a reply; None, and counted, where it cannot be taken."""
        try:
            taken = read(_bytes(raw, most))
        except Unreadable as error:
            self.skipped.add(kind, name, error.reason, str(error))
            return None
        self.skipped.taken(kind, name)
        return taken

    def _fault(self, *writes: Any) -> StoreGone | None:
        """Why this router's view was not taken; None: it was."""
        failed = next((each for each in writes if isinstance(each, Exception)), None)
        return None if failed is None else store_gone(failed, self._at)

    @property
    def _at(self) -> str:
        return self.link.found.at if self.link.found else str(self.link.servers)

    async def report(
        self, reports: Mapping[str, EngineReport], now_s: float, adapters: Mapping[str, RunningAdapters] = NO_ADAPTERS
    ) -> None:
        """Publish engine reports, their times moved to the server's clock."""
        (clock,) = _good(await self.link.run([("TIME",)]), self._at)
        ahead_s = _redis_s(clock) - now_s
        for part in _parts(tuple(reports.items()), REPORTS_A_SYNC):
            _good(
                await self.link.run(
                    [
                        (
                            *("SET", self._key("report", name), report_json(each, ahead_s, adapters.get(name))),
                            *("PX", REPORT_LEASE_MS),
                        )
                        for name, each in part
                    ]
                ),
                self._at,
            )

    async def routers(self, now_s: float) -> Mapping[str, RouterView]:
        """Every router with a lease."""
        (members,) = _good(await self.link.run([("SRANDMEMBER", self._tag + "routers", ROUTERS_MOST)]), self._at)
        ids = sorted(name for name in map(_id, members if isinstance(members, list) else ()) if name is not None)
        if not ids:
            return {}
        views = [self._read("router", each, VIEW_BYTES_MOST) for each in ids]
        kept = [self._read("kept", SEEN + each, KEPT_BYTES_MOST) for each in ids]
        clock, *values = await self.link.run([("TIME",), *views, *kept])
        at_s = nan if isinstance(clock, Exception) else _redis_s(clock)
        found = self._views(dict(zip(ids, values[: len(ids)], strict=True)), at_s)
        seen = dict(zip(ids, values[len(ids) :], strict=True))
        return {
            name: view if view is UNREADABLE else replace(view, seen=seen_from(_whole(seen[name])))
            for name, view in found.items()
        }

    async def beliefs(self, backends: Iterable[str]) -> Mapping[str, bytes]:
        """The belief of each of these backends that was saved last, where there is one."""
        found: dict[str, bytes] = {}
        for part in _parts(tuple(backends), BELIEFS_A_CALL):
            commands = [self._read(_BELIEF, name, BELIEF_BYTES_MOST) for name in part]
            sizes = [("HSTRLEN", self._tag + "beliefs", name) for name in part]
            results = await self.link.run([*commands, *sizes])
            values = dict(zip(part, results[: len(part)], strict=True))
            saved = dict(zip(part, results[len(part) :], strict=True))
            older = [name for name in part if values[name] == b"" and 0 < _count(saved[name]) <= BELIEF_BYTES_MOST]
            if older:
                read = await self.link.run([("HGET", self._tag + "beliefs", name) for name in older])
                values |= {name: raw or b"" for name, raw in zip(older, read, strict=True)}
            for name, raw in values.items():
                taken = self._taken(Kind.BELIEF, name, raw, BELIEF_BYTES_MOST, lambda raw: raw) if raw != b"" else None
                if taken is not None:
                    found[name] = taken
        return found

    async def keep_beliefs(self, beliefs: Mapping[str, bytes]) -> None:
        """Save them; each expires a week after its last save."""
        for part in _parts(tuple(beliefs.items()), BELIEFS_A_CALL):
            saves = [("SET", self._key(_BELIEF, name), learnt, "EX", BELIEFS_LEASE_S) for name, learnt in part]
            _good(await self.link.run(saves), self._at)

    async def keep(self, name: str, value: bytes, lease_s: float) -> None:
        """Until it expires."""
        _good(await self.link.run([("SET", self._key("kept", name), value, "PX", int(lease_s * 1e3))]), self._at)

    async def kept(self, name: str) -> bytes:
        """What any process stored last; empty also for what is too large to be ours."""
        (raw,) = _good(await self.link.run([self._read("kept", name, KEPT_BYTES_MOST)]), self._at)
        return _whole(raw)

    async def add_use(self, month: str, run: str, number: int, used: Mapping[str, Use]) -> None:
        """Add what accounts used to the sums of a month (``2026-11``): whole or not at all, and once however often it
        is sent. *run*: a name of this process, *number*: of the addition in it, from 1 on.
        """
        sums = [
            each
            for account, use in used.items()
            for part, scale in USE_PARTS
            for each in (f"{part}:{account}", round(getattr(use, part) * scale))
        ]
        key, last = self._key("use", month), f"last:{self._router_id}:{run}"
        _good(await self.link.run([("EVAL", _ADD_USE, 1, key, last, number, USE_LEASE_S, *sums)]), self._at)

    async def used(self, month: str, accounts: Sequence[str]) -> Mapping[str, Use]:
        """What these accounts used in a month, by all routers."""
        found = {}
        for part in _parts(accounts, ACCOUNTS_A_CALL):
            names = [f"{each}:{account}" for account in part for each, _ in USE_PARTS]
            (values,) = _good(await self.link.run([("HMGET", self._key("use", month), *names)]), self._at)
            rows = [values[first : first + len(USE_PARTS)] for first in range(0, len(values), len(USE_PARTS))]
            found.update({account: _use(row) for account, row in zip(part, rows, strict=True)})
        return found

    async def try_write(self) -> StoreGone | None:
        """Write a value of no meaning, which expires at once; why it was not taken (None: it was)."""
        (written,) = await self.link.run([("SET", self._tag + "check", b"", "PX", 100)])
        return self._fault(written)

    async def close(self) -> None:
        """Remove this router's view, so that peers do not count its load for another lease."""
        try:
            if self.link.found is not None:  # else nothing was ever written
                view, routers = self._key("router", self._router_id), self._tag + "routers"
                await self.link.run([("DEL", view), ("SREM", routers, self._router_id)])
        except StoreGone:
            pass  # the lease ends it instead
        finally:
            await self.link.close()

    def _key(self, kind: str, name: str) -> str:
        return f"{self._tag}{kind}:{name}"

    def _read(self, kind: str, name: str, most: int) -> Command:
        """Reads a value up to one byte more than it may have."""
        return ("GETRANGE", self._key(kind, name), 0, most)


def _redis_s(clock: tuple[int, int]) -> float:
    return clock[0] + clock[1] / 1e6


def _ahead_s(clock: Any, now_s: float) -> float | None:
    """How far the server's clock is ahead of the caller's; None: the server did not say."""
    return None if isinstance(clock, Exception) else _redis_s(clock) - now_s


def _good(results: list[Any], at: str) -> list[Any]:
    """The results. Raises StoreGone where one is an error."""
    for each in results:
        if isinstance(each, Exception):
            raise store_gone(each, at)
    return results


def _bytes(raw: Any, most: int) -> bytes:
    """A reply as a value of at most so many bytes. Raises Unreadable."""
    if isinstance(raw, NoPermissionError):
        raise Unreadable(SkipReason.REFUSED, str(raw))
    if isinstance(raw, Exception) or not isinstance(raw, bytes):
        raise Unreadable(SkipReason.WRONG_TYPE, str(raw))
    if len(raw) > most:
        raise Unreadable(SkipReason.TOO_LARGE, f"more than {most} bytes")
    return raw


def _whole(raw: Any) -> bytes:
    """A value that was kept; empty for what is none of ours."""
    return raw if isinstance(raw, bytes) and len(raw) <= KEPT_BYTES_MOST else b""


def _id(raw: bytes) -> str | None:
    """A router's id as text; None for what is none."""
    text = raw.decode(errors="replace")
    return text if 0 < len(raw) <= _ID_BYTES_MOST and text.isprintable() and text.encode() == raw else None


def _is_wrong_type(error: ResponseError) -> bool:
    return "WRONGTYPE" in str(error)


def _use(values: Sequence[Any]) -> Use:
    """The sums of one account; what is no number of what was used is nothing."""
    sums = [int(raw) if isinstance(raw, bytes) and raw.isdigit() and len(raw) <= _DIGITS_MOST else 0 for raw in values]
    return Use(**{part: total / scale for (part, scale), total in zip(USE_PARTS, sums, strict=True)})


def _count(reply: Any) -> int:
    return reply if isinstance(reply, int) else 0


def _parts(whole: Sequence[Read], size: int) -> list[Sequence[Read]]:
    return [whole[first : first + size] for first in range(0, len(whole), size)]
