"""The answer as files: a pool.yaml to replay, a router.yaml for the gateway with the engines' start commands.

Must not depend on how the answer was found.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from router.core.slo_metrics import SLO_METRICS
from simulator.planning.goals import Goals
from simulator.planning.variants import CHUNK_TOKENS, CONTEXT_TOKENS_MAX, SEQS_MAX, Mix, Variant
from simulator.pool import replica_names

POOL: Final = "pool.yaml"
ROUTER: Final = "router.yaml"
_FIRST_PORT: Final = 8_001


def write(folder: Path, mix: Mix, goals: Goals, models: Sequence[str], words: str, profile: Path | None = None) -> None:
    """Both files. *words*: the command line that found the answer, for their heading."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"profile": str(profile.resolve())} if profile is not None else {}
    heading = f"{mix.label}, ${mix.usd_per_hour:.2f} an hour; found by\n{words}"
    (folder / POOL).write_text(_comment(heading) + _yaml({**own, **pool(mix, goals, models)}), encoding="utf-8")
    started = "\n".join(_commands(mix, models))
    text = f"{heading}\nEach engine is started with (put its address in place of 127.0.0.1):\n{started}"
    (folder / ROUTER).write_text(_comment(text) + _yaml({**own, **router(mix, goals, models)}), encoding="utf-8")


def pool(mix: Mix, goals: Goals, models: Sequence[str]) -> dict[str, Any]:
    """What ``--pool`` reads."""
    backends = [{"name": variant.name, "count": count, **_backend(variant, models)} for variant, count in mix.parts]
    return {"slo": list(goals.texts), "backends": backends}


def router(mix: Mix, goals: Goals, models: Sequence[str]) -> dict[str, Any]:
    """What the gateway reads: one backend a replica, each at a port of its own."""
    backends = [
        {"name": name, "url": f"http://127.0.0.1:{port}", **_backend(variant, models)}
        for port, name, variant in _replicas(mix)
    ]
    classes = {
        each.name: {
            **{
                metric.milliseconds: bound_s * 1e3
                for metric, bound_s in zip(SLO_METRICS, each.slo.bounds_s(), strict=True)
                if bound_s < float("inf")
            },
            "quantile": each.slo.quantile,
        }
        for each in goals.classes
    }
    return {"backends": backends, "slo_classes": classes, "default_slo_class": goals.classes[0].name}


def _backend(variant: Variant, models: Sequence[str]) -> dict[str, Any]:
    context = variant.context_tokens_max
    return {
        **({"context_tokens_max": context} if context < CONTEXT_TOKENS_MAX else {}),
        "models": list(models),
        "card": variant.card.name,
        "model": variant.model.name,
        "engine": variant.engine,
        "tp": variant.tp,
        "pp": variant.pp,
        "precision": variant.precision,
        "seqs_max": SEQS_MAX,
        "chunk_tokens": CHUNK_TOKENS,
        "price_per_hour": round(variant.usd_per_hour, 6),
    }


def _replicas(mix: Mix) -> Iterator[tuple[int, str, Variant]]:
    port = _FIRST_PORT
    for variant, count in mix.parts:
        for name in replica_names(variant.name, count):
            yield port, name, variant
            port += 1


def _commands(mix: Mix, models: Sequence[str]) -> Iterator[str]:
    """How vLLM is started as planned; of another engine, what it has to be."""
    for port, name, variant in _replicas(mix):
        if variant.engine == "vllm":
            yield (
                f"  {name}: vllm serve {variant.model.name} --served-model-name {' '.join(models)} --port {port} "
                f"--tensor-parallel-size {variant.tp} --pipeline-parallel-size {variant.pp} "
                f"--max-num-seqs {SEQS_MAX} --max-num-batched-tokens {CHUNK_TOKENS}  # weights in {variant.precision}"
            )
        else:
            yield f"  {name}: {variant.label}, port {port}, {SEQS_MAX} sequences, {CHUNK_TOKENS} tokens a step"


def _yaml(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=118)


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())
