"""The control plane over HTTP: health, models, metrics, admin, explain, the page."""

import asyncio
import re
from math import inf, nan
from pathlib import Path

from router.core.types import Load
from router.gateway.state import RouterView
from router.gateway.state.memory import MemoryStore
from tests import fakes_wire as wire
from tests.fakes_router import HEALTHY, Router, backend, config, router
from tests.fakes_wire import ScriptedEngine, chunked, event, reply, stream, token
from tests.pages import Pages
from tests.waiting import until, until_async


async def test_a_router_is_ready_when_an_engine_is_up_and_not_before(tmp_path: Path) -> None:
    """Alive from the start; ready by the first good health check; unready when the last engine goes."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages({"/health": (503, b"")}) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages)), ready=False) as it,
    ):
        assert (await it.get("/healthz")).json() == {"status": "ok"}
        assert (await it.get("/readyz")).status_code == 503
        refused = await it.chat()
        assert refused.status_code == 503
        assert refused.headers["x-headroom-dropped-reason"] == "no-backend"
        pages.pages["/health"] = (200, b"")
        await until(lambda: it.gateway.ready)
        assert (await it.get("/readyz")).json() == {"ready": True, "draining": False, "backends_up": ["a"]}
        assert (await it.chat()).status_code == 200
        it.gateway.driver.draining = True
        assert (await it.get("/readyz")).status_code == 503


async def test_models_are_listed_as_openai_does(tmp_path: Path) -> None:
    """Each model is listed once; a model without a backend gets 404 with the known names."""
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages), backend("b", engine, pages, models=["m", "n"]))
        async with router(tmp_path / "r.yaml", text) as it:
            listed = (await it.get("/v1/models")).json()
            assert listed["object"] == "list"
            assert [model["id"] for model in listed["data"]] == ["m", "n"]
            assert (await it.get("/v1/models/n")).json()["object"] == "model"
            missing = await it.get("/v1/models/gpt")
            assert missing.status_code == 404
            assert missing.json()["error"] == {
                "message": "no backend serves 'gpt'; models: m, n",
                "type": "not_found_error",
                "param": "model",
                "code": "model_not_found",
            }


async def test_with_api_keys_models_need_one_and_metrics_do_not(tmp_path: Path) -> None:
    """The list of models is a client's business; the numbers are the operator's network's."""
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        more = "api_keys: [{key: client-secret, tenant: t}]\n"
        async with router(tmp_path / "r.yaml", config(backend("a", engine, pages), more=more)) as it:
            assert (await it.get("/v1/models")).status_code == 401
            key = {"authorization": "Bearer client-secret"}
            assert (await it.get("/v1/models", headers=key)).status_code == 200
            assert (await it.get("/metrics")).status_code == 200


async def test_admin_paths_want_the_admin_key_where_there_is_one(tmp_path: Path) -> None:
    """Without one configured they answer this machine; a client's key is not enough."""
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(backend("a", engine, pages))
        async with router(tmp_path / "open.yaml", text) as it:
            assert (await it.get("/admin/fleet")).status_code == 200
        more = "admin_key: {key: admin-secret}\napi_keys: [{key: client-secret, tenant: t}]\n"
        async with router(tmp_path / "shut.yaml", text + more) as it:
            documented = ("/docs", "/redoc", "/openapi.json")
            for path in ("/admin/fleet", "/admin/config", "/admin/policy", "/admin/routers", "/explain/x", *documented):
                assert (await it.get(path)).status_code == 401
                assert (await it.get(path, headers={"authorization": "Bearer client-secret"})).status_code == 401
                good = await it.get(path, headers={"authorization": "Bearer admin-secret"})
                assert good.status_code == (404 if path == "/explain/x" else 200)
            assert (await it.client.post("/admin/reload")).status_code == 401


async def test_a_clients_own_error_is_named_so_everywhere(tmp_path: Path) -> None:
    """In /explain, on the page's numbers and in the metrics: it was not refused, and no SLO was missed."""
    async with (
        ScriptedEngine([reply(b'{"error":{"message":"n must be at least 1, got 0."}}', 400)]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages))) as it,
    ):
        assert (await it.chat(headers={"x-request-id": "mine"})).status_code == 400
        told = (await it.get("/explain/mine")).json()
        assert (told["outcome"], told["reason"], told["slo"]["met"]) == ("client_error", "client-error", None)
        fleet = (await it.get("/admin/fleet")).json()
        assert (fleet["client_errors"], fleet["last"]) == (1, {"requests": 0, "slo_met": 0, "refused": 0})
        metrics = (await it.get("/metrics")).text
        assert 'outcome="client_error",reason="client-error"' in metrics
        judged = re.findall(r"^headroom_slo_requests_total{.*} (.*)$", metrics, re.MULTILINE)
        assert judged == ["0.0", "0.0"]


