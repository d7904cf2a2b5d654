"""The part of the border for what routers hold and measured: whether a value of a peer's can be one.

Like ``border.py``, which drops what is none: bounds are wide, and what is taken is finite. Must not depend on how any
of it is used.
"""

from itertools import pairwise
from math import isnan
from typing import Final

from router.core.advances import Advance
from router.core.columns import BANDS, TERMS, TPOT, TTFT
from router.core.evidence import Outcome, ReplyLength
from router.core.held_lines import RANK_MOST, HeldLine
from router.core.held_queue import RANKS_A_LINE

HELD_MOST: Final = 1_000_000  # requests in one line
PLACE_MOST: Final = 8  # values that name a line
MOMENT_S_MOST: Final = 1e12  # away from now; also the largest other number in a rank
OUTCOME_S_MIN: Final = 1e-9  # a shorter time was not measured
OUTCOME_S_MOST: Final = 1e6
LOG_VARIANCE_MOST: Final = 1e3
OUTPUT_TOKENS_MOST: Final = 1 << 20
LANE_MOST: Final = 1 << 20
ADVANCED_S_MOST: Final = 1e12
WEIGHT_MOST: Final = 1e12


def is_line(line: HeldLine) -> bool:
    """Whether it can be what a router holds. Infinite: no bound."""
    ranks, length = line.ranks, len(line.ranks[0]) if line.ranks else 0
    if not 0 < len(ranks) <= min(RANKS_A_LINE, line.count) or line.count > HELD_MOST or length > RANK_MOST:
        return False
    if len(line.place) > PLACE_MOST or len(line.bounds) > PLACE_MOST:
        return False
    if any(isinstance(each, float) and isnan(each) for each in (*line.place, *line.bounds)):
        return False
    if not all(0 <= place < length for place in line.times) or not all(len(rank) == length for rank in ranks):
        return False
    numbers = all(abs(each) < MOMENT_S_MOST for rank in ranks for each in rank)
    return numbers and all(before <= after for before, after in pairwise(ranks))


def is_outcome(seen: Outcome) -> bool:
    """Whether it can have been measured."""
    if seen.metric not in (TTFT, TPOT) or not 0 <= seen.band < BANDS or len(seen.terms) != TERMS:
        return False
    if not all(0.0 <= each <= OUTCOME_S_MOST for each in (*seen.terms, seen.constant_s)):
        return False
    return OUTCOME_S_MIN <= seen.actual_s <= OUTCOME_S_MOST and 0.0 <= seen.log_variance <= LOG_VARIANCE_MOST


def is_reply(reply: ReplyLength) -> bool:
    """Whether an engine can have sent it."""
    return 0 < reply.tokens <= OUTPUT_TOKENS_MOST and 0 <= reply.cap <= OUTPUT_TOKENS_MOST


def is_advance(each: Advance) -> bool:
    """Whether a router can have counted it."""
    return 0 <= each.lane <= LANE_MOST and 0.0 <= each.total_s <= ADVANCED_S_MOST and 0.0 < each.weight <= WEIGHT_MOST
