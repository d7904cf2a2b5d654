"""What a router sends its peers at the moment that something changed: plain values.

A change replaces, it adds nothing: a router that misses one is correct again with the next that names the same
backend, and with the next whole one at the latest. Must not depend on how it travels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from router.core.types import Fact, Load

BLOCKS_A_PROMPT: Final = 4_096  # of which peers hear; a longer prompt is known by its beginning
BLOCKS_A_MESSAGE: Final = 8_192
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
    """``work``: by backend name, of those that changed; with ``whole``, of all that are not idle.

    Two hints, which do no harm when they are lost: ``prompts`` that backends were sent and so may hold, and backends
    that this router has just ``ejected`` for their own faults.
    """

    work: Mapping[str, Work]
    whole: bool = False
    prompts: tuple[SentPrompt, ...] = ()
    ejected: tuple[str, ...] = ()
