"""What clients name is bounded where it is stored or repeated, and what the gateway names is unique."""

import json
import sys
from pathlib import Path
from uuid import UUID

import pytest

from router.core.decisions import EndState as Ending
from router.gateway.protocols import blocks
from router.gateway.protocols.client_text import NAME_CHARS_MAX
from router.gateway.protocols.ingress import Ingress
from router.gateway.telemetry.journal import Journal, explained
from router.gateway.traffic import http
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, chat, pair, post, reply, stream
from tests.pages import Pages

LONG = "x" * 60_000


@pytest.mark.parametrize(
    "request_bytes",
    [
        chat(model="m" * 7_000_000),
        post(f"/v2/models/{'m' * 50_000}/generate", b'{"text_input":"x"}'),
        post("/v1/messages", json.dumps({"model": LONG, "messages": [{"role": "user", "content": "x"}]}).encode()),
    ],
)
async def test_a_name_longer_than_any_models_is_404_and_is_not_repeated(request_bytes: bytes) -> None:
    """Nothing of it is stored: the request never reaches the core."""
    async with pair([reply(b"{}")]) as (gate, engine):
        got = await gate.ask(request_bytes)
        assert (got.status, len(got.body) < 400) == (404, True)
        assert engine.requests == []
        assert gate.seen.outcomes == []


async def test_a_model_name_at_its_bound_is_one_like_any_other() -> None:
    """It is served where a backend serves it."""
    name = "m" * NAME_CHARS_MAX
    async with pair([reply(b"{}")], models=(name,)) as (gate, _):
        assert (await gate.chat(stream=False, model=name)).status == 200


async def test_what_is_stored_of_a_request_is_small_whatever_its_headers() -> None:
    """Tenants and sessions over their bound stay different from each other."""
    async with pair([reply(b"{}")]) as (gate, _):
        for end in "ab":
            for name in ("x-session-id", "x-llm-d-inference-fairness-id", "x-request-id"):
                got = await gate.chat(stream=False, more=f"{name}: {LONG}{end}\r\n")
                assert got.status == 200
                assert len(got.headers["x-request-id"]) <= 256
        logs = gate.seen.outcomes
        sessions = {log.record.request.session for log in logs}
        tenants = {log.record.request.tenant for log in logs}
        assert len(sessions) == len(tenants) == 3  # and one that is empty
        journal = Journal()
        for log in logs:
            journal.ended(log)
            assert len(json.dumps(explained(log))) < 3_000
            request = log.record.request
            assert sum(map(sys.getsizeof, (request.session, request.tenant, request.model, log.wire_id))) < 1_500


async def test_an_error_repeats_a_bounded_part_of_what_was_sent(tmp_path: Path) -> None:
    """On routed paths, on the control plane's, and where an engine repeats it."""
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        path = tmp_path / "r.yaml"
        async with router(path, config(backend("a", engine, pages))) as it:
            for target in (f"/v1/models/{LONG}", f"/explain/{LONG}", f"/{LONG}"):
                answer = await it.client.get(target)
                assert (answer.status_code, len(answer.content) < 2_200) == (404, True)


async def test_an_id_of_the_gateways_own_is_a_uuid() -> None:
    """Engines behind some middleware refuse any other; the engine and the client see the same."""
    async with pair([reply(b"{}")]) as (gate, engine):
        ids = [(await gate.chat(stream=False)).headers["x-request-id"] for _ in range(3)]
        assert len(set(ids)) == 3
        for number, each in enumerate(ids):
            parsed = UUID(each)
            assert (str(parsed), parsed.version, parsed.variant) == (each, 4, "specified in RFC 4122")
            assert f"x-request-id: {each}\r\n".encode() in engine.requests[number]
        assert gate.seen.endings == [Ending.SERVED] * 3


async def test_no_client_can_put_its_request_before_another_in_explain(tmp_path: Path) -> None:
    """A request is found by the gateway's own id whatever ids clients give; one that several bear lists them all."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages))) as it,
    ):
        own = (await it.chat()).headers["x-request-id"]
        await it.chat(headers={"x-request-id": own, "x-llm-d-inference-fairness-id": "mallory"})
        found = (await it.client.get(f"/explain/{own}")).json()
        assert (found["id"], found["tenant"]) == (own, "")
        assert [match["id"] for match in found["matches"]] == [own]
        for tenant in ("alice", "mallory"):
            await it.chat(headers={"x-request-id": "theirs", "x-llm-d-inference-fairness-id": tenant})
        found = (await it.client.get("/explain/theirs")).json()
        assert [match["tenant"] for match in found["matches"]] == ["mallory", "alice"]
        alone = (await it.client.get(f"/explain/{found['matches'][1]['id']}")).json()
        assert (alone["tenant"], alone["request_id"]) == ("alice", "theirs")


async def test_no_cache_keeps_what_is_long_of_a_client_or_an_engine() -> None:
    """A thousand salts, models or queries of megabytes would stay for as long as the process runs."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-long: " + b"y" * 10_000 + b"\r\n\r\n{}"
    async with pair([head], ingress=Ingress(prefix_blocks_max=4)) as (gate, engine):
        before = blocks._kept_seed.cache_info().currsize, http._kept_head.cache_info().currsize
        messages = [{"role": "user", "content": "z" * 5_000}]
        for number in range(3):
            long = f"{number}{LONG}"
            assert (await gate.chat(stream=False, messages=messages, cache_salt=long)).status == 200
            assert (await gate.chat(stream=False, messages=messages, model=long)).status == 404
            request = chat(stream=False).replace(b"completions ", b"completions?%b " % long[:9_000].encode(), 1)
            assert (await gate.ask(request)).status == 200
            assert engine.requests[-1].startswith(b"POST /v1/chat/completions?%d" % number)
        assert (blocks._kept_seed.cache_info().currsize, http._kept_head.cache_info().currsize) == before
        (upstream,) = gate.driver.upstreams.values()
        assert upstream._openings.cache_info().currsize == 1
