"""A text generator without weights for Triton's python backend: real server, real wire, made-up words.

It batches as TensorRT-LLM does: in iterations, with `slots` sequences at once and the rest waiting, one word a sequence
and step. It reports itself under TensorRT-LLM's metric names. A prompt that contains one of these words breaks it:

    __error__      refused before the first word        __hang__    silent after three words
    __error_mid__  an error after three words           __crash__   the model's process dies after three words
"""

import json
import os
import random
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

WORDS = (
    "a",
    "river",
    "keeps",
    "its",
    "own",
    "time",
    "and",
    "stones",
    "learn",
    "every",
    "song",
    "that",
    "rain",
    "brought",
)
FAULT_AFTER_WORDS = 3
KV_BLOCKS = 1000
TOKENS_PER_BLOCK = 64
FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@dataclass(eq=False)
class Sequence:
    """One request: its parameters, its progress, where its words go."""

    prompt: str
    max_words: int
    stream: bool
    seed: int
    sender: Any
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.prompt_words = len(self.prompt.split())

    @property
    def blocks(self) -> int:
        """KV blocks that its prompt and words would hold."""
        return (self.prompt_words + len(self.words)) // TOKENS_PER_BLOCK + 1

    def faulty(self, fault: str) -> bool:
        """Whether *fault* is due now."""
        return fault in self.prompt and len(self.words) == FAULT_AFTER_WORDS

    def step(self) -> bool:
        """One iteration: say a word, or fail as the prompt wishes; True when the sequence has ended."""
        if self.sender.is_cancelled():
            return self.fail("request cancelled", triton.TritonError.CANCELLED)
        if self.faulty("__error_mid__"):
            return self.fail("made to fail in the middle", triton.TritonError.INTERNAL)
        if self.faulty("__crash__"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.faulty("__hang__"):
            return False
        return self.say(self.chance.choice(WORDS))

    def say(self, word: str) -> bool:
        """Send one more word, or all of them with the last one when the client does not stream."""
        self.words.append(f" {word}" if self.words else word)
        ended = len(self.words) >= self.max_words
        if self.stream or ended:
            text = self.words[-1] if self.stream else "".join(self.words)
            self.sender.send(response(text, len(self.words)), flags=FINAL if ended else 0)
        return ended

    def fail(self, message: str, code: int) -> bool:
        """Send an error and end."""
        self.sender.send(triton.InferenceResponse(error=triton.TritonError(message, code)), flags=FINAL)
        return True


class Gauges:
    """One family of gauges, distinguished by the label *kind_label*, as TensorRT-LLM's backend shows them."""

    def __init__(self, name: str, kind_label: str, labels: dict[str, str]) -> None:
        self.family = triton.MetricFamily(name=name, description=name, kind=triton.MetricFamily.GAUGE)
        self.kind_label, self.labels = kind_label, labels
        self.gauges: dict[str, Any] = {}

    def set(self, **values: float) -> None:
        """Show *values*, by kind."""
        for kind, value in values.items():
            if kind not in self.gauges:
                self.gauges[kind] = self.family.Metric(labels={**self.labels, self.kind_label: kind})
            self.gauges[kind].set(value)


def response(text: str, length: int) -> Any:
    """A response with the ensemble's four outputs."""
    tensors = {
        "text_output": np.array([text.encode()], dtype=object),
        "cum_log_probs": np.zeros(1, np.float32),
        "output_log_probs": np.zeros(1, np.float32),
        "sequence_length": np.array([length], np.int32),
    }
    return triton.InferenceResponse([triton.Tensor(name, values) for name, values in tensors.items()])


def given(request: Any, name: str, default: Any) -> Any:
    """The first value of the input *name*, or *default* when it was not sent."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1)[0]


def sequence_of(request: Any) -> Sequence:
    """The sequence of *request*."""
    return Sequence(
        prompt=given(request, "text_input", b"").decode(),
        max_words=int(given(request, "max_tokens", 16)),
        stream=bool(given(request, "stream", False)),
        seed=int(given(request, "random_seed", 0)),
        sender=request.get_response_sender(),
    )


class TritonPythonModel:
    """What Triton calls: `initialize`, then `execute` for each batch, then `finalize`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters and start the thread that steps."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.slots = int(parameters["slots"]["string_value"])
        self.step_s = float(parameters["step_ms"]["string_value"]) / 1e3
        self.prefill_s_per_word = float(parameters["prefill_ms_per_1k"]["string_value"]) / 1e6
        self.waiting: deque[Sequence] = deque()
        self.scheduled: list[Sequence] = []
        self.changed = threading.Condition()
        self.stopping = False
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.requests = Gauges("nv_trt_llm_request_metrics", "request_type", labels)
        self.blocks = Gauges("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", labels)
        self.set_gauges()
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def set_gauges(self) -> None:
        """Show the queue as it is now."""
        used = sum(each.blocks for each in self.scheduled)
        running, waiting = len(self.scheduled), len(self.waiting)
        context = sum(not each.words for each in self.scheduled)
        self.requests.set(active=running + waiting, max=self.slots, scheduled=running, context=context, waiting=waiting)
        fraction = used / KV_BLOCKS
        self.blocks.set(max=KV_BLOCKS, free=KV_BLOCKS - used, used=used, tokens_per=TOKENS_PER_BLOCK, fraction=fraction)

    def execute(self, requests: list[Any]) -> None:
        """Queue *requests*; their words come from the stepping thread."""
        for sequence in map(sequence_of, requests):
            if "__error__" in sequence.prompt:
                sequence.fail("made to fail at once", triton.TritonError.INVALID_ARG)
                continue
            with self.changed:
                self.waiting.append(sequence)
                self.changed.notify()

    def loop(self) -> None:
        """Step while there is work; sleep until there is some."""
        while not self.stopping:
            with self.changed:
                while not (self.stopping or self.waiting or self.scheduled):
                    self.changed.wait()
                joined = self.admit()
                self.set_gauges()
            time.sleep(self.step_s + self.prefill_s_per_word * sum(each.prompt_words for each in joined))
            self.scheduled = [sequence for sequence in self.scheduled if not sequence.step()]
            self.set_gauges()

    def admit(self) -> list[Sequence]:
        """Move waiting sequences to free slots; those moved."""
        joined = [self.waiting.popleft() for _ in range(min(self.slots - len(self.scheduled), len(self.waiting)))]
        self.scheduled += joined
        return joined

    def finalize(self) -> None:
        """End the stepping thread."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        self.thread.join()
