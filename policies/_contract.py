"""What every policy must keep to before it may serve, checked by asking it: ``check_routing``, ``check_admission``.

Pure: the same arguments and chance give the same answer, in whatever order it is called, and nothing it was shown is
changed. Total: no situation makes it raise, however absurd. Closed: it names only candidates, waits only for a future,
and says why. Willing: an idle pool serves a request that asks for nothing.

Nothing here measures time: a caller that bounds it hands in a policy wrapped to do so. The tests use the same checks
with worlds that hypothesis makes up, so a policy file is held to what the built-in ones are held to.
"""

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf, isfinite, isnan
from typing import Any, Final, NoReturn

import numpy as np

from policies._worlds import World, idle_worlds, scene, worlds
from router.core import (
    EXPECTED_TPOT_VIOLATIONS,
    Admission,
    Admit,
    Choice,
    Dispatch,
    Fleet,
    Forecast,
    Hold,
    Reason,
    Request,
    Rng,
    Routing,
    Shed,
)
from router.core.errors import PolicyRejected
from router.core.policy import Memory

WORLDS: Final = 60  # some two hundred decisions with those repeated: a fraction of a second
TAPE: Final = 32  # numbers of chance a decision gets before they repeat


class Tape:
    """Chance that can be played again."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = numbers
        self._at = 0

    def random(self) -> float:
        """The next number of the tape, from its start again at its end."""
        self._at += 1
        return self._numbers[(self._at - 1) % len(self._numbers)]


def check_routing(policy: Routing, rng: Rng) -> None:
    """Raise PolicyRejected, saying what broke and where, unless the policy keeps the contract of Routing."""
    some = [(world, _tape(rng)) for world in worlds(rng, WORLDS)]
    first = [check_choice(policy, world, tape) for world, tape in some]
    # Called again in reverse: an answer that depends on earlier calls comes out different.
    for (world, tape), before in zip(reversed(some), reversed(first), strict=True):
        again = ask(policy, world, tape)
        if again != before:
            _reject("choose", world, f"answered {before} and, called again, {again}: it remembers or draws chance")
    for world in idle_worlds(rng, WORLDS // 4):
        check_willing(policy, world, _tape(rng))


def check_choice(policy: Routing, world: World, tape: Sequence[float]) -> Choice:
    """One decision, held to the contract; the answer."""
    before, (fleet, forecast) = _facts(world), scene(world)
    choice: Choice = _guarded("choose", world, lambda: policy.choose(world.request, fleet, forecast, Tape(tape)))
    _check_facts("choose", world, before, fleet, forecast)
    match choice:
        case Dispatch(slot=slot):
            if type(slot) is not int or slot not in fleet.slots.tolist():
                _reject("choose", world, f"chose slot {slot!r}; the candidates are {fleet.slots.tolist()} (plain ints)")
        case Hold(until_s=until_s):
            if not until_s > world.now_s:
                _reject("choose", world, f"holds until {until_s} s, but it is {world.now_s} s already")
        case Shed():
            _check_shed("choose", world, choice)
        case _:
            _reject("choose", world, f"answered {choice!r}; expected Dispatch, Hold or Shed")
    _check_why("choose", world, choice.why)
    return choice


def check_willing(policy: Routing, world: World, tape: Sequence[float]) -> None:
    """An idle pool and a request that any backend can serve: anything but Dispatch is a refusal to work."""
    choice = check_choice(policy, world, tape)
    if not isinstance(choice, Dispatch):
        _reject("choose", world, f"answered {choice} although every backend is idle and the SLO is lax")


def ask(policy: Routing, world: World, tape: Sequence[float]) -> Choice:
    """The policy's bare answer."""
    choice: Choice = _guarded("choose", world, lambda: policy.choose(world.request, *scene(world), Tape(tape)))
    return choice


