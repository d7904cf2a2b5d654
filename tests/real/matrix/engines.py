"""Every engine of the matrix. Another engine is one more entry of ``ALL``."""

import json
import sys
from pathlib import Path
from secrets import token_hex
from typing import Any

from deploy.local import catalog
from tests.real.matrix.frames import CHAT, COMPLETIONS, GENERATE, MESSAGES
from tests.real.matrix.python_engines import PYTHON_ENGINES
from tests.real.matrix.under_test import MODEL, TOO_LONG, Counters, EngineUnderTest, Refusal
from tests.real.matrix.vllm_engines import VLLM_ENGINES, vllm_counters

ROOT = Path(__file__).resolve().parents[3]
SERVERS = Path(__file__).parent / "servers"

KEY = f"sk-{token_hex(32)}"  # of engines that do not start without one


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


EMULATED = EngineUnderTest(
    name="emulated-vllm",
    parts=(emulated(8201),),
    endpoints=(CHAT, COMPLETIONS),
    backend={"engine": "vllm"},
    counters=vllm_counters(8201),
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
    counters=vllm_counters(8205),
    error_first=Refusal(TOO_LONG),
)
ENVOY_BEHIND = EngineUnderTest(
    name="envoy-behind",
    parts=(emulated(8207), envoy("envoy-behind", 8208, 8207)),
    endpoints=(CHAT,),
    backend={"engine": "vllm"},
    counters=vllm_counters(8207),
    error_first=Refusal(TOO_LONG),
)
ENVOY_BEFORE = EngineUnderTest(
    name="envoy-before",
    parts=(emulated(8209),),
    endpoints=(CHAT,),
    backend={"engine": "vllm"},
    counters=vllm_counters(8209),
    error_first=Refusal(TOO_LONG),
    front=lambda gateway_port: envoy("envoy-before", 8210, gateway_port, "/readyz"),
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
    *PYTHON_ENGINES,
    *VLLM_ENGINES,
)
ABSENT = {
    "SGLang": "its package asks for CUDA builds of PyTorch and kernels, and it has no path for x86 without a GPU",
    "TensorRT-LLM": "its package has engines for NVIDIA GPUs alone; Triton's rows speak its ensemble's protocol",
    "llama-cpp-python": "its package is source alone, and its build takes longer than all rows together",
    "MLC LLM": "it is on no package index",
    "text-generation-inference": "it is a container image and a build in Rust, and on no package index",
}
"""Servers that people run and that cannot run on a machine like this one, with the reason."""
