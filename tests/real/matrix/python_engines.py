"""Servers in plain Python: `transformers serve` and FastChat, on the small model of ``deploy.local``."""

from dataclasses import replace
from typing import Any

from deploy.local import catalog
from tests.real.matrix.frames import CHAT, COMPLETIONS, RESPONSES
from tests.real.matrix.under_test import TOO_LONG, EngineUnderTest, Refusal

SMALL = "models/tiny-s"
ENV = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
CONTROLLER_PORT, WORKER_PORT, API_PORT = 8251, 8252, 8253


def _server(name: str, port: int, environment: str, ready_path: str, *words: str) -> catalog.Engine:
    """A program of an environment; ``{home}`` in its words is the installation."""
    return catalog.Engine(
        name=name,
        model="tiny-s",
        ports=(port,),
        needs=(f"{environment}/.installed", f"{SMALL}/config.json"),
        command=lambda home: [word.format(home=home) for word in words],
        ready_path=ready_path,
        env=lambda _: ENV,
    )


def _finished(data: Any) -> bool:
    choices = data.get("choices") if isinstance(data, dict) else None
    return bool(choices) and bool(choices[0].get("finish_reason"))


_OPTIONS = "--device cpu --dtype float32 --host 127.0.0.1 --port 8241"
TRANSFORMERS = EngineUnderTest(
    name="transformers-serve",
    parts=(
        _server(
            *("transformers-serve", 8241, "transformers", "/health"),
            *("{home}/transformers/bin/transformers", "serve", f"../{SMALL}", *_OPTIONS.split()),
        ),
    ),
    # its streams end with finish reason and usage in one event, and no [DONE]
    endpoints=(replace(CHAT, ends=_finished), replace(COMPLETIONS, ends=_finished), RESPONSES),
    backend={"engine": "openai"},
    engine_model=f"../{SMALL}",
    lacks=("ignore_eos",),  # it refuses fields that it does not have
    error_first=Refusal(clients_fault=False, asked={"temperature": -1}),  # found when the stream has begun
)


def _fastchat(name: str, port: int, ready_path: str, *words: str) -> catalog.Engine:
    command = "{home}/fastchat/bin/python", "-m", f"fastchat.serve.{name}", "--host", "127.0.0.1", "--port", str(port)
    return _server(f"fastchat-{name}", port, "fastchat", ready_path, *command, *words)


_CONTROLLER = f"http://127.0.0.1:{CONTROLLER_PORT}"
_MODEL = "--model-path", f"{{home}}/{SMALL}", "--model-names", "tiny", "--device", "cpu"
FASTCHAT = EngineUnderTest(
    name="fastchat",
    parts=(
        _fastchat("controller", CONTROLLER_PORT, "/docs"),
        _fastchat(
            *("model_worker", WORKER_PORT, "/docs", *_MODEL),
            *("--worker-address", f"http://127.0.0.1:{WORKER_PORT}", "--controller-address", _CONTROLLER),
        ),
        _fastchat("openai_api_server", API_PORT, "/v1/models", "--controller-address", _CONTROLLER),
    ),
    endpoints=(CHAT, COMPLETIONS),
    backend={"engine": "openai"},
    error_first=Refusal(TOO_LONG),
    kills="fastchat.serve.model_worker",
)
PYTHON_ENGINES = TRANSFORMERS, FASTCHAT
