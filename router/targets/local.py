"""A target that acts on this machine: engines as processes, started, watched until they answer, drained and ended.

Those that serve stand in ``targets.json``, a list that routers read with ``discover: [{file: ...}]``: an engine joins
when it answers, and leaves the list before it ends. It is ended once no connection to it is open: routers have let go
of it and every stream is over, whatever its protocol. One whose first process has died while others of it live is ended
with these, unless it still answers. Engines outlive the autoscaler, and the next one takes them over.
Must not depend on the router.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from time import time
from typing import Annotated, Final, Literal, Self

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from router.targets import engine_process
from router.targets.engine_table import Engine, EngineTable, Listing, State
from router.targets.target import Advice, Applied, Outcome, Replicas, Target, TargetSpec

_LOOK_S: Final = 0.1
_READY_S: Final = 2.0
_PORTS_MAX: Final = 1_000

_log = logging.getLogger("headroom")

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Port = Annotated[int, Field(ge=1, le=65_535)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


def _command(words: tuple[str, ...]) -> tuple[str, ...]:
    if not any("{port}" in word for word in words):
        raise ValueError("expected {port} in one of its words, for the port on which the engine is to listen")
    return words


class EngineSpec(BaseModel):
    """How engines of a variant are started.

    ``command``: its words, in which {port} and {name} are replaced; ``ports``: first and last; ``environment``: beside
    the autoscaler's own; ``labels``: the facts of a backend that routers read, as ``card`` and ``model``; ``ready``:
    the path that answers 200 when it serves; ``model``: only advice for that model, left out: for any; ``scheme``:
    ``https`` where the command makes the engine serve over TLS.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_command)]
    ports: tuple[_Port, _Port]
    environment: dict[str, str] = {}
    labels: dict[str, str] = {}
    ready: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/health"
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    scheme: Literal["http", "https"] = "http"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        first, last = self.ports
        if not first <= last < first + _PORTS_MAX:
            raise ValueError(f"ports: expected the first and the last of at most {_PORTS_MAX}, not {first} and {last}")
        return self


class LocalSpec(TargetSpec):
    """``folder``: for ``targets.json``, the table of engines and their logs; ``variants``: how each is started.

    ``start_s``: how long an engine may take until it answers; ``quiet_s``: for how long no connection to an engine that
    drains may be open before it is ended; ``drain_s``: after that long it is ended all the same; ``stop_s``: what it
    has between SIGTERM and SIGKILL.
    """

    folder: Path
    variants: Annotated[dict[_Name, EngineSpec], Field(min_length=1)]
    start_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    quiet_s: _Seconds = 5.0
    drain_s: _Seconds = 600.0
    stop_s: _Seconds = 10.0

    @model_validator(mode="after")
    def _ports_apart(self) -> Self:
        ranges = sorted((each.ports, name) for name, each in self.variants.items())
        for (ports, name), (later, other) in pairwise(ranges):
            if later[0] <= ports[1]:
                raise ValueError(f"variants: {name!r} and {other!r} have port {later[0]} in common")
        return self

    def make(self, environment: Mapping[str, str]) -> Target:
        """Raises ValueError where there is no /proc."""
        if not Path("/proc/self/stat").exists():
            raise ValueError("target local needs Linux: it reads processes and connections in /proc")
        return Local(self)


