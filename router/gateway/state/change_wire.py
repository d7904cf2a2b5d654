"""A router's change as JSON: its sender, the sender's life, the message's number in that life, and the core's value.

The form has a number of its own. Unknown names are passed over. A message that cannot be read is skipped whole: one
with everything follows. Must not depend on how it travels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import orjson

from router.core import border
from router.core.errors import SkipReason, Unreadable
from router.core.peer_change import BLOCKS_A_MESSAGE, PeerChange, SentPrompt, Work
from router.core.types import Load

FORMAT: Final = 1
BYTES_MOST: Final = 1 << 20
_LOAD: Final = len(fields(Load))
_WORK: Final = _LOAD + 2
_NAME_MOST: Final = 256  # characters
_BLOCK_TOKENS_MOST: Final = 1 << 16
_COUNT_MOST: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Envelope:
    """``life``: another one after each start of the sender; ``number``: of the message in that life, from 1."""

    sender: str
    life: int
    number: int
    change: PeerChange


def encoded(envelope: Envelope) -> bytes:
    """The message."""
    change = envelope.change
    return orjson.dumps(
        {
            "format": FORMAT,
            "from": envelope.sender,
            "life": envelope.life,
            "number": envelope.number,
            "whole": change.whole,
            "work": {name: _row(work) for name, work in change.work.items()},
            "prompts": [[each.backend, each.block_tokens, each.blocks] for each in change.prompts],
            "ejected": change.ejected,
        }
    )


def _row(work: Work) -> list[float]:
    load = work.load
    return [
        load.prefilling,
        load.prefill_tokens,
        load.decoding,
        load.context_tokens,
        load.tpot_bound_s,
        load.e2e_tpot_bound_s,
        work.sent_tokens,
        work.prefilled_tokens,
    ]


def decoded(raw: bytes) -> Envelope:
    """The same. What should be a number and is none becomes inf, which the core's border drops. Raises Unreadable."""
    if len(raw) > BYTES_MOST:
        raise Unreadable(SkipReason.TOO_LARGE, f"more than {BYTES_MOST} bytes")
    try:
        plain = orjson.loads(raw)
    except ValueError as error:
        raise Unreadable(SkipReason.UNREADABLE, f"no JSON: {error}") from None
    try:
        _check_form(_count(plain["format"]))
        return Envelope(_name(plain["from"]), _count(plain["life"]), _count(plain["number"]), _change(plain))
    except Unreadable:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(SkipReason.UNREADABLE, f"{type(error).__name__}: {error}") from None


def _check_form(number: int) -> None:
    if number > FORMAT:
        raise Unreadable(SkipReason.NEWER, f"form {number}; this release reads up to {FORMAT}")


def _change(plain: Mapping[str, Any]) -> PeerChange:
    work, prompts, ejected = plain["work"], plain["prompts"], plain["ejected"]
    if len(work) > border.BACKENDS_MOST or len(prompts) > BLOCKS_A_MESSAGE or len(ejected) > border.BACKENDS_MOST:
        raise ValueError(f"{len(work)} backends, {len(prompts)} prompts, {len(ejected)} ejected backends")
    return PeerChange(
        {_name(name): _work(row) for name, row in work.items()},
        plain["whole"] is True,
        tuple([_prompt(*each) for each in prompts]),
        tuple([_name(name) for name in ejected]),
    )


def _work(row: list[Any]) -> Work:
    if len(row) < _WORK:
        raise ValueError(f"expected {_WORK} numbers of a backend, not {len(row)}")
    numbers = [border.number(each) for each in row[:_WORK]]
    return Work(Load(*numbers[:_LOAD]), *numbers[_LOAD:])


def _prompt(backend: Any, block_tokens: Any, blocks: Any) -> SentPrompt:
    if not isinstance(blocks, list) or not all(type(each) is int and 0 <= each < _COUNT_MOST for each in blocks):
        raise ValueError("expected whole numbers as the blocks of a prompt")
    if not 0 < _count(block_tokens) <= _BLOCK_TOKENS_MOST:
        raise ValueError(f"expected blocks of 1 to {_BLOCK_TOKENS_MOST} tokens")
    return SentPrompt(_name(backend), tuple(blocks), block_tokens)


def _name(given: Any) -> str:
    if not isinstance(given, str) or not 0 < len(given) <= _NAME_MOST:
        raise ValueError("expected a short name")
    return given


def _count(given: Any) -> int:
    if type(given) is not int or not 0 <= given < _COUNT_MOST:
        raise ValueError("expected a whole number, 0 or more")
    return given
