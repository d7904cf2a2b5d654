"""Triton's generate extension in front of TensorRT-LLM, as 24.10 speaks it on the wire, and its metrics.

Written from captures of the real server: no [DONE] (the chunked body just ends), an error before the first token is
a 400 with an event-stream body, bad JSON is a 500, an unknown model a 404. Sampling inputs change nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from simulator.emulator.engine import EmulatedEngine, prompt_of
from simulator.emulator.wire.http import Exchange
from simulator.emulator.wire.metrics import metric, signal_lines
from simulator.emulator.wire.words import encoded, text
from simulator.errors import Busy
from simulator.replica.sequence import Sequence

_PATH_PARTS: Final = 2
_INPUTS: Final = [
    {"name": "text_input", "datatype": "BYTES", "shape": [1]},
    {"name": "max_tokens", "datatype": "INT32", "shape": [1]},
    {"name": "stream", "datatype": "BOOL", "shape": [1]},
]
_OUTPUTS: Final = [{"name": "text_output", "datatype": "BYTES", "shape": [-1]}]


class Triton:
    """One emulated server: ``handle`` is given each request."""

    def __init__(self, engine: EmulatedEngine) -> None:
        """In front of *engine*."""
        self.engine = engine

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or as its tokens come."""
        path = exchange.path
        if path in {"/v2/health/ready", "/v2/health/live"}:
            exchange.respond(200, content_type="text/plain")
        elif path == "/metrics":
            exchange.respond(200, metrics(self.engine).encode(), "text/plain; charset=utf-8")
        elif path == "/v2":
            exchange.respond(200, b'{"name":"triton","version":"2.51.0","extensions":["generate"]}')
        elif path == "/v2/repository/index":
            self._index(exchange)
        elif path.startswith("/v2/models/"):
            self._model(exchange, path.removeprefix("/v2/models/").split("/"))
        else:
            exchange.respond(404, b'{"error":"Not Found"}', "text/plain")

    def _model(self, exchange: Exchange, parts: list[str]) -> None:
        name, verb = parts[0], parts[-1]
        if len(parts) == 1 and exchange.method == "GET":
            self._metadata(exchange, name)
            return
        versioned = len(parts) == _PATH_PARTS + 2 and parts[1] == "versions"
        if len(parts) != _PATH_PARTS and not versioned:
            exchange.respond(404, b'{"error":"Not Found"}', "text/plain")
        elif verb == "ready":
            self._ready(exchange, name)
        elif verb not in {"generate", "generate_stream"}:
            exchange.respond(404, b'{"error":"Not Found"}', "text/plain")
        elif exchange.method != "POST":
            exchange.respond(405, b'{"error":"Method Not Allowed"}')
        elif name != self.engine.serving.model_name:
            _error(exchange, 404, f"Request for unknown model: '{name}' is not found")
        else:
            self._generate(exchange, verb == "generate_stream")

    def _index(self, exchange: Exchange) -> None:
        if exchange.method != "POST":
            exchange.respond(405, b'{"error":"Method Not Allowed"}')
            return
        models = [{"name": self.engine.serving.model_name, "version": "1", "state": "READY"}]
        exchange.respond(200, orjson.dumps(models))

    def _metadata(self, exchange: Exchange, name: str) -> None:
        if name != self.engine.serving.model_name:
            _error(exchange, 404, f"Request for unknown model: '{name}' is not found")
            return
        body = {"name": name, "versions": ["1"], "platform": "tensorrtllm", "inputs": _INPUTS, "outputs": _OUTPUTS}
        exchange.respond(200, orjson.dumps(body))

    def _ready(self, exchange: Exchange, name: str) -> None:
        if name == self.engine.serving.model_name:
            exchange.respond(200, content_type="text/plain")
        else:
            exchange.respond(400, b'{"error":"Model version not ready"}', "text/plain")

    def _generate(self, exchange: Exchange, stream: bool) -> None:
        body = _body(exchange)
        if body is None:
            return
        prompt = prompt_of(body["text_input"].encode())
        cap = body.get("max_tokens")
        reply = Generation(self.engine, exchange, stream)
        most = self.engine.model_tokens_max
        if prompt.tokens >= most:
            reply.refuse(f"Prompt length ({prompt.tokens}) exceeds maximum input length ({most - 1}).")
            return
        ends_at_cap = bool(body.get("ignore_eos"))
        reply.length = self.engine.output_tokens(
            prompt.tokens, cap, int(body.get("min_tokens") or 0), ignore_end=ends_at_cap
        )
        try:
            sequence = self.engine.generate(prompt, reply.length, int(body.get("priority") or 0), reply)
        except Busy:
            reply.refuse("Maximum queue size has been exceeded")
            return
        exchange.gone = lambda: self.engine.drop(sequence)


