"""The command ``validate``: may this policy serve? A job on stdin, progress and a verdict on stdout, all JSON.

The job holds the candidate, the policy that serves now, and the backends. The candidate is checked against the policy
contract, then both are played over the same arrivals. It is rejected if it breaks the contract, raises, exceeds its
time budget, or attains its SLOs for fewer requests than the present policy by more than the allowed drop. It runs in a
process of its own, so that nothing a policy does here reaches a request. Must not depend on the gateway.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from statistics import fmean, quantiles
from time import perf_counter
from typing import Any, Final, TextIO

import policies
from policies._contract import check_admission, check_routing
from router import loading
from router.core import Admit, Choice, Fleet, Forecast, Request, Rng, Shed, Slo
from router.core.errors import PolicyRejected
from router.core.flight import DispatchLimits
from router.core.model_rules import NO_RULES, ModelRules, rules_of
from router.core.policy import Memory, rank_times
from router.core.record import backend_of
from router.core.types import Backend, slo_from
from router.thread_usage import Usage, own_s, usage
from simulator.pool import Member, Pool, Site
from simulator.replica.sequence import EngineLimits
from simulator.replica.truth import true_of
from simulator.run.play import play
from simulator.run.result_table import ResultTable
from simulator.traces.recent import recent
from simulator.validation.auditing import check_state, state_of, watched
from simulator.validation.comparison import Comparison, Met, compared
from simulator.workload.arrivals import Arrival, Shaping, SloClass, shape, with_distinct_ids
from simulator.workload.for_pool import LOAD, capacity_of, workload_for

BLOCK_TOKENS: Final = 16
STEPS: Final = 20  # reports of progress during a replay

Progress = Callable[[str, float], None]
"""What is done now, and the share of all that is done by then."""
HARD_FACTOR: Final = 40.0  # times the budget: beyond scheduling noise; the second such decision rejects the policy
ON_TIME_SHARE: Final = 0.95  # share of the decisions that must be within the budget


@dataclass(frozen=True, slots=True)
class Job:
    """What to validate. ``candidate`` and ``current`` (None: no policy has served yet) hold ``routing`` and
    ``admission``, each by ``name`` or by ``path`` and ``text``, with ``parameters``.

    ``trace``: a file of any trace format, such as the gateway's record, of which the last ``last_s`` and at most
    ``requests_max`` requests are played. With fewer than ``requests_min`` requests, or with ``generate``, a workload is
    generated for the pool.
    """

    candidate: Mapping[str, Any]
    backends: tuple[Backend, ...]
    current: Mapping[str, Any] | None = None
    others: Sequence[Mapping[str, Any]] = ()  # routings checked for contract and time only
    classes: Sequence[Mapping[str, Any]] = ()
    trace: str = ""
    generate: bool = False
    replay: bool = True  # False: check the contract and the time of a decision only
    last_s: float = 600.0
    requests_min: int = 100
    requests_max: int = 3_000
    attainment_drop_max: float = 0.02
    budget_s: float = 0.005
    seed: int = 0


@dataclass(slots=True)
class Verdict:
    """``why``: of a refusal; ``replays``: each workload with requests, attainment of both, the drop with the half width
    of its 95 % interval, and the same by SLO class.
    """

    passed: bool = True
    why: str = ""
    replays: list[dict[str, Any]] = field(default_factory=list)
    decision_s: dict[str, float] = field(default_factory=dict)


def job_of(plain: Mapping[str, Any]) -> Job:
    """The job in the JSON. Raises TypeError or KeyError if it is not one."""
    return Job(**{**plain, "backends": tuple(backend_of(each) for each in plain["backends"])})


class TimedPolicy:
    """A policy with every decision timed and audited for side effects (``auditing.py``).

    The time is CPU time, so that a busy machine does not count against the policy, or wall time if the decision waited.
    """

    def __init__(self, policy: Any, budget_s: float, admitted: Callable[[], None] = lambda: None) -> None:
        """The second decision that takes ``HARD_FACTOR`` times the budget raises PolicyRejected. *admitted* is called
        once a request.
        """
        self._policy, self._budget_s, self._admitted = policy, budget_s, admitted
        self._hard_overruns = 0
        self.took_s: list[float] = []

    @property
    def held_max(self) -> int:
        """See Admission."""
        held: int = self._policy.held_max
        return held

    @property
    def hold_s_max(self) -> float:
        """See Admission."""
        hold_s: float = self._policy.hold_s_max
        return hold_s

    @property
    def rank_times(self) -> tuple[int, ...] | None:
        """See ``router.core.policy.rank_times``."""
        return rank_times(self._policy)

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """See Routing."""
        began = self._now()
        choice: Choice = watched(lambda: self._policy.choose(request, fleet, forecast, rng))
        self._note(began)
        return choice

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit | Shed, Memory]:
        """See Admission."""
        self._admitted()
        began = self._now()
        answer: tuple[Admit | Shed, Memory] = watched(lambda: self._policy.admit(request, fleet, forecast, memory))
        self._note(began)
        return answer

    @staticmethod
    def _now() -> tuple[float, Usage]:
        return perf_counter(), usage()

    def _note(self, began: tuple[float, Usage]) -> None:
        began_s, before = began
        took_s = own_s(perf_counter() - began_s, before, usage())
        self.took_s.append(took_s)
        if took_s > HARD_FACTOR * self._budget_s:
            self._hard_overruns += 1
            if self._hard_overruns > 1:
                raise PolicyRejected(f"a decision took {took_s:.3f} s; its budget is {self._budget_s * 1e3:g} ms")

    def check(self) -> None:
        """Raise PolicyRejected if too many decisions exceeded the budget."""
        if not self.took_s:
            return
        late_s = sorted(self.took_s)[int(ON_TIME_SHARE * (len(self.took_s) - 1))]
        if late_s > self._budget_s:
            took = f"{ON_TIME_SHARE:.0%} of its decisions take up to {late_s * 1e3:.1f} ms"
            raise PolicyRejected(f"{took}; its budget is {self._budget_s * 1e3:g} ms")

    def summary(self) -> dict[str, float]:
        """Mean, 99th percentile and maximum of the seconds a decision took."""
        if len(self.took_s) < 2:  # noqa: PLR2004 - quantiles need two
            return {}
        return {"mean": fmean(self.took_s), "p99": quantiles(self.took_s, n=100)[-1], "max": max(self.took_s)}


def build_policy(kind: str, plain: Mapping[str, Any]) -> Any:
    """The policy of this name, or of this source text. Raises PolicyRejected or ValueError."""
    if "text" in plain:
        source = loading.Source(plain["path"], plain["text"])
        return watched(lambda: loading.load(kind, source, plain["parameters"]))
    return policies.find(kind, plain["name"], plain["parameters"])


def validate(job: Job, progress: Progress = lambda doing, share: None) -> Verdict:
    """Check the contract, then play the workloads. The first fault decides the verdict."""
    verdict = Verdict()
    try:
        if not job.backends:
            raise PolicyRejected("no backends to validate the policy with")  # noqa: TRY301 - one way to a verdict
        progress("the policy contract", 0.0)
        for plain in (job.candidate["routing"], *job.others):
            _check_contract("routing", plain, job, check_routing)
        _check_contract("admission", job.candidate["admission"], job, check_admission)
        played = workloads(job) if job.replay else []
        for number, (name, arrivals) in enumerate(played):
            _compare(job, name, arrivals, verdict, _part(progress, number / len(played), (number + 1) / len(played)))
    except (PolicyRejected, ValueError) as problem:
        verdict.passed, verdict.why = False, str(problem)
    return verdict


def _check_contract(
    kind: str, plain: Mapping[str, Any], job: Job, check: Callable[[TimedPolicy, Random], None]
) -> None:
    """Check contract, time and state. Raises PolicyRejected, which names the policy."""
    policy = build_policy(kind, plain)
    timed, before = TimedPolicy(policy, job.budget_s), state_of(policy)
    try:
        check(timed, Random(job.seed))
        check_state(before, policy)
        timed.check()
    except PolicyRejected as problem:
        name, why = plain.get("path") or plain["name"], str(problem)
        raise PolicyRejected(why if why.startswith(f"{name}:") else f"{name}: {why}") from None


def workloads(job: Job) -> list[tuple[str, list[Arrival]]]:
    """The workloads to play, each with its name."""
    found = []
    if job.trace:
        arrivals = _recent(job)
        if len(arrivals) >= job.requests_min:
            found.append((job.trace, arrivals))
    if job.generate or not found:
        name = f"a workload made for this pool and its SLO classes, at {LOAD:.0%} of its capacity"
        found.append((name, workload_for(job.backends, job.requests_max, job.seed, _classes(job))))
    return found


def _classes(job: Job) -> tuple[SloClass, ...]:
    """The operator's. One without a bound gets an SLO that the pool can meet: with none, every policy would pass."""
    pool_slo = capacity_of(job.backends).slo
    return tuple(SloClass(each["name"], _bounded(slo_from(each["slo"]), pool_slo)) for each in job.classes)


