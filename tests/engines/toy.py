"""An engine kind with a protocol of its own, in one file as ``router/engines`` wants it; tests register it.

Its API: POST /say with ``{"ask": ..., "words": N, "as": model}`` answers one JSON document a line, ``{"word": ...}``,
or ``{"oops": {"text": ..., "status": ...}}``.
"""

from typing import Any, Final

import orjson

from router.core.errors import UnsupportedFeature
from router.engines.kind import (
    EngineKind,
    ErrorDialect,
    MetricsPage,
    OpenAICall,
    Scheduler,
    Translation,
)
from router.engines.prometheus import ScrapedPage, Snapshot


def metrics(page: ScrapedPage) -> Snapshot:
    return Snapshot("toy", running=page.total("toy_busy"), kv_tokens_max=4096.0)


def read_error(payload: bytes) -> tuple[int, str]:
    try:
        said = orjson.loads(payload)["oops"]
        return said["status"], said["text"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return 0, payload.decode("utf-8", "replace")


class ToyTranslation(Translation):
    def __init__(self, call: OpenAICall) -> None:
        self.path, self.whole, self.error, self.tokens = b"/say", not call.stream, None, 0
        self.estimated = False
        self.fields = b"content-type: text/event-stream\r\n"
        self._line, self._id = b"", call.request_id
        asked = " ".join(message["content"] for message in call.document["messages"])
        self.body = orjson.dumps({"ask": asked, "words": call.output_tokens_max or 8, "as": call.engine_model})

    def feed(self, data: bytes) -> bytes:
        *lines, self._line = (self._line + data).split(b"\n")
        return b"".join(self._event(line) for line in lines if line)

    def _event(self, line: bytes) -> bytes:
        said: dict[str, Any] = orjson.loads(line)
        if "oops" in said:
            self.error = line
            return b""
        self.tokens += 1
        choice = {"index": 0, "delta": {"content": said["word"]}, "finish_reason": None}
        return b"data: " + orjson.dumps({"id": self._id, "choices": [choice]}) + b"\n\n"

    def finish(self) -> bytes:
        return b"data: [DONE]\n\n"


def translate(call: OpenAICall) -> ToyTranslation:
    if "messages" not in call.document or not call.stream:
        raise UnsupportedFeature(f"{call.backend} streams chats alone", "stream")
    return ToyTranslation(call)


KIND: Final = EngineKind(
    name="toy",
    aliases=("toy-server",),
    prior="sglang",
    protocol="toy",
    health_path="/up",
    metrics_path="/numbers",
    metrics=MetricsPage((b"toy_busy",), metrics),
    errors=ErrorDialect(read_error, engine_faults=("out of toys",), client_faults=("bad manners",)),
    translate=translate,
    scheduler=Scheduler.NO_EVICT,
)
