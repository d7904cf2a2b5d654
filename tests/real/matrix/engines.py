"""Every engine of the matrix: how it is started, what it serves, how it is made to fail, what it counts itself.

Another engine is one more entry of ``ALL``.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from deploy.local import catalog
from tests.real.matrix.frames import CHAT, COMPLETIONS, GENERATE, MESSAGES, RESPONSES, Dialect

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
    token, which counts replies of an engine that states no usage. ``front``: a proxy between clients and the gateway,
    whose port it is given.
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
    front: Callable[[int], catalog.Engine] | None = None

    @property
    def port(self) -> int:
        """Where requests go."""
        return self.parts[-1].ports[0]

    def missing(self, home: Path) -> str:
        """What is not installed, as a sentence; empty when the engine can start."""
        front = () if self.front is None else (self.front(0),)
        reasons = [reason for part in (*self.parts, *front) if (reason := part.missing(home))]
        unset = "" if "HEADROOM_ENGINES" in os.environ else "HEADROOM_ENGINES is not set, and "
        return unset + "; ".join(reasons) if reasons else ""

    def config(self, url: str) -> dict[str, Any]:
        """The backend's entry, with requests going to *url*."""
        plain = {"name": self.name, "url": url, "models": {MODEL: self.engine_model}, "card": CARD, "model": SHAPE}
        return {**plain, "seqs_max": 4, **self.backend}


KEY = f"sk-{token_hex(32)}"  # of engines that do not start without one
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


def server(name: str, environment: str, port: int, *more: str, ready_path: str = "/v1/models") -> catalog.Engine:
    """A server of this folder, run by the Python of an environment of its own."""
    return catalog.Engine(
        name=name,
        model="",
        ports=(port,),
        needs=(f"{environment}/bin/python",),
        command=lambda home: [str(home / environment / "bin/python"), str(SERVERS / f"{name}.py"), str(port), *more],
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


def litserve(name: str, port: int, *options: str) -> EngineUnderTest:
    """LitServe counts nothing, and generates on when a client has left."""
    return EngineUnderTest(
        name=name,
        parts=(server("litserve_server", "litserve", port, *options, ready_path="/health"),),
        endpoints=(CHAT,),
        backend={"engine": "openai"},
        error_first=Refusal("__error__", clients_fault=False),
        error_mid="__error_mid__",
        long_tokens=200,
    )


def litellm(port: int) -> catalog.Engine:
    """LiteLLM's proxy, as servers/litellm.yaml has it."""
    return catalog.Engine(
        name="litellm",
        model="",
        ports=(port,),
        needs=("litellm/bin/litellm",),
        command=lambda home: [
            str(home / "litellm/bin/litellm"),
            *("--config", str(SERVERS / "litellm.yaml"), "--host", catalog.HOST, "--port", str(port)),
        ],
        ready_path="/health/liveliness",
        env=lambda _: {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY},
    )


def envoy(name: str, port: int, to: int, ready_path: str = "/health") -> catalog.Engine:
    """Envoy on *port*, in front of what listens on *to* of this machine."""

    def socket_address(number: int) -> dict[str, Any]:
        return {"address": {"socket_address": {"address": catalog.HOST, "port_value": number}}}

    types = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "to", "timeout": "0s"}}
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [router],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    endpoints = [{"lb_endpoints": [{"endpoint": socket_address(to)}]}]
    config = {
        "static_resources": {
            "listeners": [{**socket_address(port), "filter_chains": [{"filters": filters}]}],
            "clusters": [
                {"name": "to", "type": "STATIC", "load_assignment": {"cluster_name": "to", "endpoints": endpoints}}
            ],
        }
    }
    return catalog.Engine(
        name=name,
        model="",
        ports=(port,),
        needs=("envoy/bin/envoy",),
        command=lambda home: [
            str(home / "envoy/bin/envoy"),
            *("--config-yaml", json.dumps(config), "--concurrency", "1", "--log-level", "error"),
            *("--use-dynamic-base-id", "--disable-hot-restart"),
        ],
        ready_path=ready_path,
    )


