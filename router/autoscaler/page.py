"""The port of the autoscaler as a process of its own: its metrics, and its last decision at ``/admin/scaling``.

The decision is for those for whom a router's admin paths are. Must not depend on how decisions come about.
"""

import hmac
from collections.abc import Iterable
from typing import Final
from wsgiref.simple_server import WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import orjson
from prometheus_client import make_wsgi_app, start_http_server

from router.autoscaler.loop import Autoscaler
from router.autoscaler.shown import shown
from router.gateway.config.keys import digest

PATH: Final = "/admin/scaling"
_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")


def serve(port: int, host: str, scaler: Autoscaler) -> WSGIServer:
    """Answer there, in a thread, until it is shut down. Raises OSError."""
    server, _ = start_http_server(port, host, scaler.metrics.registry)
    server.set_app(_beside(make_wsgi_app(scaler.metrics.registry), scaler))
    return server


def _beside(metrics: WSGIApplication, scaler: Autoscaler) -> WSGIApplication:
    def answered(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != PATH:
            return metrics(environ, start_response)
        status = _refused(environ, scaler.plan.admin_digest)
        body = orjson.dumps({"detail": status} if status else shown(scaler.last))
        start_response(status or "200 OK", [("content-type", "application/json"), ("content-length", str(len(body)))])
        return [body]

    return answered


def _refused(environ: WSGIEnvironment, wanted: str | None) -> str:
    """The status for a client that may not read it; empty for one that may: without a key those on this machine."""
    if wanted is None:
        return "" if str(environ.get("REMOTE_ADDR", "")).startswith(_LOOPBACK) else "403 Forbidden"
    given = str(environ.get("HTTP_AUTHORIZATION", "")).removeprefix("Bearer ")
    return "" if hmac.compare_digest(digest(given), wanted) else "401 Unauthorized"
