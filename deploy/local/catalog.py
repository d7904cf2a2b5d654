"""Which engines there are: how each is started, where it answers, what must be installed.

Standard library only, Linux only. This file starts nothing and does not depend on the router.
"""

import contextlib
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"


class EngineError(Exception):
    """An engine that cannot be installed or started; the message says which and what to do."""


def _no_env(home: Path) -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine.

    `command` and `env` take the installation folder; `needs` are the paths below it (or programs on PATH) that must
    exist. Requests go to the first of `ports`. `serving_root` says that the first process only serves and its children
    compute, so that the two can run on different cores.
    """

    name: str
    model: str
    ports: tuple[int, ...]
    needs: tuple[str, ...]
    command: Callable[[Path], list[str]]
    ready_path: str = "/health"  # empty: not HTTP but Redis
    metrics_port: int = 0  # 0: none
    env: Callable[[Path], dict[str, str]] = _no_env
    serving_root: bool = False

    @property
    def url(self) -> str:
        """Where requests go: `http://host:port`, or `redis://host:port`."""
        return f"{'http' if self.ready_path else 'redis'}://{HOST}:{self.ports[0]}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus text is served; empty for Redis."""
        return f"http://{HOST}:{self.metrics_port}/metrics" if self.metrics_port else ""

    def missing(self, home: Path) -> str:
        """What is not installed, as a sentence; empty when the engine can start."""
        absent = [need for need in self.needs if not (home / need).exists() and not shutil.which(need)]
        return f"{self.name} is not installed: no {', no '.join(absent)} in {home} or on PATH" if absent else ""


VLLM_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # else the first request for logprobs stalls the engine while a kernel is compiled
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def dtype(cpuinfo: str = "/proc/cpuinfo") -> str:
    """What this machine's cores multiply fastest: bfloat16 where they have instructions for it, without which a prompt
    takes three times as long as in float32.
    """
    with contextlib.suppress(OSError):
        flags = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
        return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"
    return "bfloat16"


def _vllm(name: str, port: int, model: str, options: str) -> Engine:
    def command(home: Path) -> list[str]:
        server = [str(home / "vllm/bin/python"), "-m", "vllm.entrypoints.openai.api_server"]
        where = ["--host", HOST, "--port", str(port), "--model", str(home / "models" / model)]
        what = ["--served-model-name", "tiny", "--dtype", dtype(), "--enforce-eager", "--max-model-len", "2048"]
        return [*server, *where, *what, *options.split()]

    return Engine(
        name=name,
        model=model,
        ports=(port,),
        needs=("vllm/bin/python", f"models/{model}/config.json"),
        command=command,
        metrics_port=port,
        env=lambda home: VLLM_ENV,
        serving_root=True,
    )


def site_packages(environment: Path) -> Path:
    """Where *environment*, made by this Python, keeps its packages."""
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def triton_server(home: Path) -> Path:
    """The folder with `bin/tritonserver` and its backends: nvidia-pytriton ships the whole server."""
    return site_packages(home / "triton") / "pytriton/tritonserver"


def _triton_command(home: Path) -> list[str]:
    server = triton_server(home)
    ports = {"http": 8100, "grpc": 8101, "metrics": 8102}
    listen = [
        option for kind, port in ports.items() for option in (f"--{kind}-address={HOST}", f"--{kind}-port={port}")
    ]
    models = [f"--model-repository={HERE / 'triton_models'}", f"--backend-directory={server / 'backends'}"]
    rest = ["--allow-gpu-metrics=false", "--disable-auto-complete-config", "--exit-timeout-secs=3"]
    return [str(server / "bin/tritonserver"), *models, *listen, *rest]


def _triton_env(home: Path) -> dict[str, str]:
    """The python backend's stub links libpython, looks for its Python on PATH and imports numpy: say where they are."""
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return {
        "LD_LIBRARY_PATH": libraries,
        "PATH": f"{home / 'triton/bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(site_packages(home / "triton")),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _llamacpp_command(home: Path) -> list[str]:
    return [
        str(home / "llamacpp/bin/python"),
        str(HERE / "llamacpp_server.py"),
        str(home / "models/tiny-s.gguf"),
        "8003",
    ]


def _redis_command(home: Path) -> list[str]:
    return ["redis-server", "--bind", HOST, "--port", "6390", "--save", "", "--appendonly", "no"]


ALL = (
    # Unequal on purpose: tiny-l takes about five times as long a token and runs four sequences to tiny-s's sixteen.
    # Few KV blocks (512 of 32 tokens, 64 of 128), so that pressure on the cache can be seen.
    _vllm("vllm-s", 8001, "tiny-s", "--max-num-seqs 16 --block-size 32 --num-gpu-blocks-override 512"),
    _vllm("vllm-l", 8002, "tiny-l", "--max-num-seqs 4 --num-gpu-blocks-override 64 --max-num-queued-reqs 32"),
    Engine(
        name="triton",
        model="ensemble",
        ports=(8100, 8101, 8102),
        needs=("triton/bin/python",),
        command=_triton_command,
        ready_path="/v2/health/ready",
        metrics_port=8102,
        env=_triton_env,
    ),
    Engine(
        name="llamacpp",
        model="tiny-s.gguf",
        ports=(8003,),
        needs=("llamacpp/bin/python", "models/tiny-s.gguf"),
        command=_llamacpp_command,
        metrics_port=8003,
    ),
    Engine(
        name="redis",
        model="",
        ports=(6390,),
        needs=("redis-server",),
        command=_redis_command,
        ready_path="",
        serving_root=True,
    ),
)
ENGINES = {engine.name: engine for engine in ALL}
GROUPS = {"vllm": ("vllm-s", "vllm-l")}


def home_folder() -> Path:
    """The folder named by HEADROOM_ENGINES.

    Raises EngineError when the variable is not set.
    """
    if not (named := os.environ.get("HEADROOM_ENGINES")):
        raise EngineError("HEADROOM_ENGINES is not set: name a folder outside the repository for engines and models")
    return Path(named).expanduser().resolve()


def expand(names: Sequence[str]) -> list[str]:
    """Engine names with groups written out; none named means all.

    Raises EngineError for a name that is neither.
    """
    wanted = [each for name in names or ENGINES for each in GROUPS.get(name, (name,))]
    if unknown := [name for name in wanted if name not in ENGINES]:
        raise EngineError(f"no engine {unknown[0]!r}; there are {', '.join([*GROUPS, *ENGINES])}")
    return list(dict.fromkeys(wanted))
