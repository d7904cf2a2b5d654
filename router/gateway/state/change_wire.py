"""A router's change as JSON: its sender, the sender's life, the message's number in that life, and the core's value.

The form has a number of its own. Unknown names are passed over. A message that cannot be read is skipped whole: one
with everything follows. Must not depend on how it travels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any, Final

import orjson

from router.core import border
from router.core.advances import ADVANCES_A_MESSAGE, Advance
from router.core.border_shared import PLACE_MOST
from router.core.columns import TERMS
from router.core.errors import SkipReason, Unreadable
from router.core.evidence import OUTCOMES_A_MESSAGE, REPLIES_A_MESSAGE, Outcome, ReplyLength
from router.core.held_lines import LINES_A_MESSAGE, RANK_MOST, HeldLine
from router.core.held_queue import RANKS_A_LINE
from router.core.peer_change import BLOCKS_A_MESSAGE, PeerChange, SentPrompt, Work, in_parts
from router.core.types import Load

FORMAT: Final = 1
BYTES_MOST: Final = 1 << 20
PART_BYTES: Final = 1 << 16  # of rows: a datagram between workers holds some 200 kB by default
ROW_BYTES_MOST: Final = 200  # of the numbers of one backend
CHARACTER_BYTES_MOST: Final = 6  # of a name, where JSON escapes it
ROWS_UNDIVIDED: Final = 32  # which fit, whatever their names
BLOCKS_A_PART: Final = 2_048
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
    plain: dict[str, Any] = {
        "format": FORMAT,
        "from": envelope.sender,
        "life": envelope.life,
        "number": envelope.number,
        "whole": change.whole and change.parts == 1,  # else a release before would take a part for all of it
        "work": {name: _row(work) for name, work in change.work.items()},
        "prompts": [[each.backend, each.block_tokens, each.blocks] for each in change.prompts],
        "ejected": change.ejected,
    }
    if change.whole and change.parts > 1:
        plain["part"] = change.part, change.parts
    if change.held is not None:
        plain["held"] = [astuple(line) for line in change.held]
    if change.outcomes:
        plain["outcomes"] = [astuple(each) for each in change.outcomes]
    if change.replies:
        plain["replies"] = [astuple(each) for each in change.replies]
    if change.advances:
        plain["advances"] = [astuple(each) for each in change.advances]
    return orjson.dumps(plain)


def messages(change: PeerChange) -> Iterable[PeerChange]:
    """The change in parts that fit into a datagram each, however many backends it names and however long those are."""
    if len(change.work) <= ROWS_UNDIVIDED:
        rows_most = ROWS_UNDIVIDED
    else:
        longest = max([len(name) for name in change.work])
        rows_most = PART_BYTES // (longest * CHARACTER_BYTES_MOST + ROW_BYTES_MOST)
    return in_parts(change, rows_most, BLOCKS_A_PART)


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
    part, parts = plain.get("part", (0, 1))
    held = plain.get("held")
    return PeerChange(
        {_name(name): _work(row) for name, row in work.items()},
        plain["whole"] is True or "part" in plain,
        tuple([_prompt(*each) for each in prompts]),
        tuple([_name(name) for name in ejected]),
        _count(part),
        _count(parts),
        None if held is None else tuple([_held(*each) for each in _few(held, LINES_A_MESSAGE)]),
        tuple([_outcome(*each) for each in _few(plain.get("outcomes", []), OUTCOMES_A_MESSAGE)]),
        tuple([_reply(*each) for each in _few(plain.get("replies", []), REPLIES_A_MESSAGE)]),
        tuple([_advance(*each) for each in _few(plain.get("advances", []), ADVANCES_A_MESSAGE)]),
    )


def _few(given: Any, most: int) -> list[Any]:
    if not isinstance(given, list) or len(given) > most:
        raise ValueError(f"expected a list of at most {most}")
    return given


def _held(
    model: Any, place: Any, bounds: Any, count: Any, ranks: Any, times: Any, alone: Any, ticket: Any, pool: Any = 0
) -> HeldLine:
    return HeldLine(
        _name(model),
        tuple([each if isinstance(each, str) else border.number(each) for each in _few(place, PLACE_MOST)]),
        _numbers(bounds, PLACE_MOST),
        _count(count),
        tuple([_numbers(rank, RANK_MOST) for rank in _few(ranks, RANKS_A_LINE)]),
        tuple([_count(each) for each in _few(times, RANK_MOST)]),
        alone is True,
        _count(ticket),
        _count(pool),
    )


def _outcome(
    backend: Any, sheet: Any, metric: Any, band: Any, actual_s: Any, constant_s: Any, log_variance: Any, terms: Any
) -> Outcome:
    times = border.number(actual_s), border.number(constant_s), border.number(log_variance)
    return Outcome(_name(backend), _count(sheet), _count(metric), _count(band), *times, _numbers(terms, TERMS))


def _reply(model: Any, slo_class: Any, tokens: Any, cap: Any) -> ReplyLength:
    return ReplyLength(_name(model), _name(slo_class), _count(tokens), _count(cap))


def _advance(lane: Any, total_s: Any, weight: Any) -> Advance:
    return Advance(_count(lane), border.number(total_s), border.number(weight))


def _numbers(given: Any, most: int) -> tuple[float, ...]:
    return tuple([border.number(each) for each in _few(given, most)])


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