def check_admission(policy: Admission, rng: Rng) -> None:
    """Raise PolicyRejected, saying what broke and where, unless the policy keeps the contract of Admission."""
    _check_bounds(policy)
    check_admitted(policy, worlds(rng, WORLDS))
    for world in idle_worlds(rng, WORLDS // 4):
        answer, _ = _admit(policy, world, None)
        if not isinstance(answer, Admit):
            _reject("admit", world, f"answered {answer} although every backend is idle and the SLO is lax")


def check_admitted(policy: Admission, some: Iterable[World]) -> None:
    """A run of arrivals, each with the memory that the one before handed back, held to the contract."""
    memory, length = None, None
    for world in some:
        answer, after = check_admission_of(policy, world, memory)
        if isinstance(answer, Admit):
            if length not in (None, len(answer.rank)):
                _reject("admit", world, f"gave a rank of {len(answer.rank)} numbers after one of {length}")
            length = len(answer.rank)
        memory = after


def check_admission_of(policy: Admission, world: World, memory: Memory) -> tuple[Admit | Shed, Memory]:
    """One admission, held to the contract; its answer."""
    before = pickle.dumps(memory)
    answered, after = _admit(policy, world, memory)
    if pickle.dumps(memory) != before:
        _reject("admit", world, "changed its memory in place; hand back a new value")
    match answered:
        case Admit(rank=rank):
            _check_rank(world, rank)
        case Shed():
            _check_shed("admit", world, answered)
            _check_why("admit", world, answered.why)
        case _:
            _reject("admit", world, f"answered {answered!r}; expected Admit or Shed")
    if _admit(policy, world, memory)[0] != answered:
        _reject("admit", world, "gave two answers to the same arguments: it remembers outside its memory")
    return answered, after


def _check_rank(world: World, rank: Any) -> None:
    if not isinstance(rank, tuple) or any(isnan(part) for part in rank):
        _reject("admit", world, f"gave rank {rank!r}; expected a tuple of numbers, none of them nan")


def _admit(policy: Admission, world: World, memory: Memory) -> tuple[Any, Memory]:
    before, (fleet, forecast) = _facts(world), scene(world)
    answer = _guarded("admit", world, lambda: policy.admit(world.request, fleet, forecast, memory))
    _check_facts("admit", world, before, fleet, forecast)
    if not isinstance(answer, tuple) or len(answer) != len(("answer", "memory")):
        _reject("admit", world, f"answered {answer!r}; expected an answer and the memory")
    return answer


def _check_bounds(policy: Any) -> None:
    held_max, hold_s_max = policy.held_max, policy.hold_s_max
    if not isinstance(held_max, int) or held_max < 0:
        raise PolicyRejected(f"held_max is {held_max!r}; expected a count, 0 or more")
    times = getattr(policy, "rank_times", ())
    if not isinstance(times, tuple) or not all(isinstance(each, int) and each >= 0 for each in times):
        raise PolicyRejected(f"rank_times is {times!r}; expected a tuple of places in a rank, such as (1, 2)")
    if not 0 <= hold_s_max < inf:
        raise PolicyRejected(f"hold_s_max is {hold_s_max!r}; expected finite seconds, 0 or more")


def _check_shed(verb: str, world: World, shed: Shed) -> None:
    if shed.reason not in set(Reason):
        _reject(verb, world, f"sheds for {shed.reason!r}; expected one of {', '.join(Reason)}")
    if not (isfinite(shed.retry_after_s) and shed.retry_after_s >= 0):
        _reject(verb, world, f"sheds with retry_after_s {shed.retry_after_s}; expected finite seconds, 0 or more")


def _check_why(verb: str, world: World, why: Any) -> None:
    if not isinstance(why, str) or not why:
        _reject(verb, world, f"gave {why!r} as its reason; every answer says why")


def _check_facts(verb: str, world: World, before: str, fleet: Fleet, forecast: Forecast) -> None:
    """Everything the policy was shown must be what a fresh look at the same world shows; ``before``: that world's facts
    (``_facts``) before the policy was called.
    """
    if _facts(world) != before:
        _reject(verb, world, "changed the request or a backend that it was shown")
    fresh, forecast_fresh = scene(world)
    for what, shown, same in (("fleet", fleet, fresh), ("forecast", forecast, forecast_fresh)):
        for name, value in _shown(same, world.request).items():
            if _plain(_shown(shown, world.request)[name]) != _plain(value):
                _reject(verb, world, f"changed the {what} that it was shown: {what}.{name}")


def _facts(world: World) -> str:
    """The request and the backends, as text: the objects that a policy is shown themselves."""
    return repr((world.request, world.backends))


def _shown(of: Fleet | Forecast, request: Request) -> dict[str, Any]:
    """All that a policy can read there, by name."""
    if isinstance(of, Fleet):
        facts = {name: getattr(of, name) for name in _FLEET}
        return {**facts, "cached_tokens": of.cached_tokens(request)}
    rows = of.rows[:EXPECTED_TPOT_VIOLATIONS].copy()  # the rest is filled on demand
    facts = {name: getattr(of, name) for name in _FORECAST}
    tails = {
        "with_tpot_violations": of.with_tpot_violations(),
        "tails_s": of.tails_s(request.slo.quantile),
        "tails_s(0.5)": of.tails_s(0.5),
    }
    return {"rows": rows, **facts, **tails}


def _plain(value: Any) -> Any:
    """To be compared: nan is what nan was."""
    return value.tobytes() if isinstance(value, np.ndarray) else value


def _facts_of(kind: type) -> tuple[str, ...]:
    """The public names of what instances hold."""
    return tuple(name for name in dir(kind) if not name.startswith("_") and not callable(getattr(kind, name)))


_FLEET: Final = _facts_of(Fleet)
_FORECAST: Final = tuple(name for name in _facts_of(Forecast) if name not in ("made", "answer", "rows"))


def _guarded(verb: str, world: World, act: Callable[[], Any]) -> Any:
    try:
        return act()
    except PolicyRejected:
        raise
    except Exception as problem:  # a policy may raise anything: the contract is that it does not
        what = f"{_line(problem)}{verb} raised {type(problem).__name__}: {problem}"
        raise PolicyRejected(f"{what} ({_place(world)})") from problem


def _line(problem: Exception) -> str:
    """``file:line: `` of the policy's innermost line, as far as the traceback has one."""
    place, step = "", problem.__traceback__
    while step is not None:
        module = str(step.tb_frame.f_globals.get("__name__", ""))
        if module != __name__ and module.partition(".")[0] not in _NOT_OF_A_POLICY:
            place = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}: "
        step = step.tb_next
    return place


_NOT_OF_A_POLICY: Final = ("router", "simulator", "numpy")


def _tape(rng: Rng) -> tuple[float, ...]:
    return tuple(rng.random() for _ in range(TAPE))


def _reject(verb: str, world: World, what: str) -> NoReturn:
    raise PolicyRejected(f"{verb} {what} ({_place(world)})")


def _place(world: World) -> str:
    """The situation in a line; the request's defaults are left out."""
    plain = replace(world.request, prefix=world.request.prefix[:3])
    return f"in a pool of {len(world.backends)}, {len(world.down)} down, at {world.now_s} s, for {plain}"