def _recent(job: Job) -> list[Arrival]:
    """The last requests of the trace. Requests without an SLO get one that the pool can meet, as classes do."""
    pool_slo, classes = capacity_of(job.backends).slo, _classes(job)
    entries = recent(Path(job.trace), job.last_s, job.requests_max)
    for entry in entries:
        if entry.slo is not None:
            entry.slo = _bounded(entry.slo, pool_slo)
    how = Shaping(job.backends[0].models[0], classes or (SloClass("default", pool_slo),))
    return with_distinct_ids(shape(entries, how, job.seed))


def _bounded(slo: Slo, otherwise: Slo) -> Slo:
    return slo if slo.bounded else otherwise


def _part(progress: Progress, low: float, high: float) -> Progress:
    """Progress of one part, from *low* to *high* of the whole."""
    return lambda doing, share: progress(doing, low + share * (high - low))


def _compare(job: Job, name: str, arrivals: list[Arrival], verdict: Verdict, progress: Progress) -> None:
    """Play both policies. Raises PolicyRejected if the candidate attains too much less."""
    first, second = _part(progress, 0.0, 0.5), _part(progress, 0.5, 1.0)
    candidate = _met(
        _played(job, job.candidate, arrivals, verdict, lambda share: first(f"the new policy on {name}", share))
    )
    replay: dict[str, Any] = {
        "workload": name,
        "requests": len(arrivals),
        "candidate": None,
        "current": None,
        "drop": 0.0,
    }
    replay["candidate"] = fmean(candidate(arrival.request.id) for arrival in arrivals)
    verdict.replays.append(replay)
    current = _current_met(job, arrivals, lambda share: second(f"the current policy on {name}", share))
    whole, classes = compared(arrivals, candidate, current)
    figures = whole.plain()
    replay |= {key: figures[key] for key in ("candidate", "current", "drop", "drop_half_width")}
    replay["classes"] = [each.plain() for each in classes]
    if whole.drop > job.attainment_drop_max:
        raise PolicyRejected(_too_much(job, name, whole, classes))


