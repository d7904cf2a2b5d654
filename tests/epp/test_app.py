"""The picker put together: its ports, its certificates, its limits through a reload, its command."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path

import grpc
import pytest
import trustme
from grpc import aio

from router.gateway.config.plan import plan_file
from router.gateway.epp.app import EndpointPicker
from router.gateway.epp.messages import HEALTH, NOT_SERVING, SERVING, HealthCheckRequest, HealthCheckResponse
from tests.fakes_router import HEALTHY, backend, config, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.waiting import until, until_async

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def picker(path: Path, more: str) -> AsyncIterator[tuple[EndpointPicker, int]]:
    """A picker before one engine, and its port for proxies."""
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        write(path, config(backend("a", engine, pages), more=more))
        made = EndpointPicker(plan_file(path), path)
        port = await made.start()
        try:
            yield made, port
        finally:
            await made.close()


async def readiness(port: int, root: bytes, pair: tuple[bytes, bytes] | None = None) -> int:
    """What the health service says of it, over TLS with that authority."""
    given = grpc.ssl_channel_credentials(root, *(pair or (None, None)))
    options = [("grpc.ssl_target_name_override", "localhost")]
    async with aio.secure_channel(f"127.0.0.1:{port}", given, options) as channel:
        check = channel.unary_unary(
            f"/{HEALTH}/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
        )
        return int((await check(HealthCheckRequest(service="readiness"), timeout=30.0)).status)


async def test_it_is_served_over_tls_by_a_certificate_of_its_own(tmp_path: Path) -> None:
    """Nothing has to be configured; it is ready once a backend is up."""
    async with picker(tmp_path / "r.yaml", "epp: {port: 0}\n") as (made, port):
        shown = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))

        async def ready() -> bool:
            status = await readiness(port, shown.encode())
            assert status in {SERVING, NOT_SERVING}
            return status == SERVING

        await until_async(ready)
        made.gateway.driver.draining = True
        assert not await ready()


async def test_a_certificate_that_is_named_is_shown_and_read_again(tmp_path: Path) -> None:
    """Without a restart, once its file has changed; a proxy without one of the authority's gets nothing."""
    authority = trustme.CA()
    root = authority.cert_pem.bytes()
    own = authority.issue_cert("proxy")
    pair = own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes()

    def issue() -> str:
        made = authority.issue_cert("localhost")
        (tmp_path / "key.pem").write_bytes(made.private_key_pem.bytes())
        (tmp_path / "cert.pem").write_bytes(made.cert_chain_pems[0].bytes())
        return made.cert_chain_pems[0].bytes().decode()

    (tmp_path / "ca.pem").write_bytes(root)
    first = issue()
    more = "epp: {port: 0, tls: {cert: cert.pem, key: key.pem, client_ca: ca.pem}}\n"
    async with picker(tmp_path / "r.yaml", more) as (_, port):
        assert await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port)) == first
        assert await readiness(port, root, pair) in {SERVING, NOT_SERVING}
        with pytest.raises(aio.AioRpcError):
            await readiness(port, root)
        second = issue()
        await until_async(lambda: _shows(port, second))
        (tmp_path / "key.pem").unlink()
        assert await readiness(port, root, pair) in {SERVING, NOT_SERVING}


async def _shows(port: int, certificate: str) -> bool:
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port)) == certificate


async def test_its_limits_outlive_a_reload(tmp_path: Path) -> None:
    """Whatever the config says: a proxy sends a request once, and waits for the answer to that."""
    path = tmp_path / "r.yaml"
    limits = "policy: {limits: {attempts_max: 5, hedge_slo_share: 0.5}}\nreload: {validation: {enabled: false}}\n"
    async with picker(path, f"epp: {{port: 0, secure: false}}\n{limits}") as (made, _):
        path.write_text(path.read_text().replace("attempts_max: 5", "attempts_max: 4"), encoding="utf-8")
        assert (await made.gateway.reloader.reload("test")).ok
        await until(lambda: made.gateway.plan.settings.policy.limits.attempts_max == 4)
        now = made.gateway.core.limits
        assert (now.attempts_max, now.hedge_slo_share, now.late_final) == (4, inf, True)


async def test_a_name_that_a_reload_brings_has_its_address_when_the_reload_is_over(tmp_path: Path) -> None:
    """The backend stays up, so it is chosen at once."""
    path = tmp_path / "r.yaml"
    async with picker(path, "epp: {port: 0, secure: false}\n") as (made, _):
        (upstream,) = made.gateway.driver.upstreams.values()
        port = upstream.target.port
        path.write_text(path.read_text().replace(f"127.0.0.1:{port}", f"localhost:{port}"), encoding="utf-8")
        assert (await made.gateway.reloader.reload("test")).ok
        (upstream,) = made.gateway.driver.upstreams.values()
        assert upstream.target.host == "localhost"
        assert made._addresses.endpoint(upstream.target) in {f"127.0.0.1:{port}", f"[::1]:{port}"}


async def test_a_name_is_looked_up_again_when_its_backend_comes_up(tmp_path: Path) -> None:
    """It may be another machine by now."""
    path = tmp_path / "r.yaml"
    async with picker(path, "epp: {port: 0, secure: false}\n") as (made, _):
        path.write_text(path.read_text().replace("http://127.0.0.1", "http://localhost"), encoding="utf-8")
        assert (await made.gateway.reloader.reload("test")).ok
        await until(lambda: made.gateway.engines.watches["a"].up)
        made._follow_restarts(0.0)
        await until(lambda: not made._addresses._looking)
        made._addresses._by_host["localhost"] = "10.9.9.9"
        made._follow_restarts(1.0)
        assert not made._addresses._looking
        made._up = frozenset()  # as the last sweep would have left it, had the backend been down
        made._follow_restarts(2.0)
        await until(lambda: made._addresses._by_host["localhost"] != "10.9.9.9")


def test_several_workers_are_refused(tmp_path: Path) -> None:
    """The command names the key."""
    path = tmp_path / "r.yaml"
    path.write_text("listen: {workers: 2}\nbackends: [{name: a, url: 'http://127.0.0.1:1'}]\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "router", "epp", "-c", path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "listen.workers" in done.stderr