async def test_a_request_that_runs_is_explained_as_far_as_it_is(tmp_path: Path) -> None:
    """By the client's id and by its own: where it went and why, what has come of it, and no outcome yet."""
    begun, more = wire.STREAM_HEAD + chunked(event(token("a")), event(token("b"))), asyncio.Event()
    async with (
        ScriptedEngine([begun, more, chunked(event("[DONE]")) + wire.LAST]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages))) as it,
    ):
        asked = asyncio.ensure_future(it.chat(headers={"x-request-id": "mine"}))
        await until_async(lambda: shown(it, "mine", "output_tokens", 2))
        seen = (await it.get("/explain/mine")).json()
        assert (seen["outcome"], seen["backend"], seen["status"], seen["slo"]["met"]) == ("running", "a", 200, None)
        assert (seen["decisions"][0]["send_to"], seen["output_tokens_estimated"]) == ("a", True)
        assert 0 < seen["actual"]["ttft_ms"] <= seen["actual"]["e2e_ms"]
        assert (await it.get(f"/explain/{seen['id']}")).json()["request_id"] == "mine"
        assert it.gateway.core.in_flight == 1
        more.set()
        assert (await asked).status_code == 200
        await until_async(lambda: shown(it, "mine", "outcome", "served"))
        assert len((await it.get("/explain/mine")).json()["matches"]) == 1


async def shown(it: Router, request_id: str, key: str, value: object) -> bool:
    """Whether that is what is shown of a request by now."""
    answer = await it.get(f"/explain/{request_id}")
    return answer.status_code == 200 and answer.json()[key] == value


async def test_a_request_can_be_explained_and_is_in_the_books(tmp_path: Path) -> None:
    """By the client's id: the backend, the reason, forecast and measurement; the fleet and the metrics too."""
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    async with (
        ScriptedEngine([stream("a", "b", usage=usage)]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages))) as it,
    ):
        answer = await it.chat(headers={"x-request-id": "mine", "x-slo-ttft-ms": "5000"})
        assert answer.headers["x-request-id"] == "mine"
        told = (await it.get("/explain/mine")).json()
        assert told["backend"] == "a"
        assert told["decisions"][0]["send_to"] == "a"
        assert told["decisions"][0]["why"]
        assert told["slo"]["ttft_ms"] == 5000
        assert told["slo"]["met"] is True
        assert [candidate["backend"] for candidate in told["candidates"]] == ["a"]
        assert told["candidates"][0]["ttft_tail_ms"] >= told["candidates"][0]["ttft_ms"] > 0
        assert told["predicted"]["ttft_ms"] > 0
        assert told["actual"]["ttft_ms"] > 0
        assert (told["prompt_tokens"], told["output_tokens"], told["status"]) == (7, 2, 200)
        fleet = (await it.get("/admin/fleet")).json()
        assert fleet["last"] == {"requests": 1, "slo_met": 1, "refused": 0}
        assert fleet["backends"][0]["last"]["requests"] == 1
        last = fleet["recent"][0]
        assert (last["request_id"], last["output_tokens"], last["output_tokens_estimated"]) == ("mine", 2, False)
        routers = (await it.get("/admin/routers")).json()
        assert len(routers) == 1
        metrics = (await it.get("/metrics")).text
        assert 'headroom_requests_total{model="m",outcome="served",reason="",slo_class="default"} 1.0' in metrics
        assert 'headroom_responses_total{path="/v1/chat/completions",status="200"} 1.0' in metrics
        assert 'headroom_backend_up{backend="a"} 1.0' in metrics
        assert 'headroom_forecast_state{backend="a",state="learning"} 1.0' in metrics
        assert 'headroom_forecast_coverage_ratio{backend="a",metric="ttft",quantile="0.9"}' in metrics


class OddPeer(MemoryStore):
    """A store in which another router's load holds no number."""

    async def routers(self, now_s: float) -> dict[str, RouterView]:
        return {"odd": RouterView({"a": Load(inf, nan)})}


async def test_a_peers_load_that_is_no_number_is_shown_as_null(tmp_path: Path) -> None:
    """JSON has no infinity; /admin/routers responds all the same."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages)), store=OddPeer("r")) as it,
    ):
        it.gateway.on_peer_load("odd", {"a": Load(inf, nan, 3.0)})
        load = (await it.get("/admin/routers")).json()["odd"]["loads"]["a"]
        assert (load["prefilling"], load["prefill_tokens"], load["decoding"]) == (None, None, 0.0)
        assert (await it.get("/admin/fleet")).json()["backends"][0]["others"] == 3


async def test_paths_that_are_not_there_say_so_in_openais_form(tmp_path: Path) -> None:
    """Clients parse errors; FastAPI's own form would break them."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages))) as it,
    ):
        answer = await it.get("/v2/nowhere")
        assert answer.status_code == 404
        assert answer.json()["error"]["message"]
        assert (await it.client.post("/healthz")).json()["error"]["type"] == "invalid_request_error"
