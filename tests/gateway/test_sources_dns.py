"""Backends from DNS, against a real server on a real socket."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from dns import rcode

from router.config.discover import address_port
from router.core.errors import ConfigError, SourceFailed
from router.gateway.config.plan import plan_file
from router.gateway.sources.dns import EMPTY_S, DnsRecords
from router.gateway.sources.endpoint import Endpoint
from tests.dns_server import DnsServer
from tests.fakes_engine import WholeEngine
from tests.fakes_router import router
from tests.waiting import until

VLLM = "vllm.models.svc.cluster.local."
SRV = "_http._tcp.vllm.models.svc.cluster.local."


def read(server: DnsServer, port: int | None = 8000, scheme: str = "http", name: str = "") -> DnsRecords:
    return DnsRecords(name or (VLLM if port else SRV), port, scheme, [server.at], timeout_s=2.0, ttl_s_min=0.01)


async def first(source: DnsRecords) -> tuple[Endpoint, ...]:
    """The first set."""
    sets: AsyncGenerator[tuple[Endpoint, ...], None] = source.sets()
    try:
        return await anext(sets)
    finally:
        await sets.aclose()


async def test_every_address_of_a_name_is_a_backend() -> None:
    """As a headless Service has one A record a pod."""
    async with DnsServer() as server:
        server.records[VLLM, "A"] = 5, ["10.0.0.8", "10.0.0.7"]
        server.records[VLLM, "AAAA"] = 5, ["fd00::7", "fd00::8"]
        assert await first(read(server)) == (
            Endpoint("10.0.0.7-8000", "http://10.0.0.7:8000"),
            Endpoint("10.0.0.8-8000", "http://10.0.0.8:8000"),
        )
        del server.records[VLLM, "A"]
        assert [each.url for each in await first(read(server))] == ["http://[fd00::7]:8000", "http://[fd00::8]:8000"]


async def test_srv_records_have_ports_and_the_names_of_replicas() -> None:
    """A StatefulSet's pods keep their names when their addresses change; a certificate bears the name."""
    async with DnsServer() as server:
        server.records[SRV, "SRV"] = 5, [f"0 50 8000 vllm-0.{VLLM}", f"0 50 8001 many.{VLLM}"]
        server.records[f"vllm-0.{VLLM}", "A"] = 5, ["10.0.0.7"]
        server.records[f"many.{VLLM}", "A"] = 5, ["10.0.0.8", "10.0.0.9"]
        pod = "vllm-0.vllm.models.svc.cluster.local"
        found = {each.name: each.url for each in await first(read(server, None))}
        assert found == {
            f"{pod}-8000": "http://10.0.0.7:8000",
            f"many.{VLLM[:-1]}-10.0.0.8-8001": "http://10.0.0.8:8001",
            f"many.{VLLM[:-1]}-10.0.0.9-8001": "http://10.0.0.9:8001",
        }
        server.records[SRV, "SRV"] = 5, [f"0 50 8000 vllm-0.{VLLM}"]
        assert [each.url for each in await first(read(server, None, "https"))] == [f"https://{pod}:8000"]
        server.records[SRV, "SRV"] = 5, ["0 0 0 ."]
        assert await first(read(server, None)) == ()


async def test_a_record_whose_target_is_gone_hides_no_other() -> None:
    """As while a replica ends; where no target is there, that says nothing of the pool."""
    async with DnsServer() as server:
        server.records[SRV, "SRV"] = 5, [f"0 50 8000 vllm-{number}.{VLLM}" for number in range(2)]
        server.records[f"vllm-1.{VLLM}", "A"] = 5, ["10.0.0.7"]
        assert [each.url for each in await first(read(server, None))] == ["http://10.0.0.7:8000"]
        del server.records[f"vllm-1.{VLLM}", "A"]
        with pytest.raises(SourceFailed, match=r"there is no name vllm-.\."):
            await first(read(server, None))


async def test_the_records_are_read_again_when_their_ttl_is_over() -> None:
    """Neither before, however often a set is wanted, nor much later."""
    async with DnsServer() as server:
        server.records[VLLM, "A"] = 1, ["10.0.0.7"]
        sets = read(server).sets()
        assert [each.name for each in await anext(sets)] == ["10.0.0.7-8000"]
        server.records[VLLM, "A"] = 0, ["10.0.0.9"]
        assert len(server.asked) == 1
        assert [each.name for each in await anext(sets)] == ["10.0.0.9-8000"]
        await sets.aclose()


