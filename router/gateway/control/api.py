"""The control plane: health, models, metrics, admin, explain, the fleet page.

Must not depend on the data plane. Admin paths need the admin key; with none configured they answer only clients on this
machine, so put a key in the config when a proxy on this machine serves others.
"""

import hmac
import logging
from dataclasses import asdict
from time import time
from typing import Annotated, Any, Final

import orjson
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHttpError

from router.core.errors import ConfigError, Rejected, StoreGone
from router.core.types import Backend
from router.gateway.config.keys import digest
from router.gateway.control import discovery_view, fleet_view, page, quota_view
from router.gateway.control.cors import ModelsCors
from router.gateway.control.models import entry
from router.gateway.control.models import served as models_served
from router.gateway.control.parts import ControlParts
from router.gateway.protocols import answers
from router.gateway.protocols.answers import Dialect, Problem
from router.gateway.state.wire import view_plain
from router.gateway.telemetry import history_view
from router.gateway.telemetry.history import DIMENSIONS, Window
from router.gateway.telemetry.journal import explained, listed
from router.gateway.turns import in_turns
from router.version import VERSION

_log = logging.getLogger("headroom")

_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS: Final = "application/openmetrics-text"
_OPENMETRICS_TYPE: Final = f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"


def control_app(parts: ControlParts) -> FastAPI:
    """The application beside the token paths."""
    app = FastAPI(
        title="Headroom",
        version=VERSION,
        summary="A latency-SLO router for LLM engines",
        openapi_url=None,  # and with it the pages that read it: they describe admin paths, so they are admin paths
    )

    def admin(request: Request) -> None:
        """Whether this client may read and change the router."""
        wanted = parts.plan.admin_digest
        if wanted is None:
            if not (request.client and request.client.host.startswith(_LOOPBACK)):
                raise HTTPException(
                    403,
                    "no admin_key is configured, so this path answers clients on this machine alone",
                )
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(digest(given), wanted):
            raise HTTPException(401, "send Authorization: Bearer ADMIN_KEY", {"www-authenticate": "Bearer"})

    _add_public(app, parts)
    _add_metrics(app, parts)
    _add_page(app)
    _add_views(app, parts, Depends(admin))
    _add_explain(app, parts, Depends(admin))
    _add_policy(app, parts, Depends(admin))
    _add_calls(app, parts, Depends(admin))
    _add_docs(app, Depends(admin))
    app.add_middleware(ModelsCors, rules=lambda: parts.driver.ingress.cors)
    app.add_exception_handler(Rejected, _answer_rejected)
    app.add_exception_handler(AnyHttpError, _answer_http)
    return app


