"""vLLM's OpenAI server, as version 0.32 speaks it on the wire, and its V1 metrics.

Written from captures of the real server: frames, errors and their status, what is null and what is left out.
Sampling parameters change nothing, for the text means nothing; ``n`` choices are as many sequences. A full queue is
refused with 503, or on streamed completions with 200 and an error as first frame: the real one does both.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import orjson

from simulator.emulator.engine import EmulatedEngine, Prompt, prompt_of, prompt_of_ids
from simulator.emulator.wire.http import Exchange
from simulator.emulator.wire.metrics import Histogram, metric, signal_lines
from simulator.emulator.wire.words import encoded, text
from simulator.errors import Busy, Refused
from simulator.replica.sequence import Sequence

FINGERPRINT: Final = "vllm-0.32.0-emulated"
_BUSY: Final = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
_DONE: Final = b"data: [DONE]\n\n"
_CHOICES_MOST: Final = 128


class Vllm:
    """One emulated server: ``handle`` is given each request."""

    def __init__(self, engine: EmulatedEngine) -> None:
        """In front of *engine*."""
        self.engine = engine
        self.created = int(time.time())
        self.ttft_s, self.tpot_s, self.e2e_s = Histogram(), Histogram(), Histogram()
        self._routes: dict[str, tuple[str, Callable[[Exchange], None]]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completion),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", lambda exchange: exchange.respond(200)),
            "/ping": ("GET", lambda exchange: exchange.respond(200)),
            "/version": ("GET", lambda exchange: exchange.respond(200, b'{"version":"0.32.0"}')),
            "/metrics": ("GET", self._metrics),
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or as its tokens come."""
        method, act = self._routes.get(exchange.path, ("", None))
        if act is None:
            exchange.respond(404, b'{"detail":"Not Found"}')
        elif exchange.method != method:
            exchange.respond(405, b'{"detail":"Method Not Allowed"}', extra=f"allow: {method}\r\n")
        else:
            try:
                act(exchange)
            except Refused as refused:
                exchange.respond(refused.status, refused.body)

    # ---- the small ones --------------------------------------------------------

    def _models(self, exchange: Exchange) -> None:
        name = self.engine.serving.model_name
        card = {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "vllm",
            "root": name,
            "parent": None,
            "max_model_len": self.engine.model_tokens_max,
        }
        exchange.respond(200, orjson.dumps({"object": "list", "data": [card]}))

    def _metrics(self, exchange: Exchange) -> None:
        exchange.respond(200, metrics(self).encode(), "text/plain; version=0.0.4; charset=utf-8")

    # ---- generation ----------------------------------------------------------------

    def _chat(self, exchange: Exchange) -> None:
        body = self._body(exchange, "messages")
        messages = body["messages"]
        if not isinstance(messages, list) or not messages:
            raise _invalid("messages", "list_type", "Input should be a valid list")
        words = b"\n".join(_content(message) for message in messages)
        self._generate(exchange, body, prompt_of(words), Chat)

    def _completion(self, exchange: Exchange) -> None:
        body = self._body(exchange, "prompt")
        prompt = body["prompt"]
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            self._generate(exchange, body, prompt_of(prompt.encode()), Completion)
        elif isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
            self._generate(exchange, body, prompt_of_ids(prompt), Completion)
        else:
            raise _invalid("prompt", "string_type", "Input should be one string or one list of token ids")

    def _body(self, exchange: Exchange, needed: str) -> dict[str, Any]:
        try:
            body = orjson.loads(exchange.body)
        except orjson.JSONDecodeError as problem:
            raise _invalid(str(problem.pos), "json_invalid", "JSON decode error", problem.msg) from None
        if not isinstance(body, dict):
            raise _invalid("", "model_attributes_type", "Input should be a valid dictionary")
        name = self.engine.serving.model_name
        if body.get("model", name) != name:
            message = f"The model `{body['model']}` does not exist. Valid aliases: {name}."
            raise Refused(404, "NotFoundError", message, "model")
        if needed not in body:
            raise _invalid(needed, "missing", "Field required")
        return body

    def _generate(self, exchange: Exchange, body: dict[str, Any], prompt: Prompt, kind: "type[Chat]") -> None:
        cap = _whole(body, "max_completion_tokens") or _whole(body, "max_tokens") or (None if kind is Chat else 16)
        self._check(body, prompt, cap)
        least = _whole(body, "min_tokens", 0) or 0
        replies: list[Chat] = []
        sequences: list[Sequence] = []

        def leave() -> None:
            for sequence in sequences:
                self.engine.drop(sequence)

        try:
            for index in range(body.get("n") or 1):
                length = self.engine.output_tokens(prompt.tokens, cap, least, ignore_end=bool(body.get("ignore_eos")))
                reply = kind(self, exchange, body, prompt, length, "length" if length == cap else "stop")
                replies.append(reply)
                reply.index, reply.all, reply.base = index, replies, replies[0].base
                sequences.append(self.engine.generate(prompt, length, int(body.get("priority") or 0), reply))
        except Busy:
            leave()
            if kind is Completion and body.get("stream"):
                self._busy_frame(exchange)
                return
            raise Refused(503, "Service Unavailable", _BUSY) from None
        exchange.gone = leave

    def _busy_frame(self, exchange: Exchange) -> None:
        exchange.start()
        exchange.write(b"data: " + Refused(503, "Service Unavailable", _BUSY).body + b"\n\n" + _DONE)
        exchange.end()

    def _check(self, body: dict[str, Any], prompt: Prompt, cap: int | None) -> None:
        most = self.engine.model_tokens_max
        if body.get("stream_options") and not body.get("stream"):
            message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
            raise Refused(400, "BadRequestError", message, "stream_options")
        if (_whole(body, "n") or 1) > _CHOICES_MOST:
            message = f"n must be at most {_CHOICES_MOST} on this emulated engine, got {body['n']}."
            raise Refused(400, "BadRequestError", message, "n")
        if cap is not None and cap > most:
            message = (
                f"max_tokens={cap} cannot be greater than max_model_len={most}. Please request fewer output tokens. "
                f"(parameter=max_tokens, value={cap})"
            )
            raise Refused(400, "BadRequestError", message, "max_tokens")
        if prompt.tokens >= most:
            message = (
                f"This model's maximum context length is {most} tokens. However, your prompt contains at least "
                f"{prompt.tokens} input tokens, which exceeds this limit even without any output tokens. Please "
                f"reduce the length of the input prompt. (parameter=input_tokens, value={prompt.tokens})"
            )
            raise Refused(400, "BadRequestError", message, "input_tokens")


