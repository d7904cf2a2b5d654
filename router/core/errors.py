"""What a refusal means in HTTP, on one page, and the one fault that the core raises.

Refusals are decisions (decisions.py), not exceptions. What is wrong with a request before the core hears of it (400
with the field's name, 401, 413) is the gateway's to answer; a stream that breaks after its first byte has no status.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from router.core.decisions import Reason

STATUS: Final[Mapping[Reason, int]] = MappingProxyType(
    {
        Reason.SATURATED: 429,
        Reason.QUEUE_FULL: 429,
        Reason.HOLD_EXPIRED: 429,
        Reason.INFEASIBLE: 429,
        Reason.UNFAIR_SHARE: 429,
        Reason.EVICTED: 429,
        Reason.TOO_LONG: 400,
        Reason.UNKNOWN_MODEL: 404,
        Reason.BACKEND_FAILED: 502,
        Reason.NO_BACKEND: 503,
        Reason.FIRST_BYTE_LATE: 504,
    }
)


class PolicyRejected(Exception):
    """A policy that may not serve: it broke the contract, chose a stranger, or lost the proof."""


def status_of(reason: Reason) -> int:
    """The HTTP status that answers a refusal for this reason."""
    return STATUS[reason]
