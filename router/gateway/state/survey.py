"""What a pool's store looks like from here, in one line for the command line. Must not depend on the gateway."""

from collections.abc import Collection
from contextlib import suppress
from time import perf_counter

from router.core.errors import StoreGone
from router.gateway.state.redis import RedisStore
from router.gateway.state.servers import RedisServers


async def survey(servers: RedisServers, pool: str, backends: Collection[str], timeout_s: float) -> str:
    """Connect, read, and write one value that expires; never raises for a store that fails."""
    store = RedisStore(servers, pool, "check", 1.0, timeout_s)
    try:
        for _ in servers.seeds:  # a call waits for one seed that does not answer; connecting goes on to the next
            with suppress(StoreGone):
                return await _found(store, backends)
        return await _found(store, backends)
    except StoreGone as gone:
        return f"does not answer ({gone.fault.value}): {gone}; routers would decide without the load of their peers"
    finally:
        await store.link.close()


async def _found(store: RedisStore, backends: Collection[str]) -> str:
    routers = await store.routers(0.0)
    learnt = await store.beliefs(sorted(backends))
    started_s = perf_counter()
    refused = await store.try_write()
    took_ms = (perf_counter() - started_s) * 1e3
    found = store.link.found
    assert found is not None  # it has just answered
    server = f" ({found.server})" if found.server else ""
    where = f"{found.kind}{server}, the pool's keys at {found.at}, answers in {took_ms:.1f} ms"
    holds = f"{len(routers)} routers, beliefs of {len(learnt)} of {len(backends)} backends"
    if refused is not None:
        return f"{where}; {holds}; takes no writes ({refused.fault.value}): {refused}"
    skipped = sum(store.skipped.counts.values())
    return f"{where}; {holds}" + (f"; {skipped} values cannot be read" if skipped else "")