def _add_public(app: FastAPI, parts: ControlParts) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process runs."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether to send requests here: not while draining, nor with no backend up."""
        body = fleet_view.readiness(parts)
        return JSONResponse(body, 200 if body["ready"] else 503)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The models there are, in OpenAI's form."""
        _authenticate(parts, request)
        return {"object": "list", "data": [_model(parts, *each) for each in models_served(parts.plan).items()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        """One of them."""
        _authenticate(parts, request)
        served = models_served(parts.plan)
        if name not in served:
            there = ", ".join(served)
            raise Rejected(404, f"no backend serves {name!r}; models: {there}", "model", "model_not_found")
        return _model(parts, name, served[name])


def _add_page(app: FastAPI) -> None:
    """The operator's page; what it shows comes from admin paths."""

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page.text(page.INDEX), headers=page.HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in page.TYPES:
            raise HTTPException(404)
        return Response(page.text(name), headers=page.HEADERS, media_type=page.TYPES[name])


def _add_metrics(app: FastAPI, parts: ControlParts) -> None:
    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus's text format; OpenMetrics, with exemplars, while traces are written and where it is accepted."""
        if parts.driver.traces is not None and _OPENMETRICS in request.headers.get("accept", ""):
            return Response(parts.metrics.openmetrics(), media_type=_OPENMETRICS_TYPE)
        return Response(b"".join([each async for each in in_turns(parts.metrics.parts(), 1)]), media_type=_METRICS_TYPE)


def _add_views(app: FastAPI, parts: ControlParts, admin: Any) -> None:
    @app.get("/admin/fleet", dependencies=[admin])
    async def fleet() -> Response:
        """Backends, load, forecasts beside measurements, the last requests."""
        return Response(orjson.dumps(await fleet_view.fleet(parts)), media_type="application/json")

    @app.get("/admin/history", dependencies=[admin])
    async def history(window: Window = "hour", by: str = "", name: str = "") -> dict[str, Any]:
        """The last ``hour`` or ``day``: of all requests, or of one ``name`` of the dimension ``by``."""
        if by not in {"", *DIMENSIONS}:
            raise HTTPException(422, f"by: expected one of {', '.join(DIMENSIONS)}, got {by[:40]!r}")
        await history_view.settle(parts.history, by)
        return history_view.view(parts.history, window, (by, name if by else "")) | fleet_view.slos(parts)

    @app.get("/admin/config", dependencies=[admin])
    async def config() -> dict[str, Any]:
        """The config that serves, and the result of the last reload."""
        return {"file": str(parts.path), "version": parts.plan.version} | fleet_view.reloads(parts)

    @app.get("/admin/discovery", dependencies=[admin])
    async def discovery() -> dict[str, Any]:
        """Each source of backends, whether it answers, its endpoints, and why which of them are no backends."""
        return discovery_view.discovery(parts)

    @app.get("/admin/scaling", dependencies=[admin])
    async def scaling() -> dict[str, Any]:
        """The last decision of the autoscaler in this router: demand, advice, what was applied, and why."""
        decided = parts.scaling()
        if decided is None:
            raise HTTPException(404, "no autoscaler runs inside this router (autoscale.inside)")
        return dict(decided)


def _add_explain(app: FastAPI, parts: ControlParts, admin: Any) -> None:
    @app.get("/explain/{request_id}", dependencies=[admin])
    async def explain(request_id: str) -> dict[str, Any]:
        """The decisions about one of the last requests, with forecast and measurement. Of several to which clients gave
        the same id the newest; ``matches`` has each with its own id. One that is in flight is shown as far as it is.
        """
        running = parts.driver.running(request_id)
        found = [*running, *parts.journal.find(request_id)]
        if not found:
            raise HTTPException(404, f"no request {request_id!r} among the last ones")
        found = [log for log in found if log.record.request.id == request_id] or found  # no client's choice
        choice = parts.core.explain(found[0].record.request.id)
        arrived_s = time() - parts.clock() + found[0].record.request.arrived_s
        shown = explained(found[0], choice, running=found[0] in running)
        return shown | {"arrived_at_s": round(arrived_s, 3), "matches": listed(found)}


def _add_policy(app: FastAPI, parts: ControlParts, admin: Any) -> None:
    @app.get("/admin/policy", dependencies=[admin])
    async def policy() -> dict[str, Any]:
        """The policies with their parameters, their statistics, and the history of configs."""
        return fleet_view.policy(parts) | fleet_view.changes(parts)

    @app.get("/admin/usage", dependencies=[admin])
    async def usage() -> dict[str, Any]:
        """How each account of a quota stands: its limits, what is left of them, and what was used."""
        return quota_view.usage(parts.driver.quotas, parts.clock(), shared=parts.plan.redis is not None)

    @app.get("/admin/policy/diff", dependencies=[admin])
    async def diff(
        old: Annotated[str | None, Query(alias="from")] = None, new: Annotated[str | None, Query(alias="to")] = None
    ) -> dict[str, Any]:
        """What differs between two versions: by default the one that served before, and the one that serves."""
        try:
            return fleet_view.difference(parts, old, new)
        except ConfigError as problem:
            raise HTTPException(404, str(problem)) from problem


def _add_calls(app: FastAPI, parts: ControlParts, admin: Any) -> None:
    @app.post("/admin/reload", dependencies=[admin])
    async def reload(force: bool = False) -> JSONResponse:
        """Take the config file as it is now, whole or not at all; 422 says why not. ``force``: whatever SLO attainment
        its policies lose in the replay.
        """
        outcome = await parts.reloader.reload("admin call", forced=force)
        return JSONResponse(asdict(outcome), 200 if outcome.ok else ConfigError.status)

    @app.post("/admin/rollback", dependencies=[admin])
    async def rollback(to: str | None = None) -> JSONResponse:
        """Go back to the version named, or to the last good one; 422 says why not."""
        outcome = await parts.reloader.rollback(to, "rollback by an admin call")
        return JSONResponse(asdict(outcome), 200 if outcome.ok else ConfigError.status)

    @app.post("/admin/backends/{name:path}/drain", dependencies=[admin])
    async def drain(name: str) -> dict[str, Any]:
        """Send no more requests to a backend, until it is undrained or the router ends; its streams run on."""
        _drain(parts, name, drained=True)
        return {"backend": name, "drained": True}

    @app.post("/admin/backends/{name:path}/undrain", dependencies=[admin])
    async def undrain(name: str) -> dict[str, Any]:
        """Send it requests again."""
        _drain(parts, name, drained=False)
        return {"backend": name, "drained": False}

    @app.get("/admin/routers", dependencies=[admin])
    async def routers() -> Response:
        """Load and demand of every router of the pool, from the shared state."""
        try:
            views = await parts.store.routers(parts.clock())
        except StoreGone as gone:
            raise HTTPException(gone.status, f"the shared state does not answer: {gone}") from gone
        plain = {name: view_plain(view) for name, view in views.items()}
        return Response(orjson.dumps(plain), media_type="application/json")  # null where a peer has no number


def _drain(parts: ControlParts, name: str, *, drained: bool) -> None:
    try:
        if drained:
            parts.backends.drain(name, time())
        else:
            parts.backends.undrain(name)
    except KeyError:
        raise HTTPException(404, f"no backend {name!r}") from None
    parts.audit.note("drained" if drained else "undrained", backend=name)
    _log.info("backend %s: %s by an admin call", name, "drained" if drained else "undrained")


def _add_docs(app: FastAPI, admin: Any) -> None:
    """FastAPI's own pages about this application."""

    @app.get("/openapi.json", dependencies=[admin], include_in_schema=False)
    async def schema() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/docs", dependencies=[admin], include_in_schema=False)
    async def swagger() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="/openapi.json", title=app.title)

    @app.get("/redoc", dependencies=[admin], include_in_schema=False)
    async def redoc() -> HTMLResponse:
        return get_redoc_html(openapi_url="/openapi.json", title=app.title)


def _authenticate(parts: ControlParts, request: Request) -> None:
    parts.driver.ingress.caller(dict(request.headers.raw))


def _model(parts: ControlParts, name: str, backends: list[Backend]) -> dict[str, Any]:
    return entry(parts.plan, parts.model_lists, name, backends)


async def _answer_rejected(_: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    problem = answers.rejection(error)
    return Response(answers.body(Dialect.OPENAI, problem), problem.status, media_type="application/json")


async def _answer_http(request: Request, error: Exception) -> Response:
    """FastAPI's own errors in the same form as all others here."""
    status = getattr(error, "status_code", 500)
    detail = str(getattr(error, "detail", error))
    message = f"no such path: {request.url.path}" if detail == "Not Found" else detail
    body = answers.body(Dialect.OPENAI, Problem(status, message))
    return Response(body, status, getattr(error, "headers", None), media_type="application/json")
