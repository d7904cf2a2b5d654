"""CORS: what a browser is sent where the config names origins, and nothing of it where it does not."""

import re
from pathlib import Path

import pytest

import router.gateway
from router.core.quota import Standing, Verdict
from router.gateway.protocols import quota_answers
from router.gateway.protocols.cors import EXPOSED, Cors
from router.gateway.protocols.ingress import Caller, Ingress
from tests.fakes_router import HEALTHY, backend, config
from tests.fakes_router import router as running
from tests.fakes_wire import Act, ScriptedEngine, pair, post, reply, stream
from tests.gateway.test_settings import BACKENDS, refused
from tests.pages import Pages

APP = "https://app.example"
ONE = Cors(frozenset({APP}))
THEIRS = "access-control-allow-origin: https://other.example\r\naccess-control-allow-credentials: true\r\n"


def preflight(path: str = "/v1/chat/completions", origin: str = APP, more: str = "") -> bytes:
    """As a browser sends it before a POST of JSON with a key."""
    asked = f"origin: {origin}\r\naccess-control-request-method: POST\r\n"
    asked += "access-control-request-headers: authorization,content-type,x-slo-ttft-ms\r\n"
    return f"OPTIONS {path} HTTP/1.1\r\nhost: g\r\n{asked}{more}\r\n".encode()


def ingress(cors: Cors | None, **more: object) -> Ingress:
    """What is configured beside."""
    return Ingress(cors=cors, **more)  # type: ignore[arg-type]


async def test_a_preflight_of_an_allowed_origin_is_answered_without_a_key_and_is_no_request() -> None:
    """On every routed path; what it asks for is allowed, and the connection goes on."""
    keys = {"0" * 64: Caller("t")}
    async with pair([stream("a")], ingress=ingress(ONE, keys=keys)) as (made, engine):
        client = await made.client()
        for path in ("/v1/chat/completions", "/v1/messages?beta=true", "/v2/models/m/generate"):
            client.send(preflight(path))
            answer = await client.reply()
            assert (answer.status, answer.body) == (200, b"")
            assert answer.headers == {
                "access-control-allow-origin": APP,
                "vary": "origin",
                "access-control-allow-methods": "POST",
                "access-control-max-age": "600",
                "access-control-allow-headers": "authorization,content-type,x-slo-ttft-ms",
                "content-length": "0",
            }
        assert engine.requests == []
        assert made.seen.rejections == []


@pytest.mark.parametrize(
    ("cors", "origin", "allowed"),
    [
        (ONE, APP, {"access-control-allow-origin": APP, "vary": "origin"}),
        (ONE, "https://APP.example", {"access-control-allow-origin": "https://APP.example", "vary": "origin"}),
        (ONE, "https://app.example.evil", {"vary": "origin"}),
        (ONE, "null", {"vary": "origin"}),
        (Cors(frozenset({"*"})), "https://any.example", {"access-control-allow-origin": "*"}),
    ],
)
async def test_replies_streams_and_errors_allow_the_origin_and_no_other(
    cors: Cors, origin: str, allowed: dict[str, str]
) -> None:
    """And let a script read our headers; what the engine says of origins never reaches the client."""
    whole = reply(b'{"ok": 1}', more=THEIRS)
    late = stream("a").replace(b"\r\n\r\n", f"\r\n{THEIRS}\r\n".encode(), 1)
    limits = {"ingress": ingress(cors)}
    async with pair([late], [whole], [reply(b'{"error": {}}', 422, more=THEIRS)], **limits) as (made, _):
        more = f"origin: {origin}\r\n"
        streamed = await made.chat(more=more)
        answers = [streamed, await made.chat(stream=False, more=more), await made.chat(stream=False, more=more)]
        answers += [await made.chat(model="unknown", more=more), await made.ask(post("/v1/embeddings", b"{", more))]
        assert [answer.status for answer in answers] == [200, 200, 422, 404, 400]
        assert streamed.events()[-1] == "[DONE]"
        for answer in answers:
            names = ("access-control-allow-origin", "access-control-allow-credentials", "vary")
            assert {name: answer.headers[name] for name in names if name in answer.headers} == allowed
            exposed = answer.headers.get("access-control-expose-headers", "").encode()
            assert exposed == (b", ".join(EXPOSED) if "access-control-allow-origin" in allowed else b"")


