"""Validates a config's policies before they serve, in a process of its own (``python -m simulator validate``).

The simulator is not imported: a question, progress and a verdict in JSON are exchanged with the process. No verdict
within the time limit counts as a refusal.
"""

import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal

from router import stop_signals
from router.gateway.config.plan import Plan
from router.gateway.config.policy_spec import PolicySpec, key
from router.gateway.rollout.priority import communicate
from router.search_path import environment, module_command

_COMMAND: Final = module_command("simulator.background", "validate")
_STDERR_MAX: Final = 600

Result = Literal["passed", "refused", "unneeded", "not_run"]
OnProgress = Callable[[str, float], None]
"""What a validation does now, and the share of it that is done. Called in other threads."""


def _ignored(doing: str, share: float) -> None:
    """For those who wait for the verdict alone."""


@dataclass(frozen=True, slots=True)
class Validation:
    """The verdict on one config. ``replays``: by workload, requests, attainment of both policies and its drop with the
    half width of its 95 % interval, and the same by SLO class; ``decision_s``: seconds a decision took (mean, p99,
    max).
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
NOT_RUN: Final = Validation("not_run", "the config has a fault")


def validate(
    new: Plan,
    running: Plan | None,
    trace: Path | None = None,
    *,
    forced: bool = False,
    on_progress: OnProgress = _ignored,
) -> Validation:
    """Validate the policies in *new* that *running* does not have: the serving ones, then a canary.

    *trace* is replayed instead of the one that the config names. *forced*: any drop of attainment is allowed; the
    contract and the time of a decision are checked as ever. Blocks for up to ``reload.validation.seconds_max`` for
    each.
    """
    allowed = {"attainment_drop_max": 1.0} if forced else {}
    validations = [UNNEEDED]
    if is_new(new, running, requested=trace is not None):
        question = _question(new, _decisions(new, "routing"), running, trace) | allowed
        validations.append(_verdict(new, question, on_progress))
    if "canary" in new.chosen and _changed(new, running, "canary") and validations[-1].ok:
        question = _question(new, _decisions(new, "canary"), running, trace) | allowed
        validations.append(_verdict(new, question | {"current": _decisions(new, "routing")}, on_progress))
    return _joined([validation for validation in validations if validation is not UNNEEDED])


def is_new(new: Plan, running: Plan | None, *, requested: bool = False) -> bool:
    """Whether *new* has other policies or limits than *running*.

    At the start, when *running* is None, only policy files need a validation, unless it is requested (*requested*).
    """
    if running is None:
        return requested or any(each.source is not None for each in new.chosen.values())
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
        "models": plan.ingress.models.plain(),
    }


def _question(new: Plan, candidate: Mapping[str, Any], running: Plan | None, trace: Path | None) -> dict[str, Any]:
    how, record = new.settings.reload.validation, new.settings.record
    replayed = trace or how.trace or (record.file if record and record.file.exists() else None)
    shadow = new.chosen.get("shadow")
    classes = [{"name": name, "slo": each.slo.plain()} for name, each in new.ingress.classes.items()]
    return {
        "candidate": candidate,
        "current": _decisions(running, "routing") if running else None,
        "others": [shadow.plain()] if shadow else [],
        "backends": [asdict(backend) for backend in new.assumed_backends],
        "classes": classes,
        "trace": str(replayed) if replayed else "",
        "generate": _has_source(new.chosen.values()),
        "replay": how.enabled,
        "budget_s": new.settings.policy.guard.budget_ms / 1e3,
        **{name: getattr(how, name) for name in ("last_s", "requests_min", "requests_max", "attainment_drop_max")},
    }


def _has_source(chosen: Iterable[PolicySpec]) -> bool:
    return any(each.source is not None for each in chosen)


def _verdict(new: Plan, question: Mapping[str, Any], on_progress: OnProgress) -> Validation:
    """Validate one set of policies within the time limit."""
    if not question["replay"] and not _has_source(new.chosen.values()):
        return UNNEEDED
    limit_s = new.settings.reload.validation.seconds_max
    try:
        done = _ran(json.dumps(question), limit_s, on_progress)
    except OSError as problem:
        return Validation("refused", f"the validation could not be started: {problem}")
    except subprocess.TimeoutExpired:
        return Validation("refused", f"the validation did not end within {limit_s:g} s", took_s=limit_s)
    try:
        verdict = json.loads(done.stdout.splitlines()[-1])
        passed = verdict.pop("passed")
    except (IndexError, KeyError, json.JSONDecodeError):
        return Validation(
            "refused", f"the validation ended with exit status {done.returncode}: {done.stderr.strip()[-_STDERR_MAX:]}"
        )
    result: Result = "passed" if passed else "refused"
    return Validation(result, **verdict | {"replays": tuple(verdict["replays"])})


def _ran(question: str, limit_s: float, on_progress: OnProgress) -> subprocess.CompletedProcess[str]:
    """Run the validation's process for at most *limit_s*."""

    def on_line(line: str) -> None:
        with suppress(ValueError, KeyError, TypeError):  # the verdict
            report = json.loads(line)
            on_progress(str(report["doing"])[:_STDERR_MAX], min(1.0, max(0.0, float(report["share"]))))

    with stop_signals.child(_started) as process, process:
        output = communicate(process, question, limit_s, on_line=on_line)
    return subprocess.CompletedProcess(_COMMAND, process.returncode, *output)


def _started() -> "subprocess.Popen[str]":
    pipe, alone = subprocess.PIPE, environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    return subprocess.Popen(_COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=alone)


def _joined(validations: list[Validation]) -> Validation:
    if not validations:
        return UNNEEDED
    return Validation(
        validations[-1].result,
        validations[-1].why,
        tuple(replay for validation in validations for replay in validation.replays),
        validations[-1].decision_s,
        sum(validation.took_s for validation in validations),
    )


def lines(validation: Validation) -> list[str]:
    """A line for each replay: attainment of both policies, the drop and its interval."""
    return [
        f"SLO attainment {replay['candidate']:.1%} of {replay['requests']} requests, was {replay['current']:.1%}: "
        f"a drop of {_with_interval(replay)} ({replay['workload']})"
        for replay in validation.replays
        if replay["current"] is not None
    ]


def _with_interval(replay: Mapping[str, Any]) -> str:
    half = replay.get("drop_half_width")
    return f"{replay['drop']:.1%}" if half is None else f"{replay['drop']:.1%} ± {half:.1%}"