def _content(message: object) -> bytes:
    if not isinstance(message, dict):
        raise _invalid("messages", "dict_type", "Input should be a valid dictionary")
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise _invalid("messages", "string_type", "Input should be a valid string")
    return f"{message.get('role', '')}\n{content}".encode()


def _whole(body: dict[str, Any], key: str, least: int = 1) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _invalid(key, "int_parsing", "Input should be a valid integer")
    if value < least:
        message = f"{key} must be at least {least}, got {value}. (parameter={key}, value={value})"
        raise Refused(400, "BadRequestError", message, key)
    return value


def _invalid(place: str, kind: str, message: str, detail: str = "") -> Refused:
    where = f"body.{place}" if place else "body"
    context = f", 'ctx': {{'error': '{detail}'}}" if detail else ""
    text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{where}', 'msg': '{message}'{context}}}"
    return Refused(400, "Bad Request", text, where)


class Chat:
    """One choice of a chat completion on the wire, streamed or whole.

    ``index``: its number; ``all``: the choices of the request, which share an exchange. The last one ends that.
    """

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(
        self, server: Vllm, exchange: Exchange, body: dict[str, Any], prompt: Prompt, length: int, reason: str
    ) -> None:
        """*reason* is what the last frame says."""
        self.server, self.exchange, self.prompt, self.length, self.reason = server, exchange, prompt, length, reason
        self.stream = bool(body.get("stream"))
        options = body.get("stream_options") or {}
        self.usage_last, self.usage_always = bool(options.get("include_usage")), False
        self.usage_always = self.usage_last and bool(options.get("continuous_usage_stats"))
        self.began_s = server.engine.clock.now_s
        self.first_s = self.began_s
        self.at = self.index = 0
        self.all: list[Chat] = [self]
        self.over, self.cached = False, 0
        self.seed = server.engine.started
        name = exchange.headers.get("x-request-id") or f"{server.created:08x}{self.seed:08x}"
        self.base = {
            "id": f"{self.prefix}-{name}",
            "object": self.chunk_kind if self.stream else self.kind,
            "created": int(time.time()),
            "model": server.engine.serving.model_name,
        }
        self._before, self._after = b"", b""

    # ---- what the engine tells -----------------------------------------------------

    def first(self) -> None:
        """Headers, role, first token (the last, if it is one, comes by ``last``)."""
        self.first_s = self.server.engine.clock.now_s
        self.server.ttft_s.add(self.first_s - self.began_s)
        if not self.stream:
            return
        if not self.exchange.started:
            self.exchange.start()
        opening = self._opening()
        self._before, self._after = self._frame().split(b"\x00")
        if self.length > 1:
            opening += self._next()
        if opening:
            self.exchange.write(opening)

    def token(self) -> None:
        """One more frame."""
        if self.stream:
            self.exchange.write(self._next())

    def last(self, sequence: Sequence) -> None:
        """The last frame, usage if requested, and the end."""
        server = self.server
        now_s = server.engine.clock.now_s
        server.e2e_s.add(now_s - self.began_s)
        if self.length > 1:
            server.tpot_s.add((now_s - self.first_s) / (self.length - 1))
        self.over, self.cached = True, max(0, sequence.cached_tokens)
        over = all(choice.over for choice in self.all)
        if not self.stream:
            if over:
                self.exchange.respond(200, orjson.dumps(self._whole()))
            return
        frames = self._closing()
        if over and self.usage_last:
            frames += _data({**self.base, "choices": [], "usage": self._usage_of_all()})
        self.exchange.write(frames + _DONE if over else frames)
        if over:
            self.exchange.end()

    def _next(self) -> bytes:
        at = self.at
        self.at = at + 1
        if self.usage_always:
            return self._frame(self.at).replace(b"\x00", encoded(self.seed, at))
        return self._before + encoded(self.seed, at) + self._after

    # ---- what differs by kind -----------------------------------------------------

    def _opening(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}
        usage = {"usage": self._usage(0)} if self.usage_always else {}
        return _data({**self.base, "choices": [choice], **usage, "prompt_token_ids": None, "prompt_text": None})

    def _choice(self, word: str, reason: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": self.index, "delta": {"content": word}, "logprobs": None}
        choice["finish_reason"] = reason
        if reason:
            choice["stop_reason"] = None
        return {**choice, "token_ids": None}

    def _frame(self, made: int = 0) -> bytes:
        """A token's frame with NUL where the word goes."""
        usage = {"usage": self._usage(made)} if self.usage_always else {}
        return _data({**self.base, "choices": [self._choice("@", None)], **usage}).replace(b'"@"', b'"\x00"', 1)

    def _closing(self) -> bytes:
        word = encoded(self.seed, self.at).decode()
        usage = {"usage": self._usage(self.length)} if self.usage_always else {}
        frame = {**self.base, "choices": [self._choice(word, self.reason)], **usage, "system_fingerprint": FINGERPRINT}
        return _data(frame)

    def _whole(self) -> dict[str, Any]:
        """The reply with all choices."""
        return {
            **self.base,
            "choices": [choice.whole_choice() for choice in self.all],
            "system_fingerprint": FINGERPRINT,
            "usage": self._usage_of_all(),
        }

    def whole_choice(self) -> dict[str, Any]:
        """This choice in a reply that comes whole."""
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": text(self.seed, self.length), "refusal": None},
            "logprobs": None,
            "finish_reason": self.reason,
            "stop_reason": None,
        }

    def _usage_of_all(self) -> dict[str, Any]:
        """The prompt once, and the tokens of every choice."""
        made = sum(choice.length for choice in self.all)
        reported = {"cached_tokens": self.all[0].cached} if self.server.engine.serving.reports_cached_tokens else None
        return {
            "prompt_tokens": self.prompt.tokens,
            "total_tokens": self.prompt.tokens + made,
            "completion_tokens": made,
            "prompt_tokens_details": reported,
        }

    def _usage(self, made: int) -> dict[str, Any]:
        """Of so many tokens of this choice."""
        prompt = self.prompt.tokens
        counts = {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}
        return {**counts, "prompt_tokens_details": None}