class Clock:
    """Seconds that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_an_answer_without_records_is_believed_once_it_has_been_repeated_for_a_while() -> None:
    """One such answer, as of a resolver that has just lost its data, must not take the whole pool away."""
    async with DnsServer() as server:
        clock = Clock()
        source = DnsRecords(VLLM, 8000, "http", [server.at], timeout_s=2.0, ttl_s_min=0.01, clock=clock)
        server.names = {VLLM}
        assert await first(source) == ()  # of a name that never had any there surely is none
        server.records[VLLM, "A"] = 0, ["10.0.0.7"]
        assert len(await first(source)) == 1
        kept, server.records = server.records, {}
        for clock.now_s in (100.0, 100.0 + EMPTY_S - 1.0):
            with pytest.raises(SourceFailed, match=r"had records and has none, which counts after 30 s"):
                await first(source)
        server.records = kept  # it was a glitch: what comes later counts anew
        assert len(await first(source)) == 1
        server.records, clock.now_s = {}, 200.0
        for code, failure in ((None, "has none"), (rcode.SERVFAIL, "SERVFAIL")):
            server.code = code
            with pytest.raises(SourceFailed, match=failure):
                await first(source)
        server.code, clock.now_s = None, 200.0 + EMPTY_S
        assert await first(source) == ()
        assert await first(source) == ()


async def test_a_set_too_long_for_udp_comes_over_tcp() -> None:
    """A pool of 200 pods does not fit a datagram."""
    async with DnsServer() as server:
        server.records[VLLM, "A"] = 5, [f"10.0.1.{number}" for number in range(200)]
        assert len(await first(read(server))) == 200
        assert server.over_tcp == 1


@pytest.mark.parametrize(
    ("code", "silent", "why"),
    [
        (None, False, "there is no name"),
        (rcode.SERVFAIL, False, "SERVFAIL"),
        (rcode.REFUSED, False, "REFUSED"),
        (None, True, "timed out|lifetime"),
    ],
)
async def test_what_says_nothing_of_the_pool_is_a_failure(code: rcode.Rcode | None, silent: bool, why: str) -> None:
    """A name that does not exist among them: it may be a typing error, or a resolver that has just started."""
    async with DnsServer() as server:
        server.code, server.silent = code, silent
        with pytest.raises(SourceFailed, match=why):
            await first(DnsRecords(VLLM, 8000, "http", [server.at], timeout_s=0.2))


async def test_a_router_serves_what_dns_names_and_keeps_it_while_dns_is_away(tmp_path: Path) -> None:
    """From the config to a reply; then the server is gone, and the reply is the same."""
    async with WholeEngine() as engine, DnsServer() as server:
        server.records["vllm.test.", "A"] = 0, ["127.0.0.1"]
        text = "listen: {port: 0, drain_s: 5}\nscrape: {period_s: 0.02, models_s: null}\ndiscover:\n"
        text += (
            f"  - dns: {{name: vllm.test, port: {engine.port}, servers: ['127.0.0.1:{server.port}'], timeout_s: 0.5}}\n"
        )
        async with router(tmp_path / "r.yaml", text) as it:
            assert (await it.chat()).headers["x-headroom-backend"] == f"127.0.0.1-{engine.port}"
            server.code = rcode.SERVFAIL
            (state,) = it.gateway.sources.states
            await until(lambda: state.failing_s is not None)
            assert (await it.chat()).status_code == 200
            assert state.name == f"dns:vllm.test {engine.port} ('127.0.0.1:{server.port}',) 0.5"


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("{name: x, port: 0}", "discover[0].dns.port: "),
        ("{port: 1}", "discover[0].dns.name: is required"),
        ("{name: x, servers: [dns.example]}", "discover[0].dns.servers[0]: expected an address such as 10.0.0.10"),
        ("{name: x, scheme: ftp}", "discover[0].dns.scheme: "),
    ],
)
def test_a_fault_of_a_dns_source_is_placed(tmp_path: Path, given: str, fault: str) -> None:
    """Like any other of the config."""
    (tmp_path / "r.yaml").write_text(f"discover: [{{dns: {given}}}]")
    with pytest.raises(ConfigError) as refused:
        plan_file(tmp_path / "r.yaml")
    assert fault in str(refused.value)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dnspython, a config that needs it is refused, and one that does not is not."""
    monkeypatch.setattr("router.config.discover.find_spec", lambda _: None)
    (tmp_path / "r.yaml").write_text("discover: [{dns: {name: x, port: 1}}]")
    with pytest.raises(ConfigError, match=r"pip install 'headroom-router\[dns\]'"):
        plan_file(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("discover: [{file: x.yaml}]")
    assert plan_file(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", ("10.0.0.1", 53)),
        ("10.0.0.1:5353", ("10.0.0.1", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]", ("::1", 53)),
        ("[::1]:54", ("::1", 54)),
        ("h:53", None),
        ("10.0.0.1:0", None),
        ("10.0.0.1:x", None),
        ("", None),
    ],
)
def test_an_address_with_or_without_a_port(text: str, expected: tuple[str, int] | None) -> None:
    """Of either family."""
    if expected is None:
        with pytest.raises(ValueError, match=r"address|Port"):
            address_port(text)
    else:
        assert address_port(text) == expected