class Local(Target):
    """The engines of one folder."""

    def __init__(self, spec: LocalSpec, clock: Callable[[], float] = time) -> None:
        """``clock``: seconds since the epoch, for what is in the table outlives this process."""
        self._spec, self._clock = spec, clock
        self._table = EngineTable(spec.folder)
        self._listings = {name: Listing(each.scheme, each.labels) for name, each in spec.variants.items()}
        self._busy_s: dict[str, float] = {}  # by draining engine, when a connection to it was open last
        self._faults: dict[str, str] = {}  # by variant, what became of the last engine that was not wanted to end
        self._silent: set[str] = set()  # engines without their first process that did not answer the last time
        self._tending: asyncio.Task[None] | None = None
        no_idle = httpx.Limits(max_keepalive_connections=0)  # an open connection would count as somebody's
        # An engine's certificate bears no name of this machine, and nothing but a path is sent to it.
        self._client = httpx.AsyncClient(timeout=_READY_S, trust_env=False, limits=no_idle, verify=False)

    def _spec_of(self, model: str, variant: str) -> EngineSpec | None:
        spec = self._spec.variants.get(variant)
        return spec if spec is not None and spec.model in {None, model} else None

    async def tend(self) -> None:
        """Take over the engines that are there, and end those that an earlier autoscaler was draining."""
        try:
            if self._table.locked():
                self._look()
                for engine in tuple(self._table.engines.values()):
                    await self._check_orphaned(engine)
        except OSError as error:
            _log.error("engines of %s: %s", self._spec.folder, error)
        finally:
            self._tend()

    async def observe(self, model: str, variant: str) -> Replicas | None:
        """The engines that live."""
        if self._spec_of(model, variant) is None:
            return None
        own = self._tending is not None and not self._tending.done()
        engines = self._table.engines if own else self._table.read()
        living = [each.state for each in engines.values() if each.variant == variant and _lives(each)]
        return Replicas(living.count(State.SERVING), living.count(State.STARTING))

    async def apply(self, advice: Advice) -> Applied:
        """Start what is missing, or drain what is too much; both go on after the call."""
        spec = self._spec_of(advice.model, advice.variant)
        if spec is None:
            return Applied(Outcome.UNCHANGED, f"variant {advice.variant} has no command")
        try:
            if not self._table.locked():
                return Applied(Outcome.FAILED, f"another process changes the engines of {self._spec.folder}")
            self._look()
            if fault := self._faults.pop(advice.variant, ""):
                return Applied(Outcome.FAILED, fault)
            done = await self._changed(advice, spec)
            self._write()
        except OSError as error:
            return Applied(Outcome.FAILED, str(error))
        finally:
            self._tend()
        return Applied(Outcome.APPLIED, done) if done else Applied(Outcome.UNCHANGED, f"{advice.replicas} run")

    async def _changed(self, advice: Advice, spec: EngineSpec) -> str:
        """What was done, empty for nothing. Raises OSError."""
        counted = self._of(advice.variant, State.SERVING, State.STARTING)
        if len(counted) < advice.replicas:
            return await self._more(advice.variant, spec, advice.replicas - len(counted))
        ending = sorted(counted, key=lambda engine: engine.name in advice.drain)[advice.replicas :]
        for engine in ending:
            starting = engine.state is State.STARTING
            self._set(engine, State.ENDING if starting else State.DRAINING)
            if starting:
                engine_process.send(engine.pid, signal.SIGTERM)
        return f"draining {', '.join(each.name for each in ending)}" if ending else ""

    async def _more(self, variant: str, spec: EngineSpec, count: int) -> str:
        """Use those that drain again, then start others. Raises OSError."""
        back = self._of(variant, State.DRAINING)[:count]
        for engine in back:
            self._set(engine, State.SERVING)
        started = [await self._start(variant, spec) for _ in range(count - len(back))]
        return f"serving or starting {', '.join([*(each.name for each in back), *started])}"

    async def _start(self, variant: str, spec: EngineSpec) -> str:
        taken = {each.port for each in self._table.engines.values()}
        ports = range(spec.ports[0], spec.ports[1] + 1)
        port = next((port for port in ports if port not in taken and engine_process.is_free(port)), None)
        if port is None:
            raise OSError(f"no free port for {variant} from {ports[0]} to {ports[-1]}")
        name = f"{variant}-{port}"
        words = [word.replace("{port}", str(port)).replace("{name}", name) for word in spec.command]
        pid, began = await asyncio.to_thread(engine_process.start, words, spec.environment, self._table.log_of(name))
        self._table.engines[name] = Engine(name, variant, port, pid, began, State.STARTING, self._clock())
        self._write()
        _log.info("engine %s: started as process %d, log %s", name, pid, self._table.log_of(name))
        return name

    def _of(self, variant: str, *states: State) -> list[Engine]:
        """The engines of a variant in these states: those of the first state first, the oldest of each first."""
        mine = [each for each in self._table.engines.values() if each.variant == variant]
        return [each for state in states for each in mine if each.state is state]

    def _set(self, engine: Engine, state: State) -> None:
        engine.state, engine.since_s = state, self._clock()
        self._busy_s.pop(engine.name, None)
        _log.info("engine %s: %s", engine.name, state.value)

    def _write(self) -> None:
        self._table.write(self._listings)

    # -- beside the calls ----------------------------------------------------------------------------------------

    def _tend(self) -> None:
        """See to it that what was begun goes on; without anything, another process may change the table."""
        if not self._table.held or (self._tending is not None and not self._tending.done()):
            return
        if any(each.state is not State.SERVING for each in self._table.engines.values()):
            self._tending = asyncio.create_task(self._until_settled(), name="local engines")
        else:
            self._table.unlock()

    async def _until_settled(self) -> None:
        try:
            while any(each.state is not State.SERVING for each in self._table.engines.values()):
                for engine in tuple(self._table.engines.values()):
                    await self._step(engine)
                self._look()
                await asyncio.sleep(_LOOK_S)
        except OSError as error:
            _log.error("engines of %s: %s; tried again with the next change", self._spec.folder, error)
        finally:
            self._table.unlock()

    def _look(self) -> None:
        """Remove the engines that have ended. Raises OSError."""
        for engine in tuple(self._table.engines.values()):
            status = engine_process.reap(engine.pid)
            if _lives(engine):
                if status and engine.state is State.STARTING:  # a start script that has done its work ends with 0
                    self._end_orphaned(engine)
                continue
            del self._table.engines[engine.name]
            self._write()
            if engine.state in {State.STARTING, State.SERVING}:
                last = engine_process.end_of(self._table.log_of(engine.name))
                self._fault(engine, f"engine {engine.name} ended while {engine.state.value}: {last}")
            else:
                _log.info("engine %s: ended", engine.name)

    def _fault(self, engine: Engine, what: str) -> None:
        self._faults[engine.variant] = what
        _log.warning("%s", what)

    async def _step(self, engine: Engine) -> None:
        """What is due for one engine now. Raises OSError."""
        if not _lives(engine):
            return
        for_s = self._clock() - engine.since_s
        if engine.state is State.STARTING:
            await self._step_starting(engine, for_s)
        elif engine.state is State.DRAINING:
            await self._step_draining(engine, for_s)
        elif engine.state is State.ENDING and for_s >= self._spec.stop_s:
            engine_process.send(engine.pid, signal.SIGKILL)

    async def _step_starting(self, engine: Engine, for_s: float) -> None:
        if await self._answers(engine) and engine.state is State.STARTING:
            self._set(engine, State.SERVING)
            self._write()
        elif for_s >= self._spec.start_s and engine.state is State.STARTING:
            self._fault(engine, f"engine {engine.name} did not answer within {self._spec.start_s:g} s")
            self._end(engine)

    async def _check_orphaned(self, engine: Engine) -> None:
        """End one that serves no more, as its first process has died and left others behind. Where that was a start
        script, the engine answers and goes on. Raises OSError.
        """
        if engine.state is not State.SERVING or _leads(engine):
            return
        if await self._answers(engine):
            self._silent.discard(engine.name)
        elif engine.name in self._silent or engine_process.is_free(engine.port):
            self._silent.discard(engine.name)
            self._end_orphaned(engine)
        else:
            self._silent.add(engine.name)  # a busy one may answer the next time

    def _end_orphaned(self, engine: Engine) -> None:
        last = engine_process.end_of(self._table.log_of(engine.name))
        what = f"engine {engine.name} ended while {engine.state.value}, and left processes behind: {last}"
        self._fault(engine, what)
        self._end(engine)

    async def _step_draining(self, engine: Engine, for_s: float) -> None:
        """End it when it is quiet. Routers read the list a moment later than it is written, and so count as busy."""
        now_s = self._clock()
        open_now = await asyncio.to_thread(engine_process.connections, engine.port)
        if engine.state is not State.DRAINING:  # it was put back meanwhile
            return
        if open_now or engine.name not in self._busy_s:
            self._busy_s[engine.name] = now_s
        if now_s - self._busy_s[engine.name] >= self._spec.quiet_s:
            self._end(engine)
        elif for_s >= self._spec.drain_s:
            _log.warning("engine %s: ended with %d connections open, after %g s", engine.name, open_now, for_s)
            self._end(engine)

    def _end(self, engine: Engine) -> None:
        self._set(engine, State.ENDING)
        self._write()
        engine_process.send(engine.pid, signal.SIGTERM)

    async def _answers(self, engine: Engine) -> bool:
        spec = self._spec.variants.get(engine.variant)
        path, scheme = (spec.ready, spec.scheme) if spec is not None else ("/health", "http")
        try:
            async with asyncio.timeout(_READY_S):
                answer = await self._client.get(f"{scheme}://{engine_process.HOST}:{engine.port}{path}")
        except (httpx.HTTPError, TimeoutError):
            return False
        return answer.is_success

    async def close(self) -> None:
        """Leave the engines as they are: the next autoscaler finds them in the table."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        self._table.unlock()
        await self._client.aclose()


def _lives(engine: Engine) -> bool:
    """Whether it, or a part of it, is there."""
    return engine.began > 0 and engine_process.group_lives(engine.pid, engine.began)


def _leads(engine: Engine) -> bool:
    """Whether its first process lives, with whose end it ends as a rule."""
    return engine_process.began(engine.pid) == engine.began


SPEC: Final = LocalSpec
