"""The command ``register``: announces an engine to the routers of a pool."""

import os
from argparse import Namespace

from router.arguments import Stop
from router.commands.shared import log_to_stderr
from router.config.settings import BackendDefaults
from router.event_loop import run as run_loop
from router.gateway.registration.registrar import Announced, Registrar
from router.gateway.sources.endpoint import Endpoint, name_of
from router.gateway.sources.engine_record import TTL_S_MAX, TTL_S_MIN
from router.gateway.sources.facts import backend_of
from router.gateway.state.servers import RedisServers
from router.urls import base_url, redis_url


def run(options: Namespace) -> None:
    """Announce until a signal, then say that the engine ends."""
    log_to_stderr(options.verbose)
    try:
        servers = RedisServers.of_urls(redis_url(options.redis))
        url = base_url(options.url)
        engine = base_url(options.engine or options.url)
    except ValueError as error:
        raise Stop(str(error)) from None
    if not TTL_S_MIN <= options.ttl <= TTL_S_MAX:
        raise Stop(f"--ttl: expected {TTL_S_MIN:g} to {TTL_S_MAX:g} seconds, not {options.ttl:g}")
    name = options.name or name_of(url.partition("://")[2])
    labels = _labels(options.label or [])
    _, faults = backend_of(Endpoint(name, url, labels), BackendDefaults())
    if faults:
        raise Stop(f"--label: {'; '.join(faults)}")
    key = os.environ.get(options.api_key_env, "") if options.api_key_env else ""
    given = Announced(name, engine, url, options.pool, options.ttl, labels, key)
    run_loop(Registrar(given, servers).run())


def _labels(pairs: list[str]) -> dict[str, str]:
    """``card=h100`` and so on. Raises Stop."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise Stop(f"--label: expected NAME=VALUE, as card=h100, not {pair!r}")
        found[key] = value
    return found