LITELLM = EngineUnderTest(
    name="litellm",
    parts=(emulated(8205), litellm(8206)),
    endpoints=(CHAT, COMPLETIONS, MESSAGES),
    backend={"engine": "openai", "health_url": f"http://{catalog.HOST}:8206/health/liveliness", "api_key": KEY},
    counters=_vllm_counters(8205),
    error_first=Refusal(TOO_LONG),
)
ENVOY_BEHIND = EngineUnderTest(
    name="envoy-behind",
    parts=(emulated(8207), envoy("envoy-behind", 8208, 8207)),
    endpoints=(CHAT,),
    backend={"engine": "vllm"},
    counters=_vllm_counters(8207),
    error_first=Refusal(TOO_LONG),
)
ENVOY_BEFORE = EngineUnderTest(
    name="envoy-before",
    parts=(emulated(8209),),
    endpoints=(CHAT,),
    backend={"engine": "vllm"},
    counters=_vllm_counters(8209),
    error_first=Refusal(TOO_LONG),
    front=lambda gateway_port: envoy("envoy-before", 8210, gateway_port, "/readyz"),
)


def vllm(name: str, port: int, endpoints: tuple[Dialect, ...], *options: str) -> EngineUnderTest:
    """The small vLLM of ``deploy.local`` with more options, on a port of its own."""
    plain = catalog.ENGINES["vllm-s"]

    def command(home: Path) -> list[str]:
        words = plain.command(home)
        words[words.index("--port") + 1] = str(port)
        return [*words, *options]

    return EngineUnderTest(
        name=name,
        parts=(replace(plain, name=name, ports=(port,), metrics_port=port, command=command),),
        endpoints=endpoints,
        backend={"engine": "vllm", "seqs_max": 16, "kv_tokens_max": 16384},
        counters=_vllm_counters(port),
        error_first=Refusal(TOO_LONG),
    )


def _dynamo(name: str, port: int, module: str, ready_path: str, *options: str) -> catalog.Engine:
    """One process of Dynamo; workers and frontend find each other through a folder."""
    return catalog.Engine(
        name=name,
        model="tiny-s",
        ports=(port,),
        needs=("dynamo/bin/python", "models/tiny-s/config.json"),
        command=lambda home: [
            *(str(home / "dynamo/bin/python"), "-m", module),
            *(option.format(models=home / "models") for option in options),
        ],
        ready_path=ready_path,
        env=lambda home: {
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(home / "logs/dynamo-kv"),
            "DYN_TCP_RPC_HOST": catalog.HOST,
            "DYN_SYSTEM_PORT": str(DYNAMO_PORTS[0]) if module.endswith("mocker") else "-1",
            "HF_HUB_OFFLINE": "1",
        },
    )


DYNAMO_PORTS = 8231, 8232
MOCKER = "--model-path {models}/tiny-s --model-name tiny --max-num-seqs 8 --num-gpu-blocks-override 512 --block-size 16"
FRONTEND = f"--http-host {catalog.HOST} --http-port {DYNAMO_PORTS[1]} --router-mode round-robin"
DYNAMO = EngineUnderTest(
    name="dynamo-mocker",
    parts=(
        _dynamo("dynamo-mocker", DYNAMO_PORTS[0], "dynamo.mocker", "/metrics", *MOCKER.split()),
        _dynamo("dynamo-frontend", DYNAMO_PORTS[1], "dynamo.frontend", "/v1/models", *FRONTEND.split()),
    ),
    endpoints=(CHAT, COMPLETIONS),
    backend={"engine": "vllm", "metrics_url": f"http://{catalog.HOST}:{DYNAMO_PORTS[0]}/metrics"},
    counters=Counters(f"http://{catalog.HOST}:{DYNAMO_PORTS[0]}/metrics", running="vllm:num_requests_running"),
)
ALL = (
    EMULATED,
    SSE_STARLETTE,
    LLAMACPP,
    TRITON,
    litserve("litserve", 8203, "usage"),
    litserve("litserve-no-usage", 8204),
    LITELLM,
    ENVOY_BEHIND,
    ENVOY_BEFORE,
    DYNAMO,
    vllm("vllm", 8221, (CHAT, COMPLETIONS, MESSAGES, RESPONSES)),
    vllm("vllm-stream-interval-10", 8222, (CHAT,), "--stream-interval", "10"),
)
