"""Triton's generate protocol in front of TensorRT-LLM: its metrics, its errors, OpenAI's completions translated to it.

Relies on TensorRT-LLM's tensor names (``text_input``, ``max_tokens``, ``stop_words``, ...; triton-inference-server/
tensorrtllm_backend, docs/llm_features and all_models/inflight_batcher_llm/ensemble/config.pbtxt), and that
``text_output`` of a stream's frame is what is new.
"""

from collections.abc import Mapping
from math import nan
from time import time
from typing import Any, Final
from urllib.parse import quote

import orjson

from router.core.errors import UnsupportedFeature
from router.core.text_size import text_tokens
from router.engines.context import CONTEXT_FAULTS
from router.engines.facts import EngineFacts, EnginePages, document, field, objects, text
from router.engines.kind import (
    EngineKind,
    ErrorDialect,
    MetricsPage,
    OpenAICall,
    Scheduler,
    Translation,
)
from router.engines.prometheus import ScrapedPage, Snapshot

_MODELS_PATH: Final = b"/v2/models/"
CHAT: Final = "/v1/chat/completions"
_TRANSLATED: Final = {CHAT, "/v1/completions"}
_MAX_TOKENS: Final = 16  # OpenAI's default for completions; Triton's ensemble does not check that it is there
_CHAT_MAX_TOKENS: Final = 1024
_LENGTH_MOST: Final = 2**20  # tokens: more than any model's context
_FRAME_BYTES_MAX: Final = 2**20  # of a stream: a frame is one token's text