class Completion(Chat):
    """One text completion: no role frame, ``text`` instead of a delta."""

    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def _opening(self) -> bytes:
        return b""

    def _choice(self, word: str, reason: str | None) -> dict[str, Any]:
        return {"index": self.index, "text": word, "logprobs": None, "finish_reason": reason, "stop_reason": None}

    def whole_choice(self) -> dict[str, Any]:
        return self._choice(text(self.seed, self.length), self.reason)


def _data(frame: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(frame) + b"\n\n"


def metrics(server: Vllm) -> str:
    """vLLM V1's names, as its /metrics has them."""
    engine = server.engine
    replica, limits = engine.replica, engine.limits
    of = {"engine": "0", "model_name": engine.serving.model_name}
    cache = {"block_size": limits.block_tokens, "num_gpu_blocks": limits.kv_blocks, "engine": "0"}
    cache["enable_prefix_caching"] = str(limits.prefix_caching)
    lines = [
        metric("vllm:num_requests_running", "gauge", replica.running, of),
        metric("vllm:num_requests_waiting", "gauge", replica.waiting, of),
        *signal_lines("vllm", replica, of),
        metric("vllm:num_preemptions_total", "counter", replica.preemptions, of),
        metric("vllm:prompt_tokens_total", "counter", replica.prompt_tokens, of),
        metric("vllm:generation_tokens_total", "counter", replica.generated_tokens, of),
        metric("vllm:request_success_total", "counter", engine.succeeded, {**of, "finished_reason": "stop"}),
        metric("vllm:request_success_total", "", engine.aborted, {**of, "finished_reason": "abort"}),
        metric("vllm:admission_rejections_total", "counter", engine.rejected, {"reason": "max_num_queued_reqs"}),
        metric("vllm:cache_config_info", "gauge", 1, cache),
        server.ttft_s.text("vllm:time_to_first_token_seconds", of),
        server.tpot_s.text("vllm:request_time_per_output_token_seconds", of),
        server.e2e_s.text("vllm:e2e_request_latency_seconds", of),
    ]
    return "".join(lines)
