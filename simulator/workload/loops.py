"""Generated workloads whose arrivals follow from others: clients that wait for their replies, and conversations."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from simulator.traces import TraceEntry
from simulator.workload.arrivals import Arrival, Shaper
from simulator.workload.lengths import Lengths
from simulator.workload.recipe import Recipe

UNIT_TOKENS: Final = 128  # that one prefix hash of a generated request covers


class ClosedLoop:
    """A number of clients, each of which has one request in flight or pauses (think time)."""

    def __init__(self, recipe: Recipe, lengths: Lengths, shaper: Shaper, draw: Random) -> None:
        """No request has been sent."""
        self._recipe, self._lengths, self._shaper, self._draw = recipe, lengths, shaper, draw
        self._left = recipe.requests
        self.pending = 0
        self.paced = False

    def __len__(self) -> int:
        return self._recipe.requests

    def __iter__(self) -> Iterator[Arrival]:
        for _ in range(min(self._recipe.clients, self._left)):
            self._left -= 1
            yield self._arrival(0.0)

    def after(self, arrival: Arrival, ended_s: float) -> list[Arrival]:
        """The next request of the same client."""
        if not self._left:
            return []
        self._left -= 1
        self.pending += 1
        think_s = self._draw.expovariate(1 / self._recipe.think) if self._recipe.think else 0.0
        return [self._arrival(ended_s + think_s)]

    def _arrival(self, at_s: float) -> Arrival:
        return self._shaper.arrival(TraceEntry(at_s, *self._lengths()), at_s)


@dataclass(slots=True)
class Conversation:
    """One conversation: its tokens so far, and the turns left."""

    number: int  # from 1
    turns: int
    tokens: int = 0

    @property
    def name(self) -> str:
        """The session id."""
        return f"s{self.number}"


@dataclass
class Sessions:
    """Conversations: every prompt holds all earlier turns and a new question; the system prompt is shared by all."""

    recipe: Recipe
    lengths: Lengths
    shaper: Shaper
    draw: Random
    pending: int = 0
    paced: bool = True
    _started: int = 0
    _conversations: dict[str, Conversation] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.recipe.requests

    def __iter__(self) -> Iterator[Arrival]:
        at_s = 0.0
        while self._started < self.recipe.requests:
            at_s += self.draw.expovariate(self.recipe.rate)
            conversation = Conversation(len(self._conversations) + 1, self._turns(), self.recipe.system)
            self._conversations[conversation.name] = conversation
            yield self._next_turn(conversation, at_s)

    def _turns(self) -> int:
        turns, more = 1, 1 - 1 / self.recipe.turns
        while self.draw.random() < more:
            turns += 1
        return turns

    def after(self, arrival: Arrival, ended_s: float) -> list[Arrival]:
        """The next turn of the same conversation, if there is one."""
        conversation = self._conversations.get(arrival.request.session)
        if conversation is None or not conversation.turns or self._started >= self.recipe.requests:
            return []
        self.pending += 1
        think_s = self.draw.expovariate(1 / self.recipe.think) if self.recipe.think else 0.0
        return [self._next_turn(conversation, ended_s + think_s)]

    def _next_turn(self, conversation: Conversation, at_s: float) -> Arrival:
        question, output = self.lengths()
        self._started += 1
        conversation.turns -= 1
        prompt = conversation.tokens + question
        conversation.tokens = prompt + output
        known = self._units(conversation)
        entry = TraceEntry(
            at_s,
            prompt,
            output,
            session=conversation.name,
            prefix=known[: prompt // UNIT_TOKENS],
            prefix_block_tokens=UNIT_TOKENS,
        )
        return self.shaper.arrival(entry, at_s, known)

    def _units(self, conversation: Conversation) -> tuple[int, ...]:
        """Hashes of the conversation up to the end of this turn; those of the system prompt are the same for all."""
        shared, whole = self.recipe.system // UNIT_TOKENS, conversation.tokens // UNIT_TOKENS
        return tuple(n if n < shared else (conversation.number << 32) + n for n in range(whole))
