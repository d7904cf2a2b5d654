"""TLS to clients and to engines, on real sockets, with certificates that are made here."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from router.core.errors import ConfigError
from router.gateway.app import Gateway
from router.gateway.config.plan import plan_file
from router.gateway.serving import server_of
from tests.commands import command
from tests.fakes_router import HEALTHY, backend, config, router, write
from tests.fakes_wire import ScriptedEngine, chat, stream
from tests.pages import Pages
from tests.redis_server import free_port
from tests.waiting import until, until_async

WHOLE = stream("a", "b")
LOCAL = "127.0.0.1"


def issue(folder: Path, authority: trustme.CA, name: str, host: str = LOCAL) -> trustme.LeafCert:
    """A certificate and its key as ``NAME.pem`` and ``NAME.key``."""
    made = authority.issue_cert(host)
    made.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    made.private_key_pem.write_to_path(folder / f"{name}.key")
    return made


def trusting(authority: trustme.CA, *, shown: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """A client that trusts this authority alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority.configure_trust(context)
    if shown is not None:
        shown.configure_cert(context)
    return context


def engine_context(certificate: trustme.LeafCert, *, clients: trustme.CA | None = None) -> ssl.SSLContext:
    """How an engine answers; *clients*: the authority whose certificates it wants to see."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def listening(engine: ScriptedEngine, pages: Pages, tls: str, more: str = "") -> str:
    """A config that listens with this tls section."""
    return config(backend("a", engine, pages), more=more).replace("port: 0", f"port: 0, tls: {{{tls}}}")


OWN = "cert: own.pem, key: own.key"


async def serial(port: int, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that the port shows."""
    reader, writer = await asyncio.open_connection(LOCAL, port, ssl=context)
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert()
        return int(shown["serialNumber"], 16)
    finally:
        writer.close()
        del reader


