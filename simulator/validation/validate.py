"""The command ``validate``: may this policy serve? A question on stdin, a verdict on stdout, both JSON.

Believes: the question: who decides now, who is to decide, on which backends. The candidate is held to the contract,
then both are played over the same arrivals; it is refused when it breaks the contract, raises, overruns its time, or
keeps its SLO for fewer requests than the other by more than the bound. Runs in a process of its own, so that nothing
a policy does here (sleep, spin, die) reaches a request. Must not know the gateway: the question holds all it needs.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from statistics import fmean, quantiles
from time import perf_counter, thread_time
from typing import Any, Final, TextIO

import policies
from policies._contract import check_admission, check_routing
from router import loading
from router.core import Admit, Choice, Fleet, Forecast, Request, Rng, Shed, Slo, compiling
from router.core.errors import PolicyRejected
from router.core.flight import DispatchLimits
from router.core.policy import Memory
from router.core.record import backend_of
from router.core.types import Backend
from simulator.pool import Member, Pool, Site
from simulator.replica.sequence import EngineLimits
from simulator.replica.truth import true_of
from simulator.run.play import play
from simulator.traces.recent import recent
from simulator.validation.auditing import check_state, state_of, watched
from simulator.workload.arrivals import Arrival, Shaping, SloClass, distinct, shape
from simulator.workload.for_pool import LOAD, generated, promise

BLOCK_TOKENS: Final = 16
GROSS: Final = 40.0  # times the budget: no scheduler's whim; two such decisions are enough
SHARE: Final = 0.95  # of the decisions that must be inside the budget


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. ``candidate``, ``current`` (None: nobody served yet) and ``shadow`` hold ``routing`` and
    ``admission``, each by ``name`` or by ``path`` and ``text``, with ``parameters``; ``trace``: a file of any known
    form, the gateway's record among them, of which the last ``last_s`` and ``requests_max`` count; with fewer than
    ``requests_min``, or where ``generate`` says so, a workload is generated for the pool.
    """

    candidate: Mapping[str, Any]
    backends: tuple[Backend, ...]
    current: Mapping[str, Any] | None = None
    others: Sequence[Mapping[str, Any]] = ()  # routings that must keep the contract and their time, no more
    classes: Sequence[Mapping[str, Any]] = ()
    trace: str = ""
    generate: bool = False
    replay: bool = True  # False: the contract and the time of a decision are all that is asked
    last_s: float = 600.0
    requests_min: int = 100
    requests_max: int = 3_000
    attainment_drop_max: float = 0.02
    budget_s: float = 0.005
    seed: int = 0


@dataclass(slots=True)
class Verdict:
    """``why``: of a refusal; ``replays``: each workload with requests, attainment of both and the drop."""

    passed: bool = True
    why: str = ""
    replays: list[dict[str, Any]] = field(default_factory=list)
    decision_s: dict[str, float] = field(default_factory=dict)


def question_of(plain: Mapping[str, Any]) -> Question:
    """The question in the JSON; TypeError or KeyError when it is none."""
    return Question(**{**plain, "backends": tuple(backend_of(each) for each in plain["backends"])})


if sys.platform == "linux":
    import resource

    def _slept() -> int:
        """How often this thread gave up its processor by itself: a decision in which it did is one that waited."""
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

else:  # nobody says: every decision is taken to have waited, and is timed by the wall clock
    _slept = count().__next__


