"""The source that an entry of the config stands for."""

from pathlib import Path

from router.config.discover import DnsSource, KubernetesSource, RedisSource, address_port
from router.config.settings import Discover
from router.gateway.config.plan import Plan
from router.gateway.sources.endpoint import Source
from router.gateway.sources.file import FileTargets


def source_of(plan: Plan, given: Discover, config: Path) -> Source:
    """Not read yet. *config*: the file that it stands in."""
    if given.file is not None:
        return FileTargets(config.parent / given.file.path)
    if given.dns is not None:
        return _dns(given.dns)
    if given.kubernetes is not None:
        return _kubernetes(given.kubernetes)
    assert given.redis is not None  # the section has one kind
    return _redis(plan, given.redis)


def _redis(plan: Plan, given: RedisSource) -> Source:
    from router.gateway.sources.registered import RegisteredEngines  # noqa: PLC0415 - its client library is slow to import

    state = plan.settings.state
    assert plan.redis is not None  # else the plan was refused
    return RegisteredEngines(plan.redis, state.pool, given.period_s, state.timeout_s)


def _kubernetes(given: KubernetesSource) -> Source:
    from router.gateway.sources.kubernetes import PodsOfSelector, PodsOfService  # noqa: PLC0415 - few need it

    return PodsOfService(given) if given.service else PodsOfSelector(given)


def _dns(given: DnsSource) -> Source:
    from router.gateway.sources.dns import DnsRecords  # noqa: PLC0415 - dnspython may be missing, and few need it

    servers = [address_port(server) for server in given.servers]
    return DnsRecords(given.name, given.port, given.scheme, servers, given.timeout_s)
