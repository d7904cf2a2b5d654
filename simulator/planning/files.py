"""The answer as files: a pool.yaml to replay, a router.yaml for the gateway with the engines' start commands.

Must not depend on how the answer was found.
"""

from collections.abc import Sequence
from pathlib import Path
from shlex import join, quote
from typing import Any, Final

import yaml

from router.core.slo_metrics import SLO_METRICS
from simulator.planning.goals import Goals
from simulator.planning.starting import commands, rehearsal, replicas
from simulator.planning.trial import Load
from simulator.planning.variants import CHUNK_TOKENS, CONTEXT_TOKENS_MAX, SEQS_MAX, Mix, Variant

POOL: Final = "pool.yaml"
ROUTER: Final = "router.yaml"
_OTHER_SEED: Final = 1_000


def write(folder: Path, mix: Mix, load: Load, words: str, profile: Path | None = None) -> None:
    """Both files. *words*: the command line that found the answer, for their heading."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"profile": str(profile.resolve())} if profile is not None else {}
    found = f"{mix.label}, ${mix.usd_per_hour:.2f} an hour; found by\n{words}"
    again = f"Under seeds that the search did not play:\n{replayed(load, folder / POOL)}"
    made = {**own, **pool(mix, load.goals, load.models)}
    (folder / POOL).write_text(_comment(f"{found}\n{again}") + _yaml(made), encoding="utf-8")
    started = "\n".join(commands(mix, load.models))
    models = ", ".join(dict.fromkeys(variant.model.name for variant, _ in mix.parts))
    text = (
        f"{found}\nThe gateway: python -m router serve --config {quote(str(folder / ROUTER))}\n"
        f"Each engine is started with (its address in place of 127.0.0.1; $CHECKPOINT: weights of {models}):\n"
        f"{started}\nWithout the cards, emulated:\n" + "\n".join(rehearsal(mix, load.models))
    )
    made = {**own, **router(mix, load.goals, load.models)}
    (folder / ROUTER).write_text(_comment(text) + _yaml(made), encoding="utf-8")


def replayed(load: Load, pool_file: Path) -> str:
    """The command line that plays the same load on a pool, under other seeds than a search does."""
    source = load.source
    words = ["replay", *source.traces, "--pool", str(pool_file), "--policy", load.policy, "--admission", load.admission]
    if source.rate != 1.0:
        words += ["--rate", f"x{source.rate:.9g}"]
    if source.limit is not None:
        words += ["--limit", str(source.limit)]
    if source.skip_bad:
        words += ["--skip-bad"]
    return "python -m simulator " + join([*words, "--seed", str(_OTHER_SEED), "--seeds", "5"])


def pool(mix: Mix, goals: Goals, models: Sequence[str]) -> dict[str, Any]:
    """What ``--pool`` reads."""
    backends = [{"name": variant.name, "count": count, **_backend(variant, models)} for variant, count in mix.parts]
    return {"slo": list(goals.texts), "backends": backends}


def router(mix: Mix, goals: Goals, models: Sequence[str]) -> dict[str, Any]:
    """What the gateway reads: one backend a replica, each at a port of its own."""
    backends = [
        {"name": name, "url": f"http://127.0.0.1:{port}", **_backend(variant, models)}
        for port, name, variant in replicas(mix)
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
        **({"kv_precision": variant.kv_precision} if variant.kv_precision else {}),
        "seqs_max": SEQS_MAX,
        "chunk_tokens": CHUNK_TOKENS,
        "price_per_hour": round(variant.usd_per_hour, 6),
    }


def _yaml(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=118)


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())