class Timed:
    """A policy whose every decision is timed: by its own work, so that a busy machine is not held against it, and by
    the wall clock where it sleeps or waits; and watched for what it does beside deciding (``auditing.py``).
    """

    def __init__(self, policy: Any, budget_s: float) -> None:
        """PolicyRejected from a decision: the second one that took ``GROSS`` times the budget."""
        self._policy, self._budget_s = policy, budget_s
        self._gross = 0
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

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """See Routing."""
        began = self._now()
        choice: Choice = watched(lambda: self._policy.choose(request, fleet, forecast, rng))
        self._note(began)
        return choice

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit | Shed, Memory]:
        """See Admission."""
        began = self._now()
        answer: tuple[Admit | Shed, Memory] = watched(lambda: self._policy.admit(request, fleet, forecast, memory))
        self._note(began)
        return answer

    @staticmethod
    def _now() -> tuple[float, float, int]:
        return perf_counter(), thread_time(), _slept()

    def _note(self, began: tuple[float, float, int]) -> None:
        wall_s, work_s, slept = (now - then for now, then in zip(self._now(), began, strict=True))
        took_s = wall_s if slept else work_s
        self.took_s.append(took_s)
        if took_s > GROSS * self._budget_s:
            self._gross += 1
            if self._gross > 1:
                raise PolicyRejected(f"a decision took {took_s:.3f} s; its budget is {self._budget_s * 1e3:g} ms")

    def check(self) -> None:
        """PolicyRejected when too many decisions overran."""
        if not self.took_s:
            return
        late_s = sorted(self.took_s)[int(SHARE * (len(self.took_s) - 1))]
        if late_s > self._budget_s:
            told = f"{SHARE:.0%} of its decisions take up to {late_s * 1e3:.1f} ms"
            raise PolicyRejected(f"{told}; its budget is {self._budget_s * 1e3:g} ms")

    def summary(self) -> dict[str, float]:
        """Seconds a decision took."""
        if len(self.took_s) < 2:  # noqa: PLR2004 - quantiles need two
            return {}
        return {"mean": fmean(self.took_s), "p99": quantiles(self.took_s, n=100)[-1], "max": max(self.took_s)}


def made(kind: str, plain: Mapping[str, Any]) -> Any:
    """The policy of that name, or of that source."""
    if "text" in plain:
        source = loading.Source(plain["path"], plain["text"])
        return watched(lambda: loading.load(kind, source, plain["parameters"]))
    return policies.find(kind, plain["name"], plain["parameters"])


def judge(question: Question) -> Verdict:
    """Contract, then the replays; the first fault is the verdict's."""
    verdict = Verdict()
    try:
        for plain in (question.candidate["routing"], *question.others):
            _vet("routing", plain, question, check_routing)
        _vet("admission", question.candidate["admission"], question, check_admission)
        for told, arrivals in workloads(question) if question.replay else ():
            _compare(question, told, arrivals, verdict)
    except (PolicyRejected, ValueError) as problem:
        verdict.passed, verdict.why = False, str(problem)
    return verdict


def _vet(kind: str, plain: Mapping[str, Any], question: Question, check: Callable[[Timed, Random], None]) -> None:
    """The contract, against the clock; PolicyRejected names the policy."""
    policy = made(kind, plain)
    timed, before = Timed(policy, question.budget_s), state_of(policy)
    try:
        check(timed, Random(question.seed))
        check_state(before, policy)
        timed.check()
    except PolicyRejected as problem:
        name, told = plain.get("path") or plain["name"], str(problem)
        raise PolicyRejected(told if told.startswith(f"{name}:") else f"{name}: {told}") from None


def workloads(question: Question) -> list[tuple[str, list[Arrival]]]:
    """What is played, each with its name."""
    found = []
    if question.trace:
        arrivals = _recent(question)
        if len(arrivals) >= question.requests_min:
            found.append((question.trace, arrivals))
    if question.generate or not found:
        told = f"a workload made for this pool at {LOAD:.0%} of its capacity"
        found.append((told, generated(question.backends, question.requests_max, question.seed)))
    return found


def _recent(question: Question) -> list[Arrival]:
    """The trace's last requests. Who was promised nothing is promised here what the pool could keep: without a bound
    any policy would do.
    """
    promised = promise(question.backends).slo
    classes = tuple(SloClass(each["name"], _bounded(Slo(**each["slo"]), promised)) for each in question.classes)
    entries = recent(Path(question.trace), question.last_s, question.requests_max)
    for entry in entries:
        if entry.slo is not None:
            entry.slo = _bounded(entry.slo, promised)
    how = Shaping(question.backends[0].models[0], classes or (SloClass("default", promised),))
    return distinct(shape(entries, how, question.seed))


