"""Where the demand is read: the admin path of the router that the config describes, over TLS where that serves so."""

import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from router.autoscaler.sources import Sources, own_url
from router.config.settings import Listen
from router.gateway.config.plan import plan_file
from tests.fakes_router import HEALTHY, backend, config, router, write
from tests.fakes_wire import ScriptedEngine
from tests.pages import Pages


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("fd00::7", "http://[fd00::7]:8000"),
        ("router.example", "http://router.example:8000"),
    ],
)
def test_a_router_is_reached_where_it_listens(host: str, url: str) -> None:
    """An address of all interfaces is none that one connects to; IPv6 needs brackets."""
    assert own_url(Listen(host=host, port=8000)) == url


async def test_a_router_that_serves_over_tls_is_read_over_tls(tmp_path: Path) -> None:
    """Its own certificate is trusted, whatever name it bears, and no other."""
    for name in ("own", "other"):
        made = trustme.CA().issue_cert("llm.example.com")
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    path = tmp_path / "r.yaml"
    async with ScriptedEngine() as engine, Pages(dict(HEALTHY)) as pages:
        plain = config(backend("a", engine, pages))
        own = plain.replace("listen: {port: 0", "listen: {tls: {cert: own.pem, key: own.key}, port: 0")
        async with router(path, own, ready=False) as it:
            await it.gateway.sync.once(it.gateway.clock)
            served = own.replace("port: 0", f"port: {it.port}")
            write(path, served)
            async with Sources(plan_file(path), path, "") as sources:
                assert list(await sources.views()) == [it.gateway.router_id]
            write(path, served.replace("own.", "other."))
            async with Sources(plan_file(path), path, "") as sources:
                with pytest.raises((httpx.ConnectError, ssl.SSLError), match="verify"):
                    await sources.views()
