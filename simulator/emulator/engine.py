"""A replica in real time: the simulator's engine behind HTTP, for a gateway to be tried against where no GPU is.

The clock is the event loop's, the scheduler and the step times are exactly those of a replay (walked step by step, as
every token has to be sent when it is made). Must not know: routers. How requests and tokens look on the wire is in
``wire/``.
"""

import asyncio
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import exp
from random import Random
from typing import Any, Final, Protocol

from router.core.types import CHARS_PER_TOKEN
from router.event_loop import on_signal
from simulator.emulator.wire.http import Connection, Exchange
from simulator.errors import Busy
from simulator.pool import Member
from simulator.replica.replica import Replica
from simulator.replica.sequence import Sequence
from simulator.replica.truth import HiddenFactors, true_of

PREFIX_UNIT_TOKENS: Final = 128
BYTES_PER_TOKEN: Final = int(CHARS_PER_TOKEN)  # an emulated engine has no tokenizer
_SPREAD: Final = 0.8  # of the log of reply lengths; production chat traces show 0.7 to 1.1


class LoopClock:
    """The event loop's time, *speedup* times as fast."""

    def __init__(self, loop: asyncio.AbstractEventLoop, speedup: float = 1.0) -> None:
        """Zero is now."""
        self._loop, self._speedup, self._zero_s = loop, speedup, loop.time()

    @property
    def now_s(self) -> float:
        """Seconds of the emulated engine since its start."""
        return (self._loop.time() - self._zero_s) * self._speedup

    def at(self, when_s: float, act: Callable[[Any], None], argument: Any) -> None:
        """Call ``act(argument)`` then; at once if that has passed."""
        self._loop.call_at(self._zero_s + when_s / self._speedup, act, argument)


class Reply(Protocol):
    """The receiver of one sequence's tokens: ``first``, then ``token`` for each in between, then ``last``. For a reply
    of one token, ``first`` and ``last``.
    """

    def first(self) -> None:
        """The first token is there."""
        ...

    def token(self) -> None:
        """One more, not the last."""
        ...

    def last(self, sequence: Sequence) -> None:
        """The last."""
        ...


@dataclass(frozen=True, slots=True)
class Serving:
    """What an emulated engine is started with: its member of a pool, and how it behaves beyond that."""

    member: Member
    model_name: str
    hidden: HiddenFactors
    seed: int = 0
    speedup: float = 1.0
    mean_output_tokens: float = 200.0
    reports_cached_tokens: bool = False


class EmulatedEngine:
    """One emulated engine: prompts in, tokens of replies out."""

    def __init__(self, serving: Serving, loop: asyncio.AbstractEventLoop) -> None:
        """Idle. Its truth is that of the replica of the same name and seed in a replay."""
        member = serving.member
        self.serving, self.limits = serving, member.limits()
        self.clock = LoopClock(loop, serving.speedup)
        truth = true_of(member.prior, serving.hidden, serving.seed, member.name)
        self.replica = Replica(
            member.name,
            truth,
            self.limits,
            self.clock,
            self._first,
            self._finished,
            coalesce=False,
            tokens=self._tokens,
        )
        self._draw = Random(f"{truth.seed}/serve")
        self._replies: dict[Sequence, Reply] = {}
        self.started = 0
        self.rejected = self.succeeded = self.aborted = 0

    # ---- prompts -----------------------------------------------------------------

    @property
    def model_tokens_max(self) -> int:
        """Prompt and reply together."""
        return self.limits.prompt_tokens_max + 1

    def output_tokens(self, prompt_tokens: int, cap: int | None, least: int = 0, *, ignore_end: bool = False) -> int:
        """How long a reply will be: to its cap if its end is ignored, else drawn from a log-normal around the mean."""
        room = max(1, self.model_tokens_max - prompt_tokens)
        most = min(cap or room, room)
        if ignore_end:
            return most
        mean = self.serving.mean_output_tokens
        drawn = round(mean * exp(self._draw.gauss(-(_SPREAD**2) / 2, _SPREAD)))
        return max(1, min(most, max(least, drawn)))

    def generate(self, prompt: "Prompt", output_tokens: int, priority: int, reply: Reply) -> Sequence:
        """Start on a prompt; Busy when as many requests, or tokens of prompts, as it takes are unfinished."""
        if self.replica.refuses(1):
            self.rejected += 1
            raise Busy
        self.started += 1
        hidden = self.serving.hidden
        sequence = Sequence(
            f"s{self.started}",
            prompt.tokens,
            output_tokens,
            priority=priority,
            prefix=prompt.prefix,
            unit_tokens=PREFIX_UNIT_TOKENS,
        )
        self._replies[sequence] = reply
        api_s = hidden.api_s * (1.0 + hidden.api_jitter * (2.0 * self._draw.random() - 1.0))
        self.replica.add(sequence, self.clock.now_s + api_s + hidden.api_token_s * prompt.tokens)
        return sequence

    def drop(self, sequence: Sequence) -> None:
        """Its client is gone."""
        if self._replies.pop(sequence, None) is not None:
            self.aborted += 1
            self.replica.drop(sequence)

    # ---- replies -------------------------------------------------------------------

    def _first(self, sequence: Sequence) -> None:
        reply = self._replies.get(sequence)
        if reply is not None:
            reply.first()

    def _tokens(self, sequences: list[Sequence]) -> None:
        replies = self._replies
        for sequence in sequences:
            reply = replies.get(sequence)
            if reply is not None:
                reply.token()

    def _finished(self, sequence: Sequence) -> None:
        reply = self._replies.pop(sequence, None)
        if reply is not None:
            self.succeeded += 1
            reply.last(sequence)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's length, and hashes of its successive stretches for the prefix cache."""

    tokens: int
    prefix: tuple[Hashable, ...]