def _too_much(job: Job, name: str, whole: Comparison, classes: Sequence[Comparison]) -> str:
    """Which class loses most, both figures, and what would allow it."""
    against = "the policy that serves" if job.current else "least_work"
    worst = classes[0]
    return (
        f"SLO attainment drops by {whole.drop:.1%} against {against}: {whole.figures()} ({name}). Class "
        f"{worst.slo_class} ({worst.bounds}) loses most: {worst.figures()}. Allowed is "
        f"{job.attainment_drop_max:.1%}, by reload.validation.attainment_drop_max; a larger value allows it, and so "
        f"does `headroom policy reload --force`, which the audit log states"
    )


def _met(table: ResultTable) -> Met:
    """By id, whether the request met its SLO."""
    met = dict(zip(table.ids, table.met().tolist(), strict=True))
    return lambda request_id: bool(met.get(request_id, False))


def _current_met(job: Job, arrivals: list[Arrival], progress: Callable[[float], None]) -> Met:
    """Of the present policy; none is met if it fails, for then it may well be replaced."""
    current = job.current or {**job.candidate, "routing": {"name": "least_work", "parameters": {}}}
    try:
        return _met(_played(job, current, arrivals, None, progress))
    except (PolicyRejected, ValueError):
        return lambda request_id: False