async def served(path: Path, text: str, use: Callable[[Gateway, int], Any], context: ssl.SSLContext) -> None:
    """A router of this config, on TLS, for as long as *use* runs."""
    write(path, text)
    gateway = Gateway(plan_file(path), path)
    await gateway.start()
    server = server_of(gateway)
    serving = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started or serving.done())
        await until(lambda: gateway.ready)
        await use(gateway, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await serving
        await gateway.close()


async def test_clients_are_served_over_tls_as_without(tmp_path: Path) -> None:
    """Streams, errors and the control plane; HTTP/1.1 is agreed on, though the client offers HTTP/2 too."""
    authority = trustme.CA()
    issue(tmp_path, authority, "own")
    trusted = trusting(authority)
    async with ScriptedEngine([WHOLE]) as engine, Pages(dict(HEALTHY)) as pages:

        async def use(_: Gateway, port: int) -> None:
            async with httpx.AsyncClient(base_url=f"https://{LOCAL}:{port}", verify=trusted, trust_env=False) as client:
                body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
                for _ in range(2):
                    answer = await client.post("/v1/chat/completions", json=body)
                    assert answer.text.endswith("data: [DONE]\n\n")
                assert (await client.post("/v1/chat/completions", json=body | {"model": "x"})).status_code == 404
                assert (await client.get("/v1/models")).json()["data"][0]["id"] == "m"
            reader, writer = await asyncio.open_connection(LOCAL, port, ssl=trusted)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 99999999\r\n\r\n{")
            told = await reader.read()  # refused before the body has come: the answer, then a proper end of TLS
            assert told.startswith(b"HTTP/1.1 413")
            writer.close()

        await served(tmp_path / "r.yaml", listening(engine, pages, OWN), use, trusted)


async def test_a_changed_certificate_serves_new_connections_and_streams_run_on(tmp_path: Path) -> None:
    """Files replaced one after the other: until both have come, the pair is refused and the old one serves."""
    authority, go_on = trustme.CA(), asyncio.Event()
    issue(tmp_path, authority, "own")
    trusted, script = trusting(authority), [WHOLE[:-40], go_on, WHOLE[-40:]]
    async with ScriptedEngine(script) as engine, Pages(dict(HEALTHY)) as pages:

        async def use(gateway: Gateway, port: int) -> None:
            reader, writer = await asyncio.open_connection(LOCAL, port, ssl=trusted)
            writer.write(chat())
            await reader.readuntil(b"\r\n\r\n")
            before = await serial(port, trusted)
            made = authority.issue_cert(LOCAL)
            made.cert_chain_pems[0].write_to_path(tmp_path / "own.pem")
            await until(lambda: not gateway.reloader.last.ok)
            why = gateway.reloader.last.error
            assert f"r.yaml:1: listen.tls.key: {tmp_path}/own.key is not the key of the certificate" in why
            assert await serial(port, trusted) == before
            made.private_key_pem.write_to_path(tmp_path / "own.key")

            async def changed() -> bool:
                return await serial(port, trusted) != before

            await until_async(changed)
            assert gateway.reloader.last.ok
            go_on.set()
            assert (await reader.readuntil(b"[DONE]\n\n")).count(b"data: ") == 3
            writer.close()

        await served(tmp_path / "r.yaml", listening(engine, pages, OWN), use, trusted)


async def test_clients_need_a_certificate_where_the_config_says_so(tmp_path: Path) -> None:
    """And one of a former authority no longer serves, though the client resumes the session it began with it."""
    authority, clients, others = trustme.CA(), trustme.CA(), trustme.CA()
    issue(tmp_path, authority, "own")
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    known, unknown = (trusting(authority, shown=each.issue_cert("client.example")) for each in (clients, others))

    async def status(port: int, context: ssl.SSLContext, session: Any = None) -> int:
        def ask() -> tuple[int, Any]:
            with (
                socket.create_connection((LOCAL, port)) as plain,
                context.wrap_socket(plain, server_hostname=LOCAL, session=session) as secure,
            ):
                secure.sendall(b"GET /healthz HTTP/1.1\r\nhost: g\r\n\r\n")
                told = secure.recv(4096)
                return int(told.split(b" ")[1]) if told else 0, secure.session

        try:
            return await asyncio.to_thread(ask)
        except (ssl.SSLError, ConnectionError):
            return 0, None

    async with ScriptedEngine([WHOLE]) as engine, Pages(dict(HEALTHY)) as pages:

        async def use(gateway: Gateway, port: int) -> None:
            answered, session = await status(port, known)
            assert answered == 200
            assert (await status(port, unknown))[0] == 0
            assert (await status(port, trusting(authority)))[0] == 0
            others.cert_pem.write_to_path(tmp_path / "clients.pem")

            async def changed() -> bool:
                return (await status(port, unknown))[0] == 200

            await until_async(changed)
            assert (await status(port, known, session))[0] == 0
            assert (await status(port, known))[0] == 0

        text = listening(engine, pages, f"{OWN}, client_ca: clients.pem")
        await served(tmp_path / "r.yaml", text, use, known)


async def test_engines_are_reached_over_tls_by_streams_and_probes(tmp_path: Path) -> None:
    """With an authority of its own, a certificate that the engine wants to see, and another name in the engine's."""
    authority, clients = trustme.CA(), trustme.CA()
    shown = engine_context(authority.issue_cert("engine.example"), clients=clients)
    issue(tmp_path, clients, "client", "gateway.example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with _Tls(shown) as (engine, pages):
        tls = {"ca": "ca.pem", "client_cert": "client.pem", "client_key": "client.key"}
        given = backend(
            "a", engine, pages, url=f"https://{LOCAL}:{engine.port}", **tls, tls_server_name="engine.example"
        )
        async with router(tmp_path / "r.yaml", config(given)) as it:  # ready: its health was read
            assert (await it.chat()).text.endswith("data: [DONE]\n\n")
            await until(lambda: "a" in it.gateway.reports)


async def test_what_an_engine_serves_is_read_over_its_tls_too(tmp_path: Path) -> None:
    """A backend without models, whose pages are on the same address."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with _Tls(engine_context(authority.issue_cert(LOCAL))) as (_, pages):
        pages.pages["/v1/models"] = (200, b'{"data": [{"id": "found", "max_model_len": 100}]}')
        pages.pages["/version"] = (200, b'{"version": "0.32.0"}')
        text = f'listen: {{port: 0}}\nbackends:\n  - {{name: a, url: "{pages.url}", ca: ca.pem}}\n'
        async with router(tmp_path / "r.yaml", text) as it:
            assert [each["id"] for each in (await it.get("/v1/models")).json()["data"]] == ["found"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, "certificate verify failed"),
        ({"ca": "other.pem"}, "certificate verify failed"),
        ({"ca": "ca.pem", "tls_server_name": "other.example"}, "certificate verify failed"),
    ],
)
async def test_an_engine_that_is_not_who_it_should_be_gets_no_request(
    tmp_path: Path, more: dict[str, str], why: str
) -> None:
    """Its backend is down, and the reason is the certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    async with _Tls(engine_context(authority.issue_cert(LOCAL))) as (engine, pages), Pages(dict(HEALTHY)) as plain:
        given = backend("a", engine, plain, url=f"https://{LOCAL}:{engine.port}", **more)
        async with router(tmp_path / "r.yaml", config(given)) as it:
            answer = await it.chat()
            assert answer.status_code == 502
            assert why in answer.json()["error"]["message"]
            assert engine.requests == []
        given = backend("a", engine, pages, url=f"https://{LOCAL}:{engine.port}", **more)
        async with router(tmp_path / "r.yaml", config(given), ready=False) as it:
            await until(lambda: it.gateway.engines.watches["a"].up is False)


async def test_a_changed_client_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    """New connections to the engine are made with it."""
    authority, first, second = trustme.CA(), trustme.CA(), trustme.CA()
    shown = engine_context(authority.issue_cert(LOCAL), clients=second)
    issue(tmp_path, first, "client", "gateway.example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with _Tls(shown) as (engine, pages):
        given = backend(
            "a", engine, pages, url=f"https://{LOCAL}:{engine.port}",
            ca="ca.pem", client_cert="client.pem", client_key="client.key",
        )  # fmt: skip
        async with router(tmp_path / "r.yaml", config(given), ready=False) as it:
            await until(lambda: it.gateway.engines.watches["a"].up is False)
            issue(tmp_path, second, "client", "gateway.example")
            await until(lambda: any(watch.up for watch in it.gateway.engines.watches.values()))
            assert (await it.chat()).text.endswith("data: [DONE]\n\n")


async def test_several_workers_serve_over_tls_and_all_take_a_changed_certificate(tmp_path: Path) -> None:
    """One of them sees the files change; the others follow."""
    authority, port, path = trustme.CA(), free_port(), tmp_path / "r.yaml"
    first = issue(tmp_path, authority, "own")
    trusted = trusting(authority)
    async with ScriptedEngine([WHOLE]) as engine, Pages(dict(HEALTHY)) as pages:
        write(path, listening(engine, pages, OWN).replace("port: 0", f"port: {port}"))
        async with command("serve", "--config", str(path), "--workers", "2"):

            async def up() -> bool:
                try:
                    return bool(await serial(port, trusted))
                except OSError:
                    return False

            await until_async(up)
            issue(tmp_path, authority, "own")
            before = ssl.PEM_cert_to_DER_cert(first.cert_chain_pems[0].bytes().decode())

            async def all_changed() -> bool:
                for _ in range(16):  # the kernel spreads them over the workers
                    _, writer = await asyncio.open_connection(LOCAL, port, ssl=trusted)
                    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                    writer.close()
                    if shown == before:
                        return False
                return True

            await until_async(all_changed)


def refused(path: Path, text: str) -> list[str]:
    """Why a config is refused, with the folder taken out."""
    write(path, text)
    with pytest.raises(ConfigError) as caught:
        plan_file(path)
    return [line.replace(f"{path.parent}/", "") for line in caught.value.lines]


BACKENDS = 'backends:\n  - {name: a, url: "https://e:1", models: [m], card: l4, model: qwen3-4b'


@pytest.mark.parametrize(
    ("tls", "why"),
    [
        ("cert: none.pem, key: own.key", "cert: cannot read none.pem: No such file or directory"),
        ("cert: own.pem, key: none.key", "key: cannot read none.key: No such file or directory"),
        ("cert: own.pem, key: other.key", "key: other.key is not the key of the certificate own.pem"),
        ("cert: own.key, key: own.key", "cert: no certificates in PEM form in own.key"),
        ("cert: text, key: own.key", "cert: no certificates in PEM form in text"),
        ("cert: own.pem, key: text", "key: no private key in text"),
        ("cert: own.pem, key: own.pem", "key: no private key in own.pem"),
        ("cert: own.pem, key: locked.key", "key: locked.key is encrypted; expected a key without a password"),
        ("cert: own.pem, key: own.key, client_ca: text", "client_ca: no certificates in PEM form in text"),
        ("cert: ., key: own.key", "cert: cannot read .: Is a directory"),
    ],
)
def test_a_pair_that_cannot_serve_is_refused_with_its_file_and_key(tmp_path: Path, tls: str, why: str) -> None:
    """Before anything listens, by `check` too; nothing prompts for a password."""
    authority = trustme.CA()
    made = issue(tmp_path, authority, "own")
    issue(tmp_path, authority, "other")
    (tmp_path / "text").write_text("no certificate\n")
    key = load_pem_private_key(made.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret"))
    (tmp_path / "locked.key").write_bytes(locked)
    text = f"listen: {{port: 0, tls: {{{tls}}}}}\n{BACKENDS}}}\n"
    assert refused(tmp_path / "r.yaml", text) == [f"r.yaml:1: listen.tls.{why.replace('read .:', f'read {tmp_path}:')}"]


@pytest.mark.parametrize(
    ("tls", "why"),
    [
        ("ca: none.pem", "backends[0].ca: cannot read none.pem: No such file or directory"),
        ("ca: text", "backends[0].ca: no certificates in PEM form in text"),
        ("client_cert: own.pem", "backends[0].client_cert: no private key in own.pem"),
        ("client_cert: own.pem, client_key: other.key",
         "backends[0].client_key: other.key is not the key of the certificate own.pem"),
        ("client_key: own.key", "backends[0]: client_key needs client_cert"),
    ],
)  # fmt: skip
def test_certificates_of_a_backend_are_refused_in_the_same_way(tmp_path: Path, tls: str, why: str) -> None:
    """The message has the backend's place."""
    authority = trustme.CA()
    issue(tmp_path, authority, "own")
    issue(tmp_path, authority, "other")
    (tmp_path / "text").write_text("no certificate\n")
    assert refused(tmp_path / "r.yaml", f"{BACKENDS}, {tls}}}\n") == [f"r.yaml:2: {why}"]


def test_certificates_of_a_backend_without_tls_are_refused(tmp_path: Path) -> None:
    """They would have no effect."""
    text = BACKENDS.replace("https:", "http:") + ", ca: ca.pem}\n"
    assert refused(tmp_path / "r.yaml", text) == [
        "r.yaml:2: backends[0]: ca has no use: the url is http://e:1, and TLS needs https://"
    ]


class _Tls:
    """An engine and its pages, both with this context."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._engine, self._pages = ScriptedEngine([WHOLE]), Pages(dict(HEALTHY))
        self._engine.tls = self._pages.tls = context

    async def __aenter__(self) -> tuple[ScriptedEngine, Pages]:
        await self._engine.__aenter__()
        await self._pages.start()
        return self._engine, self._pages

    async def __aexit__(self, *_: object) -> None:
        await self._engine.stop()
        await self._pages.stop()
