"""The leases that are kept in Redis and in Kubernetes, and which of them a config means."""

from pathlib import Path

import pytest

from router.autoscaler.leases import KubernetesLease, RedisLease, election_of
from router.core.errors import ConfigError, LeaseGone
from router.gateway.state.redis_link import RedisLink
from router.gateway.state.servers import RedisServers
from router.kubernetes.access import Access
from router.kubernetes.client import KubernetesClient
from tests.autoscaler.worlds import CONFIG, plan
from tests.kubernetes.fake_api import FakeApi
from tests.redis_server import RedisServer, server_binary
from tests.waiting import until_async

KEY = "{headroom:default}:autoscaler"


@pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")
async def test_a_key_of_redis_has_one_holder_and_is_taken_over_when_it_ends() -> None:
    """A candidate never extends what another holds; the holder that lost it does not either."""
    async with RedisServer() as server:
        servers = RedisServers.of_urls(server.url)
        first, second, third = (RedisLease(RedisLink(servers, KEY, 5.0), KEY, name) for name in "abc")
        assert await first.take(600.0)
        assert await first.take(600.0)
        assert not await second.take(0.001)
        await second.release()
        assert not await second.take(0.001)
        await first.release()
        assert await second.take(0.001)  # and ends before the next is there
        await until_async(lambda: third.take(600.0))
        assert not await second.take(600.0)
        assert not await first.take(600.0)
        link = RedisLink(servers, KEY, 5.0)
        await link.run([("DEL", KEY), ("SADD", KEY, "x")])
        with pytest.raises(LeaseGone, match="WRONGTYPE"):
            await third.take(600.0)
        for each in (first, second, third, link):
            await each.close()
    gone = RedisLease(RedisLink(servers, KEY, 0.5), KEY, "d")
    with pytest.raises(LeaseGone):
        await gone.take(600.0)
    await gone.close()


async def test_a_lease_object_is_in_the_namespace_of_the_pod() -> None:
    async with FakeApi() as api:
        lease = KubernetesLease(KubernetesClient(Access(api.url, namespace="llm"), 5.0), "elected", "a")
        assert await lease.take(15.0)
        assert list(api.objects) == ["/apis/coordination.k8s.io/v1/namespaces/llm/leases/elected"]
        await lease.release()
        api.token = "other"
        for call in (lambda: lease.take(15.0), lease.release):
            with pytest.raises(LeaseGone, match="401"):
                await call()
        await lease.close()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("by: state", "autoscale.election.by: state needs state.redis_url"),
        ("by: kubernetes", "autoscale.election.by: KUBERNETES_SERVICE_HOST is not set"),
    ],
)
def test_an_election_without_what_keeps_its_lease_is_refused(more: str, why: str) -> None:
    made = plan(CONFIG.replace("autoscale: {", f"autoscale: {{election: {{{more}}}, "))
    with pytest.raises(ConfigError, match=why):
        election_of(made, {})


@pytest.mark.parametrize(
    ("more", "elects"),
    [
        ("", False),
        ("state: {redis_url: 'redis://h:1'}\n", True),
        ("autoscale: {target: {name: keda}}\nstate: {redis_url: 'redis://h:1'}\n", True),
    ],
)
async def test_routers_that_share_redis_have_autoscalers_that_elect_one(more: str, elects: bool) -> None:
    """Without Redis there is one, which applies from its start; with KEDA too, whichever of them it calls."""
    text = CONFIG.partition("autoscale:")[0] if more.startswith("autoscale") else CONFIG
    election = election_of(plan(text + more), {})
    assert election.holds() is not elects
    await election.close()


def test_the_key_is_one_of_the_pool() -> None:
    """Documented beside the others, with the pool's hash tag."""
    assert "{headroom:POOL}:autoscaler" in Path("router/gateway/state/redis.py").read_text()