def _played(
    job: Job,
    decisions: Mapping[str, Any],
    arrivals: list[Arrival],
    verdict: Verdict | None,
    progress: Callable[[float], None],
) -> ResultTable:
    """The results of one policy. Raises PolicyRejected."""
    routing = TimedPolicy(build_policy("routing", decisions["routing"]), job.budget_s)
    admitted = _stepwise(progress, len(arrivals))
    admission = TimedPolicy(build_policy("admission", decisions["admission"]), job.budget_s, admitted)
    limits = DispatchLimits(**decisions.get("limits", {}))
    try:
        pool = BackendPool(job.backends, rules_of(decisions.get("models", {})))
        played = play(arrivals, pool, routing, admission, job.seed, limits=limits)
        routing.check()
    except PolicyRejected:
        raise
    except Exception as problem:  # a policy may raise anything
        raise PolicyRejected(f"raised {type(problem).__name__}: {problem} in the replay") from problem
    if verdict is not None:
        verdict.decision_s = routing.summary()
    return played.table


def _stepwise(progress: Callable[[float], None], calls: int) -> Callable[[], None]:
    """A function that reports ``STEPS`` times while it is called *calls* times."""
    counted = count()

    def called() -> None:
        number = next(counted)
        if number * STEPS // calls != (number - 1) * STEPS // calls:
            progress(number / calls)

    return called


class BackendPool(Pool):
    """A pool of which only the router's belief is known. The truth is that belief times hidden factors."""

    def __init__(self, backends: Sequence[Backend], models: ModelRules = NO_RULES) -> None:
        """One replica for each backend."""
        members = tuple(Member(b.name, "", network_s=b.network_s) for b in backends)
        super().__init__(members, name="as configured", models=models)
        object.__setattr__(self, "backends", tuple(backends))

    backends: tuple[Backend, ...]

    def sites(self, seed: int) -> list[Site]:
        """The replicas, with the truth drawn from *seed*."""
        return [
            Site(b.name, member, _limits_of(b), b, true_of(b.prior, self.truth, seed, b.name))
            for member, b in zip(self.members, self.backends, strict=True)
        ]


def _limits_of(backend: Backend) -> EngineLimits:
    blocks = max(1, backend.kv_tokens_max // BLOCK_TOKENS)
    return EngineLimits(backend.seqs_max, max(backend.chunk_tokens, backend.seqs_max), BLOCK_TOKENS, blocks)


def run(stdin: TextIO, stdout: TextIO) -> bool:
    """Read one job; write a line of progress now and then, and its verdict as the last line. Returns whether it passed.

    Output printed by a policy goes to stderr.
    """
    began_s = perf_counter()

    def progress(doing: str, share: float) -> None:
        stdout.write(json.dumps({"doing": doing, "share": round(share, 3)}) + "\n")
        stdout.flush()

    with redirect_stdout(sys.stderr):
        verdict = validate(job_of(json.load(stdin)), progress)
    json.dump(asdict(verdict) | {"took_s": perf_counter() - began_s}, stdout)
    stdout.write("\n")
    return verdict.passed