def _body(exchange: Exchange) -> dict[str, Any] | None:
    """The inputs; None when the error has been answered."""
    try:
        body = orjson.loads(exchange.body)
    except orjson.JSONDecodeError as problem:
        _error(exchange, 500, f"failed to parse the request JSON buffer: {problem.msg} at {problem.pos}")
        return None
    if not isinstance(body, dict) or not isinstance(body.get("text_input"), str):
        _error(exchange, 400, "expected a string in 'text_input'")
        return None
    cap = body.get("max_tokens")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        _error(exchange, 500, "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer")
        return None
    return body


def _error(exchange: Exchange, status: int, message: str) -> None:
    exchange.respond(status, orjson.dumps({"error": message}))


class Generation:
    """One generation on the wire."""

    def __init__(self, engine: EmulatedEngine, exchange: Exchange, stream: bool) -> None:
        """``length`` is set before it starts."""
        self.exchange, self.stream = exchange, stream
        self.length, self.at = 1, 0
        self.seed = engine.started
        self.name = engine.serving.model_name

    def refuse(self, message: str) -> None:
        """An error before the first token, in the form of the verb."""
        body = orjson.dumps({"error": message})
        if not self.stream:
            self.exchange.respond(400, body)
            return
        self.exchange.start(400)
        self.exchange.write(b"data: " + body + b"\n\n")
        self.exchange.end()

    def first(self) -> None:
        """Headers and first frame (the last, if it is one, comes by ``last``)."""
        if self.stream:
            self.exchange.start()
            if self.length > 1:
                self.token()

    def token(self) -> None:
        """One more frame."""
        if self.stream:
            self.exchange.write(self._frame())

    def last(self, sequence: Sequence) -> None:
        """The last frame, and the end."""
        if self.stream:
            self.exchange.write(self._frame())
            self.exchange.end()
            return
        whole = {**self._base(), "sequence_length": self.length, "text_output": text(self.seed, self.length)}
        self.exchange.respond(200, orjson.dumps(whole))

    def _base(self) -> dict[str, object]:
        return {"cum_log_probs": 0.0, "model_name": self.name, "model_version": "1", "output_log_probs": 0.0}

    def _frame(self) -> bytes:
        at = self.at
        self.at = at + 1
        return (
            b'data: {"cum_log_probs":0.0,"model_name":"%b","model_version":"1","output_log_probs":0.0,'
            b'"sequence_length":%d,"text_output":"%b"}\n\n' % (self.name.encode(), at + 1, encoded(self.seed, at))
        )


def metrics(engine: EmulatedEngine) -> str:
    """Triton's own counters, and those of the TensorRT-LLM backend."""
    replica, limits = engine.replica, engine.limits
    of = {"model": engine.serving.model_name, "version": "1"}
    running, waiting = replica.running, replica.waiting
    requests = {
        "waiting": waiting,
        "context": running - replica.decoding,
        "scheduled": running,
        "active": running + waiting,
        "max": limits.seqs_max,
    }
    used = round(replica.kv_usage() * limits.kv_blocks)
    blocks = {
        "fraction": used / limits.kv_blocks,
        "used": used,
        "free": limits.kv_blocks - used,
        "max": limits.kv_blocks,
        "tokens_per": limits.block_tokens,
    }
    lines = [
        metric("nv_inference_request_success", "counter", engine.succeeded, of),
        metric("nv_inference_request_failure", "counter", engine.rejected, {**of, "reason": "REJECTED"}),
        metric("nv_inference_request_failure", "", engine.aborted, {**of, "reason": "CANCELED"}),
        metric("nv_inference_pending_request_count", "gauge", 0, of),
        *_family("nv_trt_llm_request_metrics", "request_type", requests, of),
        *_family("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", blocks, of),
        *signal_lines("triton", replica, of),
    ]
    return "".join(lines)


def _family(name: str, label: str, values: Mapping[str, float], of: dict[str, str]) -> list[str]:
    first = next(iter(values))
    return [metric(name, "gauge" if key == first else "", value, {**of, label: key}) for key, value in values.items()]