def _bounded(slo: Slo, otherwise: Slo) -> Slo:
    return otherwise if min(slo.ttft_s, slo.tpot_s, slo.e2e_s) == inf else slo


def _compare(question: Question, told: str, arrivals: list[Arrival], verdict: Verdict) -> None:
    """Play both; PolicyRejected says by how much the candidate is worse."""
    candidate = _attainment(question, question.candidate, arrivals, verdict)
    replay = {"workload": told, "requests": len(arrivals), "candidate": candidate, "current": None, "drop": 0.0}
    verdict.replays.append(replay)
    current = _of_current(question, arrivals)
    replay |= {"current": current, "drop": current - candidate}
    if current - candidate > question.attainment_drop_max:
        against = "the policy that serves" if question.current else "least_work"
        raise PolicyRejected(
            f"attainment drops by {current - candidate:.1%}: {candidate:.1%} of {len(arrivals)} requests, {against}"
            f" keeps {current:.1%} ({told}); at most {question.attainment_drop_max:.1%} is allowed"
        )


def _of_current(question: Question, arrivals: list[Arrival]) -> float:
    """What the other keeps; a policy that fails at it keeps nothing, and may well be replaced."""
    current = question.current or {**question.candidate, "routing": {"name": "least_work", "parameters": {}}}
    try:
        return _attainment(question, current, arrivals, None)
    except (PolicyRejected, ValueError):
        return 0.0


def _attainment(
    question: Question, decisions: Mapping[str, Any], arrivals: list[Arrival], verdict: Verdict | None
) -> float:
    routing = Timed(made("routing", decisions["routing"]), question.budget_s)
    admission = Timed(made("admission", decisions["admission"]), question.budget_s)
    limits = DispatchLimits(**decisions.get("limits", {}))
    try:
        played = play(arrivals, BackendPool(question.backends), routing, admission, question.seed, limits=limits)
        routing.check()
    except PolicyRejected:
        raise
    except Exception as problem:  # a policy may raise anything
        raise PolicyRejected(f"raised {type(problem).__name__}: {problem} in the replay") from problem
    if verdict is not None:
        verdict.decision_s = routing.summary()
    return float(played.books.met().mean())


class BackendPool(Pool):
    """A pool of which only what a router believes is known: its truth is that, times hidden factors."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        """One replica for each backend."""
        super().__init__(tuple(Member(b.name, "", network_s=b.network_s) for b in backends), name="as configured")
        object.__setattr__(self, "backends", tuple(backends))

    backends: tuple[Backend, ...]

    def sites(self, seed: int) -> list[Site]:
        """Every replica under *seed*."""
        return [
            Site(b.name, member, _started(b), b, true_of(b.prior, self.truth, seed, b.name))
            for member, b in zip(self.members, self.backends, strict=True)
        ]


def _started(backend: Backend) -> EngineLimits:
    blocks = max(1, backend.kv_tokens_max // BLOCK_TOKENS)
    return EngineLimits(backend.seqs_max, max(backend.chunk_tokens, backend.seqs_max), BLOCK_TOKENS, blocks)


def run(asked: TextIO, answered: TextIO) -> bool:
    """Read one question, write its verdict; whether it passed. What a policy prints goes to stderr. From here on this
    process checks what loops are handed: a policy's may not write what it is shown.
    """
    began_s, compiling.checked = perf_counter(), True
    with redirect_stdout(sys.stderr):
        verdict = judge(question_of(json.load(asked)))
    json.dump(asdict(verdict) | {"took_s": perf_counter() - began_s}, answered)
    answered.write("\n")
    return verdict.passed