# OpenAI's field -> tensor of the same meaning and type
_SAME: Final = (
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("seed", "random_seed"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
    ("repetition_penalty", "repetition_penalty"),
    ("length_penalty", "length_penalty"),
    ("min_tokens", "min_length"),
)
# Fields that this protocol has no equivalent of, with the values that change nothing.
_UNTRANSLATABLE: Final[tuple[tuple[str, tuple[Any, ...]], ...]] = (
    ("n", (None, 1)),
    ("best_of", (None, 1)),
    ("tools", (None, [])),
    ("functions", (None, [])),
    ("response_format", (None, {"type": "text"})),
    ("logprobs", (None, False, 0)),
    ("top_logprobs", (None, 0)),
    ("echo", (None, False)),
    ("suffix", (None, "")),
    ("logit_bias", (None, {})),
)


def translate(call: OpenAICall) -> "TritonTranslation":
    """The request in Triton's generate protocol. Raises UnsupportedFeature when the protocol cannot express it."""
    if call.path not in _TRANSLATED:
        raise UnsupportedFeature(f"{call.backend} speaks Triton's protocol, which has no {call.path}", "path")
    for name, nothing in _UNTRANSLATABLE:
        if call.document.get(name) not in nothing:
            raise UnsupportedFeature(f"{call.backend} speaks Triton's protocol, which cannot give {name}", name)
    return TritonTranslation(call)


class TritonTranslation(Translation):
    """One request translated to generate or generate_stream, and its reply back."""

    __slots__ = (
        "_begun", "_chat", "_created", "_id", "_line", "_max_tokens", "_model", "_prompt_tokens", "_role_sent",
        "_sequence", "_stop", "_usage_wanted",
    )  # fmt: skip

    def __init__(self, call: OpenAICall) -> None:
        document = call.document
        self._chat = call.path == CHAT
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{call.request_id}"
        self._model = call.model
        self._created = int(time())
        self._stop = _stop_words(document.get("stop"))
        self._max_tokens = call.output_tokens_max or (_CHAT_MAX_TOKENS if self._chat else _MAX_TOKENS)
        self._prompt_tokens = call.prompt_tokens
        self.tokens = 0
        self.estimated = False
        self._sequence = _SequenceLength()
        self._line = bytearray()  # grows in place: a frame may come in many reads
        self._begun = self._role_sent = False
        options = document.get("stream_options")
        self._usage_wanted = isinstance(options, dict) and bool(options.get("include_usage"))
        self.whole = not call.stream
        self.error: bytes | None = None
        verb = "generate" if self.whole else "generate_stream"
        self.path = _MODELS_PATH + f"{call.engine_model}/{verb}".encode()
        self.fields = b"content-type: %b\r\n" % (b"application/json" if self.whole else b"text/event-stream")
        self.body = orjson.dumps(self._request(call))

    def _request(self, call: OpenAICall) -> dict[str, Any]:
        document = call.document
        prompt = render(document["messages"], call) if self._chat else _one_prompt(document.get("prompt"))
        request: dict[str, Any] = {"text_input": prompt, "max_tokens": self._max_tokens, "stream": not self.whole}
        request |= {to: document[name] for name, to in _SAME if document.get(name) is not None}
        if self._stop:
            request["stop_words"] = self._stop
        return request

    # -- the reply ------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """Translate more of the engine's body into what the client gets."""
        if self.whole:
            return self._document(data)
        end = data.rfind(b"\n") + 1
        self._line += data[:end] if end else data
        if not end:
            if len(self._line) > _FRAME_BYTES_MAX:
                raise ValueError(f"a frame over {_FRAME_BYTES_MAX} bytes")
            return b""
        lines = bytes(self._line).split(b"\n")
        self._line = bytearray(data[end:])
        return b"".join([self._frame(line[5:]) for line in lines if line.startswith(b"data:")])

    @property
    def cut_short(self) -> bool:
        return not self.whole and (not self._begun or bool(self._line.strip()))

    def finish(self) -> bytes:
        """The end of a stream: finish reason, usage if requested, and ``[DONE]``."""
        if self.whole:
            return b""
        last = self._event(self._choice("", self._finish_reason(), last=True))
        usage = self._event([], self._usage()) if self._usage_wanted else b""
        return last + usage + b"data: [DONE]\n\n"

    def _frame(self, payload: bytes) -> bytes:
        frame = _object(payload)
        if "error" in frame:
            self.error = payload
            return b""
        text = _output(frame)
        self._begun = True
        self._count(_stated(frame.get("sequence_length")), text)
        role = b""
        if self._chat and not self._role_sent:
            self._role_sent = True
            role = self._event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        return role + self._event(self._choice(text, None))

    def _count(self, stated: int, text: str) -> None:
        """Tokens of a frame: as the ensemble states them, else one where there is text, which is an estimate."""
        if not stated:
            self.estimated = self.estimated or bool(text)
        if stated and not self.estimated:
            self.tokens = max(self.tokens, self._sequence.after(stated, bool(text)))
        elif text:
            self.tokens += 1

    def _choice(self, text: str, finish_reason: str | None, *, last: bool = False) -> list[dict[str, Any]]:
        said: dict[str, Any] = {"delta": {} if last else {"content": text}} if self._chat else {"text": text}
        return [{"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}]

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        frame: dict[str, Any] = self._envelope(kind) | {"choices": choices}
        if usage is not None:
            frame["usage"] = usage
        return b"data: " + orjson.dumps(frame) + b"\n\n"

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _finish_reason(self) -> str:
        """The engine does not say why it stopped: at the cap it was the cap."""
        return "length" if self.tokens >= self._max_tokens else "stop"

    def _usage(self) -> dict[str, int]:
        """Prompt tokens are an estimate from the text: this protocol does not count them."""
        prompt = self._prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": self.tokens, "total_tokens": prompt + self.tokens}

    def _document(self, data: bytes) -> bytes:
        answer = _object(data)
        if "error" in answer:
            self.error = data
            return b""
        text = _output(answer)
        stated = _stated(answer.get("sequence_length"))
        self.estimated = not stated
        self.tokens = stated or max(1, int(text_tokens(text)))
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": self._finish_reason()}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        kind = "chat.completion" if self._chat else "text_completion"
        return orjson.dumps(self._envelope(kind) | {"choices": [choice], "usage": self._usage()})


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object parsed. Raises ValueError for anything else."""
    found = orjson.loads(data)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - what was sent is wrong, and not the call
    return found


def _output(answer: Mapping[str, Any]) -> str:
    """The text of a frame or of a whole reply, of several beams the first's. Raises ValueError where it is none."""
    text = answer.get("text_output", "")
    if isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        raise ValueError("text_output is no text")  # noqa: TRY004 - as above
    return text


def _stated(length: Any) -> int:
    """The ensemble's ``sequence_length``, nested by beam or not, of which the first counts; 0: none that can be one."""
    while isinstance(length, list) and length:
        length = length[0]
    return length if isinstance(length, int) and 0 < length <= _LENGTH_MOST else 0


class _SequenceLength:
    """``sequence_length`` over the frames of a stream. Of some ensembles it is that of the frame, of others that of the
    reply so far: the latter is longer with each frame that has text.
    """

    __slots__ = ("_grows", "_last", "_sum")

    def __init__(self) -> None:
        self._grows = True
        self._last = self._sum = 0

    def after(self, stated: int, more: bool) -> int:
        """The length of the reply with a frame that states this; *more*: the frame has text."""
        self._grows = self._grows and (stated > self._last or (stated == self._last and not more))
        self._last = stated
        self._sum += stated
        return stated if self._grows else self._sum


def render(messages: list[Mapping[str, Any]], call: OpenAICall) -> str:
    """Chat messages as one prompt, by the backend's template."""
    turns = [
        call.chat_template.replace("{role}", str(message.get("role", "user"))).replace("{content}", _text(message))
        for message in messages
    ]
    return "".join(turns) + call.chat_opening


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return content if isinstance(content, str) else ""


def _one_prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise UnsupportedFeature("Triton's protocol takes one prompt of text", "prompt")
    return prompt


def _stop_words(stop: Any) -> list[str]:
    return [stop] if isinstance(stop, str) else [word for word in stop or () if isinstance(word, str)]


def _metrics(page: ScrapedPage) -> Snapshot:
    """TensorRT-LLM's backend under Triton: ``scheduled`` is what runs; ``active`` would count those that wait too.

    Triton's own ``nv_inference_pending_request_count`` stays 0 for decoupled models and is not read.
    """
    requests, blocks = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"
    most = page.total(blocks, kv_cache_block_type="max")
    return Snapshot(
        "triton",
        running=page.total(requests, request_type="scheduled"),
        waiting=page.total(requests, request_type="waiting"),
        kv_tokens_max=most * page.mean(blocks, kv_cache_block_type="tokens_per") if most > 0 else nan,
    )


async def _discover(pages: EnginePages) -> EngineFacts | None:
    """``/v2`` names the server; of the models in its index those that take ``text_input`` can generate."""
    server = await pages.json("/v2")
    if not isinstance(field(server, "extensions"), list):
        return None
    index = {"models": document(await pages.post("/v2/repository/index"))}
    ready = {text(each, "name") for each in objects(index, "models") if field(each, "state") == "READY"}
    generating = []
    for name in sorted(ready - {""}):
        inputs = objects(await pages.json(f"/v2/models/{quote(name)}"), "inputs")
        if any(field(each, "name") == "text_input" for each in inputs):
            generating.append(name)
    return EngineFacts(tuple(generating), version=text(server, "version"))


_WHERE: Final = (  # a model of an ensemble names the place first; both names are those of the model repository
    r"(?:in ensemble '[^']*', )?(?:Failed to process the request\(s\) for model(?: instance)? '[^']*', message: )?"
)
_ERRORS: Final = ErrorDialect(
    # It answers 400 when its own backend process is gone (500 since 2.50), 500 when the client's JSON is wrong
    engine_faults=(
        _WHERE + r"Stub process '[^']*' is not healthy\.?$",
        _WHERE + r"Server is stopping, scheduler for model has stopped accepting new inference requests$",
        r"(?:Server|Model version) (?:is )?not ready$",
        r"Server exiting$",
    ),
    client_faults=("failed to parse the request JSON", "Unable to parse "),
    busy=(_WHERE + r"(?:Exceeds maximum queue size|Request timeout expired)\.?$",),
    context_faults=tuple(
        _WHERE + r"(?:Executor failed process requestId \d+ due to the following error: )?"
        r"(?:Encountered an error (?:in [\w ]+|when fetching new request): )?" + wording
        for wording in CONTEXT_FAULTS
    ),
    model_missing=(
        r"Request for unknown model: '[^']*' (?:version -?\d+ )?(?:is not found|has no available versions)$",
    ),
)

KIND: Final = EngineKind(
    name="triton",
    aliases=("tritonserver",),
    prior="triton",
    protocol="triton",
    health_path="/v2/health/ready",
    unready_statuses=frozenset({400, 503}),
    metrics_port_offset=2,  # 8000 is HTTP, 8001 gRPC, 8002 metrics
    default_port=8000,
    discover=_discover,
    metrics=MetricsPage((b"nv_trt_llm_request_metrics",), _metrics),
    errors=_ERRORS,
    translate=translate,
    scheduler=Scheduler.NO_EVICT,
)
