"""Every engine of the matrix: how it is started, what it serves, how it is made to fail, what it counts itself.

Another engine is one more entry of ``ALL``.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local import catalog
from tests.real.matrix.frames import CHAT, COMPLETIONS, GENERATE, MESSAGES, Dialect

ROOT = Path(__file__).resolve().parents[3]
SERVERS = Path(__file__).parent / "servers"
MODEL = "tiny"
CARD = {"memory_gib": 4, "bandwidth_gb_per_s": 20, "tflops": {"bf16": 0.3}}
SHAPE = {"params_billions": 0.007, "layers": 4, "hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64}


@dataclass(frozen=True, slots=True)
class Counters:
    """Where an engine counts itself, as Prometheus text. ``generated``: tokens of its replies in total; ``running``:
    requests at this moment, with these labels. An empty name: it has no such counter.
    """

    url: str
    generated: str = ""
    running: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the engine does not serve. ``prompt``: what provokes it; ``clients_fault``: the answer is about
    the request itself, so that the client gets it with the engine's own status.
    """

    prompt: str
    clients_fault: bool = True


@dataclass(frozen=True, slots=True)
class EngineUnderTest:
    """One engine of the matrix.

    ``parts``: what is started, in this order; requests go to the last. ``backend``: its entry in the gateway's config,
    beside name, url and models. ``engine_model``: its own name for the model. ``error_first``: None where nothing makes
    it refuse. ``error_mid``: a prompt that makes it fail in the middle of a reply; empty: the connection is cut there.
    ``long_tokens``: enough that a client can leave before the end. ``frame_is_token``: each frame with text is one
    token, which counts replies of an engine that states no usage.
    """

    name: str
    parts: tuple[catalog.Engine, ...]
    endpoints: tuple[Dialect, ...]
    backend: Mapping[str, Any] = field(default_factory=dict)
    engine_model: str = MODEL
    counters: Counters | None = None
    error_first: Refusal | None = None
    error_mid: str = ""
    long_tokens: int = 1_500
    frame_is_token: bool = False

    @property
    def port(self) -> int:
        """Where requests go."""
        return self.parts[-1].ports[0]

    def missing(self, home: Path) -> str:
        """What is not installed, as a sentence; empty when the engine can start."""
        reasons = [reason for part in self.parts if (reason := part.missing(home))]
        unset = "" if "HEADROOM_ENGINES" in os.environ else "HEADROOM_ENGINES is not set, and "
        return unset + "; ".join(reasons) if reasons else ""

    def config(self, url: str) -> dict[str, Any]:
        """The backend's entry, with requests going to *url*."""
        plain = {"name": self.name, "url": url, "models": {MODEL: self.engine_model}, "card": CARD, "model": SHAPE}
        return {**plain, "seqs_max": 4, **self.backend}


TOO_LONG = "word " * 20_000


def emulated(port: int, *options: str) -> catalog.Engine:
    """The emulated vLLM of this repository, a process of its own."""
    command = [sys.executable, "-m", "simulator", "serve", "--card", "h100", "--port", str(port)]
    return catalog.Engine(
        name="emulated-vllm",
        model="",
        ports=(port,),
        needs=(),
        command=lambda _: [*command, "--model-name", MODEL, "--max-model-len", "4096", *options],
        metrics_port=port,
        env=lambda _: {"PYTHONPATH": str(ROOT)},
    )


def server(name: str, environment: str, port: int, ready_path: str = "/v1/models") -> catalog.Engine:
    """A server of this folder, run by the Python of an environment of its own."""
    return catalog.Engine(
        name=name,
        model="",
        ports=(port,),
        needs=(f"{environment}/bin/python",),
        command=lambda home: [str(home / environment / "bin/python"), str(SERVERS / f"{name}.py"), str(port)],
        ready_path=ready_path,
    )


def _vllm_counters(port: int) -> Counters:
    return Counters(
        f"http://{catalog.HOST}:{port}/metrics", "vllm:generation_tokens_total", "vllm:num_requests_running"
    )


EMULATED = EngineUnderTest(
    name="emulated-vllm",
    parts=(emulated(8201),),
    endpoints=(CHAT, COMPLETIONS),
    backend={"engine": "vllm"},
    counters=_vllm_counters(8201),
    error_first=Refusal(TOO_LONG),
)
SSE_STARLETTE = EngineUnderTest(
    name="sse-starlette",
    parts=(server("sse_starlette_server", "sse", 8202),),
    endpoints=(CHAT,),
    backend={"engine": "openai"},
    counters=Counters(f"http://{catalog.HOST}:8202/counters", "served_tokens_total", "served_requests_running"),
    error_first=Refusal("__error__", clients_fault=False),
    error_mid="__error_mid__",
)
LLAMACPP = EngineUnderTest(
    name="llamacpp",
    parts=(catalog.ENGINES["llamacpp"],),
    endpoints=(CHAT, COMPLETIONS, MESSAGES),
    backend={"engine": "llamacpp", "kv_tokens_max": 8192},
    counters=Counters(
        catalog.ENGINES["llamacpp"].metrics_url, "llamacpp:tokens_predicted_total", "llamacpp:requests_processing"
    ),
    error_first=Refusal(TOO_LONG),
)
TRITON = EngineUnderTest(
    name="triton",
    parts=(catalog.ENGINES["triton"],),
    endpoints=(CHAT, COMPLETIONS, GENERATE),
    backend={"protocol": "triton", "metrics_url": catalog.ENGINES["triton"].metrics_url},
    engine_model="ensemble",
    counters=Counters(
        catalog.ENGINES["triton"].metrics_url,
        running="nv_trt_llm_request_metrics",
        labels={"request_type": "active"},
    ),
    error_first=Refusal("__error__", clients_fault=False),
    error_mid="__error_mid__",
    frame_is_token=True,
)
ALL = (EMULATED, SSE_STARLETTE, LLAMACPP, TRITON)