def prompt_of(text: bytes) -> Prompt:
    """A prompt in words: so many bytes per token."""
    unit = PREFIX_UNIT_TOKENS * BYTES_PER_TOKEN
    prefix: list[int] = []
    before = 0
    for start in range(0, len(text) - unit + 1, unit):
        before = hash((before, text[start : start + unit]))
        prefix.append(before)
    return Prompt(max(1, -(-len(text) // BYTES_PER_TOKEN)), tuple(prefix))


def prompt_of_ids(ids: list[int]) -> Prompt:
    """A prompt in token ids: exactly so long."""
    prefix: list[int] = []
    before = 0
    for start in range(0, len(ids) - PREFIX_UNIT_TOKENS + 1, PREFIX_UNIT_TOKENS):
        before = hash((before, tuple(ids[start : start + PREFIX_UNIT_TOKENS])))
        prefix.append(before)
    return Prompt(max(1, len(ids)), tuple(prefix))


Dialect = Callable[[EmulatedEngine], Callable[[Exchange], None]]


async def listen(serving: Serving, dialect: Dialect, host: str, port: int) -> tuple[asyncio.Server, set[Connection]]:
    """Serve; the server and its open connections. Port 0 takes a free one."""
    loop = asyncio.get_running_loop()
    handle = dialect(EmulatedEngine(serving, loop))
    connections: set[Connection] = set()
    server = await loop.create_server(lambda: Connection(handle, connections), host, port, reuse_address=True)
    return server, connections


class _EndOfInput(asyncio.Protocol):
    """Calls *act* once standard input is closed."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def connection_lost(self, exc: Exception | None) -> None:
        self._act()


async def serve(
    serving: Serving, dialect: Dialect, host: str, port: int, announce: Callable[[str], None], *, until_eof: bool
) -> None:
    """Serve until SIGINT or SIGTERM, with ``until_eof`` until standard input closes too; then close the connections."""
    server, connections = await listen(serving, dialect, host, port)
    over = asyncio.Event()
    with on_signal(lambda _: over.set()):
        if until_eof:
            await asyncio.get_running_loop().connect_read_pipe(lambda: _EndOfInput(over.set), sys.stdin)
        announce(f"http://{host}:{server.sockets[0].getsockname()[1]}")
        await over.wait()
    server.close()
    for connection in list(connections):
        connection.close()
    await server.wait_closed()


__all__ = ["EmulatedEngine", "Prompt", "Reply", "Serving", "listen", "prompt_of", "prompt_of_ids", "serve"]
