"""Core events as plain data: what a recorder writes can be fed to a fresh core again.

``Recording`` has the dispatcher's methods; it writes each event, then passes it on. ``replay`` feeds such events to a
core and yields what it answers: the same commands as in the first run, because they depend on events and seed alone.
No file is opened here; the gateway's recorder and the simulator's reader do that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from math import inf, isfinite, nan
from typing import Any, Final

from router.core.advances import Advance
from router.core.decisions import Command, RequestRecord
from router.core.dispatcher import NO_USAGE, Dispatcher
from router.core.errors import DownReason
from router.core.evidence import Outcome, ReplyLength
from router.core.flight import Failure, FailureKind
from router.core.held_lines import HeldLine
from router.core.peer_change import PeerChange, SentPrompt, Work
from router.core.physics import StepCoefficients
from router.core.text_size import TEXT_SIGMA
from router.core.types import Backend, EngineReport, Load, Request, RequestId, Usage, slo_from

VERSION: Final = 7  # 1: other names of events and fields; 2: one event for commit and first token
READABLE: Final = (3, 4, 5, 6, VERSION)
"""3: without the time of a last token, which is the end's then; 4: no peer's changes; 5: no reply that a proxy has from
another backend, no rules of models, no limit ``late_final``; 6: no decisions that a guard replaced, peers' changes
without what they hold and measured.
"""
_REQUEST: Final = tuple(each.name for each in fields(Request))
_OF_MODELS: Final = ("requested_model", "fallback")  # of a request: where they are empty they are left out
_OF_OTHER_MODELS: Final = ("model", "fallback_why")  # of a command, likewise: records without rules stay as they were
Event = dict[str, Any]


class Recording:
    """A dispatcher whose events are written down as they come, each with the commands it was answered with."""

    def __init__(
        self,
        core: Dispatcher,
        write: Callable[[Event], None],
        replaced: Callable[[], Sequence[Sequence[int | str]]] = tuple,
    ) -> None:
        """``replaced``: which decisions about the event that has just ended were not its policy's own, and why."""
        self._core = core
        self._write = write
        self._replaced = replaced

    def backend_joined(self, backend: Backend, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        return self._note("backend_joined", now_s, self._core.backend_joined(backend, now_s), backend=_plain(backend))

    def backend_left(self, name: str, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        return self._note("backend_left", now_s, self._core.backend_left(name, now_s), name=name)

    def backend_health(self, name: str, up: bool, now_s: float, reason: DownReason | None = None) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.backend_health(name, up, now_s, reason)
        why = {"reason": reason.value} if reason is not None else {}
        return self._note("backend_health", now_s, commands, name=name, up=up, **why)

    def backend_draining(self, name: str, draining: bool, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.backend_draining(name, draining, now_s)
        return self._note("backend_draining", now_s, commands, name=name, draining=draining)

    def probe_started(self, name: str, now_s: float) -> None:
        """See Dispatcher."""
        self._core.probe_started(name, now_s)
        self._note("probe_started", now_s, (), name=name)

    def reported(self, name: str, report: EngineReport, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        return self._note(
            "reported", now_s, self._core.reported(name, report, now_s), name=name, report=_plain_report(report)
        )

    def adapters_reported(self, name: str, running: Sequence[str], places: int, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.adapters_reported(name, running, places, now_s)
        return self._note("adapters_reported", now_s, commands, name=name, running=list(running), places=places)

    def adapters_listed(self, name: str, listed: Sequence[str], asked_s: float, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.adapters_listed(name, listed, asked_s, now_s)
        return self._note("adapters_listed", now_s, commands, name=name, listed=list(listed), asked_s=asked_s)

    def on_peer_load(self, peer: str, loads: Mapping[str, Load], now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        plain = {name: _finite(asdict(load)) for name, load in loads.items()}
        return self._note("on_peer_load", now_s, self._core.on_peer_load(peer, loads, now_s), peer=peer, loads=plain)

    def on_peer_change(self, peer: str, change: PeerChange, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.on_peer_change(peer, change, now_s)
        return self._note("on_peer_change", now_s, commands, peer=peer, change=_finite(asdict(change)))

    def forget_silent_peers(self, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        return self._note("forget_silent_peers", now_s, self._core.forget_silent_peers(now_s))

    def peer_lost(self, peer: str, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        return self.on_peer_load(peer, {}, now_s)

    def adopt_belief(self, name: str, learnt: Mapping[str, Any], now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        return self._note("adopt_belief", now_s, self._core.adopt_belief(name, learnt, now_s), name=name, learnt=learnt)

    def arrived(self, request: Request, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        return self._note("arrived", now_s, self._core.arrived(request, now_s), request=_plain_request(request))

    def committed(self, request_id: RequestId, attempt: int, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.committed(request_id, attempt, now_s)
        return self._note("committed", now_s, commands, id=request_id, attempt=attempt)

    def first_token(self, request_id: RequestId, attempt: int, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.first_token(request_id, attempt, now_s)
        return self._note("first_token", now_s, commands, id=request_id, attempt=attempt)

    def served_by(self, request_id: RequestId, attempt: int, backend: str, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.served_by(request_id, attempt, backend, now_s)
        return self._note("served_by", now_s, commands, id=request_id, attempt=attempt, backend=backend)

    def ended(
        self, request_id: RequestId, attempt: int, usage: Usage, now_s: float, last_token_s: float = nan
    ) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.ended(request_id, attempt, usage, now_s, last_token_s)
        return self._note("ended", now_s, commands, id=request_id, attempt=attempt, **_came(usage, last_token_s))

    def failed(
        self,
        request_id: RequestId,
        attempt: int,
        failure: Failure,
        now_s: float,
        usage: Usage = NO_USAGE,
        last_token_s: float = nan,
    ) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.failed(request_id, attempt, failure, now_s, usage, last_token_s)
        plain = {"failure": asdict(failure), **_came(usage, last_token_s)}
        return self._note("failed", now_s, commands, id=request_id, attempt=attempt, **plain)

    def client_left(
        self, request_id: RequestId, now_s: float, usage: Usage = NO_USAGE, last_token_s: float = nan
    ) -> Sequence[Command]:
        """See Dispatcher."""
        commands = self._core.client_left(request_id, now_s, usage, last_token_s)
        return self._note("client_left", now_s, commands, id=request_id, **_came(usage, last_token_s))

    def so_far(
        self, request_id: RequestId, usage: Usage, now_s: float, last_token_s: float = nan
    ) -> RequestRecord | None:
        """See Dispatcher: no event, since it changes nothing."""
        return self._core.so_far(request_id, usage, now_s, last_token_s)

    def ticked(self, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        return self._note("ticked", now_s, self._core.ticked(now_s))

    def paused(self, paused_s: float, now_s: float) -> Sequence[Command]:
        """See Dispatcher."""
        return self._note("paused", now_s, self._core.paused(paused_s, now_s), paused_s=paused_s)

    @property
    def wake_s(self) -> float:
        """See Dispatcher."""
        return self._core.wake_s

    @property
    def soonest_s(self) -> float:
        """See Dispatcher."""
        return self._core.soonest_s

    def _note(self, event: str, now_s: float, commands: Sequence[Command], **arguments: Any) -> Sequence[Command]:
        replaced = self._replaced()
        self._write(
            {
                "at_s": now_s if isfinite(now_s) else None,
                "event": event,
                **arguments,
                **({"replaced": replaced} if replaced else {}),
                "answer": [plain_command(c) for c in commands],
            }
        )
        return commands


def replay(events: Iterable[Event], core: Dispatcher) -> Iterator[tuple[Event, list[Event]]]:
    """Feed every recorded event to a core; yields each with what the core answers now, in the record's own form."""
    for event in events:
        commands = _feed(core, event)
        yield event, [plain_command(command) for command in commands]


def _feed(core: Dispatcher, event: Event) -> Sequence[Command]:
    kind, now_s = event["event"], nan if event["at_s"] is None else event["at_s"]  # a clock that showed no number
    decode = _DECODE.get(kind)
    if decode is None:
        raise ValueError(f"unknown event {kind!r}; expected one of {', '.join(_DECODE)}")
    more: Event = {"usage": Usage(**event["usage"])} if kind in _PARTIAL else {}
    if "last_token_s" in event:
        more["last_token_s"] = event["last_token_s"]
    if kind == "backend_health" and "reason" in event:
        more["reason"] = DownReason(event["reason"])
    return getattr(core, kind)(*decode(event), now_s, **more) or ()


def _came(usage: Usage, last_token_s: float) -> Event:
    """What came of a reply, and its last token, where the time of that is known."""
    last = {"last_token_s": last_token_s} if isfinite(last_token_s) else {}
    return {"usage": asdict(usage), **last}


def _plain_request(request: Request) -> Event:
    """The same of a request, field by field: its blocks are many, and plain numbers already."""
    fact: Event = {name: getattr(request, name) for name in _REQUEST}
    for name in _OF_MODELS:
        if not fact[name]:
            del fact[name]
    return {**fact, "slo": request.slo.plain(), "prefix": list(request.prefix)}


def _plain_report(report: EngineReport) -> Event:
    finite: Event = _finite({"asked_s": report.asked_s, **report.numbers()})
    return finite


def report_of(plain: Event) -> EngineReport:
    """The report of a ``reported``. A signal that is not registered any more is left out: no policy reads it."""
    known = ("asked_s", *EngineReport(nan, asleep=True).numbers())
    return EngineReport.by_name(**{"asked_s": nan, **{name: value for name, value in plain.items() if name in known}})


def _plain(fact: Backend) -> Event:
    """A fact as JSON can hold it: what is inf or nan is its default there and left out."""
    finite: Event = _finite(asdict(fact))
    return finite


def _finite(value: Any) -> Any:
    match value:
        case dict():
            finite = {key: _finite(item) for key, item in value.items()}
            return {key: item for key, item in finite.items() if item is not None}
        case float() if not isfinite(value):
            return None
        case tuple() | list():
            return [_finite(item) for item in value]
        case _:
            return value


def plain_command(command: Command) -> Event:
    """A command in the record's form. An account names its request by id alone: the arrival holds the rest."""
    if isinstance(command, RequestRecord):
        named = {f.name: getattr(command, f.name) for f in fields(command) if f.name not in ("request", "usage")}
        plain = {"request_id": command.request.id, **named, "usage": asdict(command.usage)}
    else:
        plain = asdict(command)
    for name in _OF_OTHER_MODELS:
        if not plain.get(name, True):
            del plain[name]
    finite: Event = _finite({"command": type(command).__name__, **plain})
    return finite


def request_of(plain: Event) -> Request:
    """The request of an ``arrived``."""
    slo, among = slo_from(plain.get("slo", {})), tuple(plain.get("among", ()))
    estimated = {"prompt_sigma": TEXT_SIGMA}  # by records that do not say it
    return Request(**{**estimated, **plain, "slo": slo, "prefix": tuple(plain.get("prefix", ())), "among": among})


def backend_of(plain: Event) -> Backend:
    """The backend of a ``backend_joined``."""
    prior: Event = {key: tuple(v) if isinstance(v, list) else v for key, v in plain["prior"].items()}
    named = {key: tuple(plain.get(key, ())) for key in ("models", "adapters")}
    return Backend(**{**plain, **named, "prior": StepCoefficients(**prior)})


def failure_of(plain: Event) -> Failure:
    """The failure of a ``failed``."""
    return Failure(**{**plain, "kind": FailureKind(plain.get("kind", FailureKind.FAULT.value))})


def change_of(plain: Event) -> PeerChange:
    """The change of an ``on_peer_change``."""
    work = {name: Work(**{**each, "load": Load(**each["load"])}) for name, each in plain["work"].items()}
    prompts = [SentPrompt(**{**each, "blocks": tuple(each["blocks"])}) for each in plain["prompts"]]
    held, part, parts = plain.get("held"), plain.get("part", 0), plain.get("parts", 1)
    return PeerChange(
        work,
        plain["whole"],
        tuple(prompts),
        tuple(plain["ejected"]),
        part,
        parts,
        None if held is None else tuple([_held_line(each) for each in held]),
        tuple(
            [Outcome(**{**_OUTCOME, **each, "terms": _numbers(each["terms"])}) for each in plain.get("outcomes", ())]
        ),
        tuple([ReplyLength(**each) for each in plain.get("replies", ())]),
        tuple([Advance(**{**_ADVANCE, **each}) for each in plain.get("advances", ())]),
    )


def _held_line(plain: Event) -> HeldLine:
    ranks = tuple([_numbers(rank) for rank in plain["ranks"]])
    named = {"place": _numbers(plain["place"]), "bounds": _numbers(plain["bounds"]), "ranks": ranks}
    return HeldLine(**{**plain, **named, "times": tuple(plain["times"])})


def _numbers(plain: Sequence[Any]) -> tuple[Any, ...]:
    """Of a peer's, with inf where a record has none: a bound that is none, or what the border drops again."""
    return tuple([inf if each is None else each for each in plain])


_OUTCOME: Final = dict.fromkeys(("actual_s", "constant_s", "log_variance"), inf)  # likewise
_ADVANCE: Final = dict.fromkeys(("total_s", "weight"), inf)


_DECODE: Final[Mapping[str, Callable[[Event], tuple[Any, ...]]]] = {
    "backend_joined": lambda e: (backend_of(e["backend"]),),
    "backend_left": lambda e: (e["name"],),
    "backend_health": lambda e: (e["name"], e["up"]),
    "backend_draining": lambda e: (e["name"], e["draining"]),
    "probe_started": lambda e: (e["name"],),
    "reported": lambda e: (e["name"], report_of(e["report"])),
    "adapters_reported": lambda e: (e["name"], e["running"], e["places"]),
    "adapters_listed": lambda e: (e["name"], e["listed"], e["asked_s"]),
    "on_peer_load": lambda e: (e["peer"], {name: Load(**load) for name, load in e["loads"].items()}),
    "on_peer_change": lambda e: (e["peer"], change_of(e["change"])),
    "forget_silent_peers": lambda _: (),
    "adopt_belief": lambda e: (e["name"], e["learnt"]),
    "arrived": lambda e: (request_of(e["request"]),),
    "committed": lambda e: (e["id"], e["attempt"]),
    "first_token": lambda e: (e["id"], e["attempt"]),
    "served_by": lambda e: (e["id"], e["attempt"], e["backend"]),
    "ended": lambda e: (e["id"], e["attempt"], Usage(**e["usage"])),
    "failed": lambda e: (e["id"], e["attempt"], failure_of(e["failure"])),
    "client_left": lambda e: (e["id"],),
    "paused": lambda e: (e["paused_s"],),
    "ticked": lambda _: (),
}
_PARTIAL: Final = ("failed", "client_left")  # their usage is of what came of a reply
