"""vLLM as people run it: several tokens a frame, speculation, reasoning, adapters, two API servers; with every seat
taken, and with a worker killed.
"""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.local import catalog
from tests.real.matrix.frames import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Dialect
from tests.real.matrix.under_test import MODEL, TOO_LONG, Counters, Crowd, EngineUnderTest, Refusal

ALL_ENDPOINTS = CHAT, COMPLETIONS, MESSAGES, RESPONSES
SERVERS = Path(__file__).parent / "servers"
NGRAM = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}'
ADAPTERS = "adapter-a", "adapter-b"
THINKING = "models/tiny-s-thinking"


def vllm_counters(port: int) -> Counters:
    """vLLM's own, of a server on *port*."""
    return Counters(
        f"http://{catalog.HOST}:{port}/metrics",
        "vllm:generation_tokens_total",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
    )


def _server(name: str, port: int, *options: str) -> catalog.Engine:
    """The small vLLM of ``deploy.local`` with more options, on a port of its own."""
    plain = catalog.ENGINES["vllm-s"]

    def command(home: Path) -> list[str]:
        words = plain.command(home)
        words[words.index("--port") + 1] = str(port)
        for option in (each for each in options if each in words):  # vLLM warns of what is given twice
            del words[words.index(option) : words.index(option) + 2]
        return [*words, *options]

    return replace(plain, name=name, ports=(port,), metrics_port=port, command=command)


def _two_api_servers(name: str, port: int) -> catalog.Engine:
    """The same by `vllm serve`, which alone starts more than one API server."""
    plain = _server(name, port)

    def command(home: Path) -> list[str]:
        words = plain.command(home)
        at = words.index("--model")
        rest = [*words[3:at], *words[at + 2 :]]
        return [words[0], "-m", "vllm.entrypoints.cli.main", "serve", words[at + 1], *rest, "--api-server-count", "2"]

    return replace(plain, command=command)


def _reasoning(name: str, port: int) -> catalog.Engine:
    """A model whose vocabulary has the words of the parser."""
    plain = _server(name, port, "--reasoning-parser", "deepseek_r1")

    def command(home: Path) -> list[str]:
        words = plain.command(home)
        words[words.index("--model") + 1] = str(home / THINKING)
        return words

    return replace(plain, command=command)


def _make_thinking(home: Path) -> None:
    """The small model with two more tokens, unless it is there."""
    if not (home / THINKING / "config.json").exists():
        maker = [str(home / "model-maker/bin/python"), str(SERVERS / "tiny_thinking.py")]
        subprocess.run([*maker, str(home / "models/tiny-s"), str(home / THINKING)], check=True)


def vllm(name: str, part: catalog.Engine, endpoints: tuple[Dialect, ...] = (CHAT,), **more: Any) -> EngineUnderTest:
    """One row, or one an endpoint."""
    given: dict[str, Any] = {
        "backend": {"engine": "vllm", "seqs_max": 16, "kv_tokens_max": 16384},
        "counters": vllm_counters(part.ports[0]),
        "error_first": Refusal(TOO_LONG),
    }
    return EngineUnderTest(name=name, parts=(part,), endpoints=endpoints, **(given | more))


def adapter_folder(name: str) -> str:
    """Where an adapter's files are, below the installation."""
    return f"models/tiny-s-{name}"


def _make_adapters(home: Path) -> None:
    """Two LoRA adapters of the small model, unless they are there."""
    for seed, name in enumerate(ADAPTERS):
        folder = home / adapter_folder(name)
        if not (folder / "adapter_config.json").exists():
            maker = [str(home / "model-maker/bin/python"), str(SERVERS / "tiny_lora.py")]
            subprocess.run([*maker, str(home / "models/tiny-s"), str(folder), str(seed)], check=True)


def _with_adapters(port: int) -> catalog.Engine:
    """Places for two adapters, of which it starts with one; others are loaded while it runs."""
    plain = _server("vllm-lora", port, "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8")

    def command(home: Path) -> list[str]:
        return [*plain.command(home), "--lora-modules", f"{ADAPTERS[0]}={home / adapter_folder(ADAPTERS[0])}"]

    def env(home: Path) -> dict[str, str]:
        return {**plain.env(home), "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}

    return replace(plain, command=command, env=env)


def _lora(name: str, adapter: str, *, loaded: bool) -> EngineUnderTest:
    """The rows share one engine. The gateway's config has the base model alone: the adapter is found."""
    return vllm(
        name,
        _LORA,
        prepare=_make_adapters,
        backend={"engine": "vllm", "seqs_max": 16, "kv_tokens_max": 16384, "models": {MODEL: MODEL}},
        model=adapter,
        engine_model=adapter,
        adapter="" if loaded else adapter_folder(adapter),
    )


_PLAIN = _server("vllm", 8221)
_LORA = _with_adapters(8226)
_FULL = "--max-num-seqs", "2", "--max-num-queued-reqs", "4"  # the second counts those that run too
VLLM_ENGINES = (
    vllm("vllm", _PLAIN, ALL_ENDPOINTS),
    vllm("vllm-worker-killed", _PLAIN, ALL_ENDPOINTS, kills="Worker", columns=("error mid-stream",)),
    vllm("vllm-stream-interval-10", _server("vllm-stream-interval-10", 8222, "--stream-interval", "10")),
    vllm(
        "vllm-ngram",
        _server("vllm-ngram", 8223, "--speculative-config", NGRAM),
        (CHAT, COMPLETIONS),
        asked={"temperature": 0},  # a tiny model repeats itself then, so that what is guessed is accepted
    ),
    vllm(
        "vllm-reasoning-parser",
        _reasoning("vllm-reasoning-parser", 8224),
        (CHAT, RESPONSES),
        prepare=_make_thinking,
    ),
    vllm("vllm-2-api-servers", _two_api_servers("vllm-2-api-servers", 8225)),
    _lora("vllm-lora", ADAPTERS[0], loaded=True),
    _lora("vllm-lora-loaded-at-runtime", ADAPTERS[1], loaded=False),
    vllm(
        "vllm-every-seat-taken",
        _server("vllm-every-seat-taken", 8227, *_FULL),
        ALL_ENDPOINTS,
        backend={"engine": "vllm", "seqs_max": 2, "kv_tokens_max": 16384},
        counters=replace(vllm_counters(8227), generated=""),  # others' tokens too
        error_first=Refusal(clients_fault=False),
        crowd=Crowd(seats=2, queue=2),
    ),
)
