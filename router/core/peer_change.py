"""What a router sends its peers at the moment that something changed: plain values.

A change replaces, it adds nothing: a router that misses one is correct again with the next that names the same
backend, and with the next whole one at the latest. A message has a bound, so a large change travels in parts, each of
which holds on its own: parts may come in any order, and one that is lost leaves its own backends alone as they were.
Must not depend on how it travels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from router.core.advances import Advance
from router.core.evidence import Outcome, ReplyLength
from router.core.hashing import hash64
from router.core.held_lines import HeldLine
from router.core.types import Fact, Load

BLOCKS_A_PROMPT: Final = 4_096  # of which peers hear; a longer prompt is known by its beginning
BLOCKS_A_MESSAGE: Final = 8_192
PARTS_MOST: Final = 1_024  # of one whole message
WHOLE_S: Final = 1.0  # period of the whole ones: so long at most a lost message leaves something wrong
BEAT_S: Final = 0.25  # a router sends something at least so often: three beats without a message are silence


@dataclass(frozen=True, slots=True)
class Work(Fact):
    """What a router has in flight on one backend, and two counters since that joined: the prompt tokens that it sent
    there, and those of prompts whose first token came. What they grew by is what happened between two messages.
    """

    load: Load = field(default_factory=Load)
    sent_tokens: float = 0.0
    prefilled_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class SentPrompt(Fact):
    """Block hashes of a prompt that a backend was sent, in their order: those that were not named lately."""

    backend: str
    blocks: tuple[int, ...]
    block_tokens: int


@dataclass(frozen=True, slots=True)
class PeerChange(Fact):
    """``work``: by backend name, of those that changed; with ``whole``, of all that are not idle: of the part
    ``part`` of ``parts`` of all backends, see ``part_of``.

    ``held``: what the router holds, all of it, with moments as seconds from now on; None: that did not change.
    ``advances``: of lanes of the admission policy, see ``advances.py``.

    Hints, which do no harm when they are lost: ``prompts`` that backends were sent and so may hold, backends that this
    router has just ``ejected`` for their own faults, ``outcomes`` and ``replies`` that peers learn from.
    """

    work: Mapping[str, Work]
    whole: bool = False
    prompts: tuple[SentPrompt, ...] = ()
    ejected: tuple[str, ...] = ()
    part: int = 0
    parts: int = 1
    held: tuple[HeldLine, ...] | None = None
    outcomes: tuple[Outcome, ...] = ()
    replies: tuple[ReplyLength, ...] = ()
    advances: tuple[Advance, ...] = ()


NO_CHANGE: Final = PeerChange({})


def part_of(backend: str, parts: int) -> int:
    """The part of a whole message that names a backend, if the backend is not idle."""
    return hash64(backend) % parts if parts > 1 else 0


def in_parts(change: PeerChange, rows_most: int, blocks_most: int) -> Iterator[PeerChange]:
    """The same in parts of about so many backends, and at most so many blocks of prompts, each."""
    if len(change.work) <= rows_most and sum([len(each.blocks) for each in change.prompts]) <= blocks_most:
        yield change
        return
    times = min(max(1, -(-len(change.work) // rows_most)), max(1, PARTS_MOST // change.parts))
    parts = change.parts * times  # part i of n is parts i, i + n, i + 2 n, ... of a multiple of n
    works: list[dict[str, Work]] = [{} for _ in range(times)]
    for name, work in change.work.items():
        works[part_of(name, parts) // change.parts if times > 1 else 0][name] = work
    yield replace(change, work=works[0], prompts=(), parts=parts if change.whole else 1)
    for number, rows in enumerate(works[1:], 1):
        if change.whole:
            yield PeerChange(rows, whole=True, part=change.part + number * change.parts, parts=parts)
        elif rows:
            yield PeerChange(rows)
    for prompts in _in_blocks(change.prompts, blocks_most):
        yield PeerChange({}, prompts=prompts)


def _in_blocks(prompts: tuple[SentPrompt, ...], blocks_most: int) -> Iterator[tuple[SentPrompt, ...]]:
    """The prompts in groups of at most so many blocks; a longer prompt is cut, in its order."""
    group: list[SentPrompt] = []
    blocks = 0
    for prompt in prompts:
        for start in range(0, len(prompt.blocks), blocks_most):
            piece = replace(prompt, blocks=prompt.blocks[start : start + blocks_most])
            if group and blocks + len(piece.blocks) > blocks_most:
                yield tuple(group)
                group, blocks = [], 0
            group.append(piece)
            blocks += len(piece.blocks)
    if group:
        yield tuple(group)
