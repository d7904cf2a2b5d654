"""All that is not a token stream: health, models, metrics, admin, explain, the fleet page.

Believes: the gateway's parts. Must not know the data plane. Admin paths want the admin key; with none configured they
answer only to clients on this machine, so put a key in the config when a proxy on this machine serves others.
"""

import hmac
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHttpError

from router.core.errors import ConfigError, Rejected, StoreGone
from router.gateway.config.plan import digest
from router.gateway.control import fleet_view
from router.gateway.control.journal import explained
from router.gateway.protocols import answers
from router.gateway.protocols.answers import Dialect, Problem
from router.gateway.state.wire import view_plain

if TYPE_CHECKING:
    from router.gateway.app import Gateway

_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def control_app(gateway: "Gateway") -> FastAPI:
    """The application beside the token paths."""
    app = FastAPI(title="Headroom", version=_version(), summary="A latency-SLO router for LLM engines")

    def admin(request: Request) -> None:
        """Who may ask about or change this router."""
        wanted = gateway.plan.admin_digest
        if wanted is None:
            if not (request.client and request.client.host.startswith(_LOOPBACK)):
                raise HTTPException(403, "no admin_key is configured, so this path answers to this machine alone")
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(digest(given), wanted):
            raise HTTPException(401, "send Authorization: Bearer ADMIN_KEY", {"www-authenticate": "Bearer"})

    _add_public(app, gateway)
    _add_views(app, gateway, Depends(admin))
    _add_calls(app, gateway, Depends(admin))
    app.add_exception_handler(Rejected, _say_rejected)
    app.add_exception_handler(AnyHttpError, _say_http)
    return app


def _version() -> str:
    try:
        return version("headroom")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0"


def _add_public(app: FastAPI, gateway: "Gateway") -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process lives."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether to send requests here: not while draining, nor with no backend up."""
        up = sorted(name for name, watch in gateway.engines.watches.items() if watch.up)
        body = {"ready": gateway.ready, "draining": gateway.driver.draining, "backends_up": up}
        return JSONResponse(body, 200 if gateway.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus's text format."""
        return Response(gateway.metrics.text(), media_type=_METRICS_TYPE)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The models there are, in OpenAI's form."""
        _known_caller(gateway, request)
        return {"object": "list", "data": [_model(name, owners) for name, owners in _served(gateway).items()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        """One of them."""
        _known_caller(gateway, request)
        served = _served(gateway)
        if name not in served:
            there = ", ".join(served)
            raise Rejected(404, f"no backend serves {name!r}; models: {there}", "model", "model_not_found")
        return _model(name, served[name])

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        """The fleet, live."""
        return files("router.gateway.control").joinpath("fleet.html").read_text(encoding="utf-8")


def _add_views(app: FastAPI, gateway: "Gateway", admin: Any) -> None:
    @app.get("/admin/fleet", dependencies=[admin])
    async def fleet() -> dict[str, Any]:
        """Backends, load, forecasts beside what happened, the last requests."""
        return fleet_view.fleet(gateway)

    @app.get("/admin/config", dependencies=[admin])
    async def config() -> dict[str, Any]:
        """Which config serves, and how the last reload went."""
        return {"file": str(gateway.path), "version": gateway.plan.version, "last": asdict(gateway.reloader.last)}

    @app.get("/admin/policy", dependencies=[admin])
    async def policy() -> dict[str, Any]:
        """Who decides, with its parameters; how policies fare; which served before, and why they changed."""
        return fleet_view.policy(gateway) | fleet_view.changes(gateway)

    @app.get("/explain/{request_id}", dependencies=[admin])
    async def explain(request_id: str) -> dict[str, Any]:
        """Why one of the last requests went where it went, and how that turned out."""
        entry = gateway.journal.find(request_id)
        if entry is None:
            raise HTTPException(404, f"no request {request_id!r} among the last ones")
        return explained(entry, gateway.core.explain(entry.outcome.account.request.id))


def _add_calls(app: FastAPI, gateway: "Gateway", admin: Any) -> None:
    @app.post("/admin/reload", dependencies=[admin])
    async def reload() -> JSONResponse:
        """Take the config file as it is now, whole or not at all; 422 says why not."""
        outcome = await gateway.reloader.reload("admin call")
        return JSONResponse(asdict(outcome), 200 if outcome.ok else ConfigError.status)

    @app.post("/admin/rollback", dependencies=[admin])
    async def rollback(to: str | None = None) -> JSONResponse:
        """Go back to the version named, or to the last good one; 422 says why not."""
        outcome = await gateway.reloader.rollback(to, "admin call")
        return JSONResponse(asdict(outcome), 200 if outcome.ok else ConfigError.status)

    @app.get("/admin/routers", dependencies=[admin])
    async def routers() -> Response:
        """What every router of the pool says of itself, from the shared state: load and demand."""
        try:
            views = await gateway.store.routers(gateway.clock())
        except StoreGone as gone:
            raise HTTPException(gone.status, f"the shared state does not answer: {gone}") from gone
        told = {name: view_plain(view) for name, view in views.items()}
        return Response(orjson.dumps(told), media_type="application/json")  # null for what a peer left without a number


def _known_caller(gateway: "Gateway", request: Request) -> None:
    gateway.driver.ingress.caller(dict(request.headers.raw))


def _served(gateway: "Gateway") -> dict[str, list[str]]:
    """Model names with the backends that serve them, in the config's order."""
    served: dict[str, list[str]] = {}
    for backend in gateway.plan.backends:
        for name in backend.models:
            served.setdefault(name, []).append(backend.name)
    return served


def _model(name: str, backends: list[str]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "headroom", "backends": backends}


async def _say_rejected(_: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    problem = answers.rejection(error)
    return Response(answers.body(Dialect.OPENAI, problem), problem.status, media_type="application/json")


async def _say_http(request: Request, error: Exception) -> Response:
    """FastAPI's own errors in the same form as all others here."""
    status = getattr(error, "status_code", 500)
    detail = str(getattr(error, "detail", error))
    message = f"no such path: {request.url.path}" if detail == "Not Found" else detail
    body = answers.body(Dialect.OPENAI, Problem(status, message))
    return Response(body, status, getattr(error, "headers", None), media_type="application/json")
