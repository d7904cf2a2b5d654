"""CORS for the paths of clients that the control plane answers: the models. Admin paths are for no other origin."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from router.gateway.protocols.cors import Cors, is_preflight

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATHS: Final = "/v1/"


class ModelsCors:
    """Wraps an application: its replies under ``/v1/`` get the fields that ``rules`` gives at that moment, if any."""

    def __init__(self, app: "ASGIApp", rules: Callable[[], Cors | None]) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a preflight; pass anything else on."""
        rules = self._rules() if scope["type"] == "http" and scope["path"].startswith(_PATHS) else None
        if rules is None:
            await self._app(scope, receive, send)
            return
        fields = dict(scope["headers"])
        if is_preflight(scope["method"].encode(), fields):
            headers = [*_pairs(rules.preflight_fields(fields, b"GET")), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        more = _pairs(rules.reply_fields(fields))

        async def with_fields(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await self._app(scope, receive, with_fields)


def _pairs(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Names and values of header lines."""
    parts = [line.partition(b": ") for line in lines.split(b"\r\n") if line]
    return [(name, value) for name, _, value in parts]