async def test_a_refused_origins_preflight_allows_nothing() -> None:
    """The browser then does not send the request."""
    async with pair([stream("a")], ingress=ingress(ONE)) as (made, _):
        answer = await made.ask(preflight(origin="https://other.example"))
        assert [name for name in answer.headers if name.startswith("access-control")] == []


async def test_headers_of_the_config_are_allowed_and_no_others() -> None:
    """What the browser names is then not repeated; a name that is none never is."""
    fixed = Cors(frozenset({APP}), ("Authorization", "Content-Type"), 5)
    async with pair([stream("a")], ingress=ingress(fixed)) as (made, _):
        answer = await made.ask(preflight())
        assert answer.headers["access-control-allow-headers"] == "Authorization, Content-Type"
        assert answer.headers["access-control-max-age"] == "5"
    odd = {b"origin": APP.encode(), b"access-control-request-headers": b"a:b\x00"}
    assert b"allow-headers" not in ONE.preflight_fields(odd, b"POST")


async def test_without_the_section_nothing_of_it_is_sent() -> None:
    """An OPTIONS is a wrong method, and the engine's own words on origins are dropped too."""
    async with pair([reply(b"{}", more=THEIRS), Act.CLOSE]) as (made, _):
        assert (await made.ask(preflight())).status == 405
        answer = await made.chat(stream=False, more=f"origin: {APP}\r\n")
        assert answer.status == 200
        assert [name for name in answer.headers if name.startswith("access-control") or name == "vary"] == []


async def test_the_models_are_for_browsers_too_and_admin_paths_are_not(tmp_path: Path) -> None:
    """With the rules of the config that serves, which a reload changes."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages), more=f'cors: {{origins: ["{APP}"]}}\n')
        async with running(path, text) as it:
            origin = {"origin": APP, "access-control-request-method": "GET"}
            answer = await it.client.options("/v1/models", headers=origin)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, APP)
            assert answer.headers["access-control-allow-methods"] == "GET"  # HEAD, which has no answer there, is not
            for name in ("/v1/models", "/v1/models/none"):
                assert (await it.get(name, headers=origin)).headers["access-control-allow-origin"] == APP
            assert "access-control-allow-origin" not in (await it.get("/admin/fleet", headers=origin)).headers
            assert (await it.chat(headers=origin)).headers["access-control-allow-origin"] == APP
            path.write_text(config(backend("a", engine, pages)))
            await it.client.post("/admin/reload")
            assert "vary" not in (await it.get("/v1/models", headers=origin)).headers
            assert "vary" not in (await it.chat(headers=origin)).headers


def test_every_header_of_ours_can_be_read_by_a_script() -> None:
    """A new one has to be entered in EXPOSED."""
    folder = Path(router.gateway.__file__).parent
    sources = "".join(path.read_text() for path in (folder / "traffic").glob("*.py"))
    sources += (folder / "protocols" / "answers.py").read_text()
    named = set(re.findall(r"(x-headroom-[a-z-]+): ", sources))
    assert len(named) >= 4
    limited = quota_answers.fields(Verdict(None, "", 0.0, Standing(2.0, 1.0, 30.0), Standing(2.0, 1.0, 30.0)))
    named |= {line.partition(":")[0] for line in limited.decode().splitlines()}
    assert named <= {name.decode() for name in EXPOSED}


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ("{origins: []}", "cors.origins: needs at least one entry"),
        ('{origins: ["https://a.example/"]}',
         "cors.origins[0]: expected an origin such as https://app.example, without a path, or *, not 'https://a.example/'"),
        ('{origins: ["*"], headers: ["x y"]}', "cors.headers[0]: expected the name of a header, not 'x y'"),
        ('{origins: ["*"], max_age_s: -1}',
         "cors.max_age_s: input should be greater than or equal to 0, not -1"),
    ],
)  # fmt: skip
def test_a_section_that_cannot_be_meant_is_refused(section: str, why: str) -> None:
    """With its key."""
    assert refused(f"{BACKENDS}cors: {section}\n") == [f"r.yaml:4: {why}"]
