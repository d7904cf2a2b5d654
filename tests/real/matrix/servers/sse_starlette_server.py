"""A chat server on sse-starlette, as people build their own: its pings and comments, and an error as an event.

Run by its virtual environment: PORT. A reply opens with the role at once, is silent but for pings while the prompt is
read, then has one token a frame. A prompt with __error__ or __error_mid__ fails before or after the first tokens.
There is no /health and no /metrics; /counters has what it served, in Prometheus's form.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

PREFILL_S = 0.3
STEP_S = 0.01
FAULT_AFTER_TOKENS = 3
COUNTS = {"served_tokens_total": 0, "served_requests_running": 0}


def frame(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> ServerSentEvent:
    """One chunk of a chat."""
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return ServerSentEvent(json.dumps({"object": "chat.completion.chunk", "model": "tiny", "choices": choices, **more}))


def fault(message: str) -> ServerSentEvent:
    """An error as this library's users send it: a type of its own, and a payload of their own shape."""
    return ServerSentEvent(json.dumps({"detail": message}), event="error")


async def tokens(body: dict[str, Any]) -> AsyncIterator[ServerSentEvent]:
    """The events of one reply."""
    prompt = str(body["messages"])
    if "__error__" in prompt:
        yield fault("made to fail at once")
        return
    yield frame({"role": "assistant", "content": ""})
    await asyncio.sleep(PREFILL_S)
    count = int(body.get("max_tokens") or 16)
    for number in range(count):
        if number == FAULT_AFTER_TOKENS and "__error_mid__" in prompt:
            yield fault("made to fail in the middle")
            return
        COUNTS["served_tokens_total"] += 1
        yield frame({"content": f" {number}"})
        await asyncio.sleep(STEP_S)
    yield frame({}, "length")
    if (body.get("stream_options") or {}).get("include_usage"):
        words = len(prompt.split())
        usage = {"prompt_tokens": words, "completion_tokens": count, "total_tokens": words + count}
        yield ServerSentEvent(json.dumps({"object": "chat.completion.chunk", "choices": [], "usage": usage}))
    yield ServerSentEvent("[DONE]")


async def counted(body: dict[str, Any]) -> AsyncIterator[ServerSentEvent]:
    """The same, counted while it runs."""
    COUNTS["served_requests_running"] += 1
    try:
        async for event in tokens(body):
            yield event
    finally:
        COUNTS["served_requests_running"] -= 1


async def chat(request: Request) -> Response:
    """Streams only."""
    return EventSourceResponse(counted(await request.json()), ping=0.05, sep="\n")


async def models(request: Request) -> Response:
    """One model."""
    return JSONResponse({"object": "list", "data": [{"id": "tiny", "object": "model"}]})


async def counters(request: Request) -> Response:
    """What it served."""
    return PlainTextResponse("".join(f"{name} {count}\n" for name, count in COUNTS.items()))


app = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/counters", counters),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
