"""Whether new decisions may serve: asked of the simulator, in a process of its own, before anything here is touched.

Believes: what the other process answers, and that silence within the bound is a no. Must not know the simulator: a
question and a verdict in JSON are all that passes (``python -m simulator validate`` says what they hold).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal

from router import signals
from router.gateway.config.plan import Plan
from router.gateway.config.policy_spec import PolicySpec, key
from router.search_path import environment, module_command

_COMMAND: Final = module_command("simulator.background", "validate")
_SAID_MAX: Final = 600
_ASIDE_S: Final = 5.0  # for so long it takes only what nobody wants
_NICE: Final = 10

Result = Literal["passed", "refused", "unneeded"]


@dataclass(frozen=True, slots=True)
class Validation:
    """The verdict on one config. ``replays``: by workload, requests, attainment of both policies and the drop;
    ``decision_s``: seconds a decision took (mean, p99, max).
    """

    result: Result
    why: str = ""
    replays: tuple[Mapping[str, Any], ...] = ()
    decision_s: Mapping[str, float] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the config may serve."""
        return self.result != "refused"


UNNEEDED: Final = Validation("unneeded", "decisions are as they were")


def validate(new: Plan, running: Plan | None, trace: Path | None = None) -> Validation:
    """Ask for everything in *new* that would decide and does not yet: the serving policies, then a canary.

    *trace* is replayed instead of what the config names. Blocks, up to ``reload.proof.seconds_max`` for each.
    """
    proofs = [UNNEEDED]
    if is_new(new, running, asked=trace is not None):
        proofs.append(_asked(new, _question(new, _decisions(new, "routing"), running, trace)))
    if "canary" in new.chosen and _changed(new, running, "canary") and proofs[-1].ok:
        serving = _decisions(new, "routing")
        proofs.append(_asked(new, _question(new, _decisions(new, "canary"), running, trace) | {"current": serving}))
    return _joined([proof for proof in proofs if proof is not UNNEEDED])


def is_new(new: Plan, running: Plan | None, *, asked: bool = False) -> bool:
    """Whether *new* decides otherwise than *running*. At the start only code that nobody has seen needs a proof, unless
    one is asked for.
    """
    if running is None:
        return asked or any(each.source is not None for each in new.chosen.values())
    changed = any(_changed(new, running, role) for role in ("routing", "admission", "shadow"))
    return changed or new.limits != running.limits


def _changed(new: Plan, running: Plan | None, role: str) -> bool:
    then = running.chosen.get(role) if running is not None else None
    now = new.chosen.get(role)
    return now is not None and (then is None or key(now.plain()) != key(then.plain()))


def _decisions(plan: Plan, role: str) -> dict[str, Any]:
    limits = {name: value for name, value in asdict(plan.limits).items() if isfinite(value)}
    return {
        "routing": plan.chosen[role].plain(),
        "admission": plan.chosen["admission"].plain(),
        "limits": limits,
    }


def _question(new: Plan, candidate: Mapping[str, Any], running: Plan | None, trace: Path | None) -> dict[str, Any]:
    how, record = new.settings.reload.proof, new.settings.record
    replayed = trace or how.trace or (record.file if record and record.file.exists() else None)
    shadow = new.chosen.get("shadow")
    classes = [{"name": name, "slo": _finite(asdict(each.slo))} for name, each in new.ingress.classes.items()]
    return {
        "candidate": candidate,
        "current": _decisions(running, "routing") if running else None,
        "others": [shadow.plain()] if shadow else [],
        "backends": [asdict(backend) for backend in new.backends],
        "classes": classes,
        "trace": str(replayed) if replayed else "",
        "generate": _has_source(new.chosen.values()),
        "replay": how.enabled,
        "budget_s": new.settings.policy.guard.budget_ms / 1e3,
        **{name: getattr(how, name) for name in ("last_s", "requests_min", "requests_max", "attainment_drop_max")},
    }


def _finite(plain: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in plain.items() if isfinite(value)}


def _has_source(chosen: Iterable[PolicySpec]) -> bool:
    return any(each.source is not None for each in chosen)


def _asked(new: Plan, question: Mapping[str, Any]) -> Validation:
    """One question, answered within its time."""
    if not question["replay"] and not _has_source(new.chosen.values()):
        return UNNEEDED
    limit_s = new.settings.reload.proof.seconds_max
    try:
        done = _ran(json.dumps(question), limit_s)
    except OSError as problem:
        return Validation("refused", f"the proof could not be started: {problem}")
    except subprocess.TimeoutExpired:
        return Validation("refused", f"the proof did not end within {limit_s:g} s", took_s=limit_s)
    try:
        verdict = json.loads(done.stdout)
    except json.JSONDecodeError:
        return Validation(
            "refused", f"the proof died (exit status {done.returncode}): {done.stderr.strip()[-_SAID_MAX:]}"
        )
    result: Result = "passed" if verdict.pop("passed") else "refused"
    return Validation(result, **verdict | {"replays": tuple(verdict["replays"])})


def _ran(question: str, limit_s: float) -> subprocess.CompletedProcess[str]:
    """The other process, over within *limit_s*. It has what processor time traffic leaves, and, should that be too
    little for some seconds, a small share of its own.
    """
    with signals.child(_started) as process, process:
        try:
            said = _communicated(process, question, limit_s)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(_COMMAND, process.returncode, *said)


def _started() -> "subprocess.Popen[str]":
    pipe, alone = subprocess.PIPE, environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    return subprocess.Popen(_COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=alone)


def _communicated(process: "subprocess.Popen[str]", question: str, limit_s: float) -> tuple[str, str]:
    try:
        return process.communicate(question, timeout=min(_ASIDE_S, limit_s))
    except subprocess.TimeoutExpired:
        if sys.platform == "linux":
            with suppress(PermissionError, ProcessLookupError):  # needs a privilege where it is not our own to give
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
                os.sched_setscheduler(process.pid, os.SCHED_OTHER, os.sched_param(0))
        return process.communicate(timeout=max(0.0, limit_s - _ASIDE_S))


def _joined(proofs: list[Validation]) -> Validation:
    if not proofs:
        return UNNEEDED
    return Validation(
        proofs[-1].result,
        proofs[-1].why,
        tuple(replay for proof in proofs for replay in proof.replays),
        proofs[-1].decision_s,
        sum(proof.took_s for proof in proofs),
    )
