"""The sequences of one request for several choices, or of several prompts: made of the first, and heard as one.

An engine generates each as a request of its own; its API server answers once. Must not depend on routers or policies.
"""

from collections.abc import Hashable
from typing import Protocol

from router.core.flight import Failure
from router.core.types import Request, Usage
from simulator.replica.sequence import Sequence as EngineSequence


class SequenceListener(Protocol):
    """The sender of a sequence, notified of its progress."""

    def on_first_token(self, sequence: EngineSequence) -> None:
        """The first token has arrived."""
        ...

    def on_finished(self, sequence: EngineSequence) -> None:
        """The reply is complete."""
        ...

    def on_failed(self, lost: tuple[EngineSequence, Failure]) -> None:
        """The sequence is lost."""
        ...


class Choices:
    """Listens to all sequences of a request and passes on what its router sees: the first token of any, the end of the
    last, one failure.
    """

    __slots__ = ("_first", "_left", "_listener", "_lost", "_started")

    def __init__(self, first: EngineSequence, listener: SequenceListener) -> None:
        """``first``: the sequence by which the router knows the request."""
        self._first = first
        self._listener = listener
        self._left = 1 + len(first.siblings)
        self._started = self._lost = False

    def on_first_token(self, _: EngineSequence) -> None:
        """Of one of them."""
        if not self._started:
            self._started = True
            self._listener.on_first_token(self._first)

    def on_finished(self, _: EngineSequence) -> None:
        """One of them is complete."""
        self._left -= 1
        if not self._left and not self._lost:
            self._listener.on_finished(self._first)

    def on_failed(self, lost: tuple[EngineSequence, Failure]) -> None:
        """One of them is lost, and the request with it."""
        if not self._lost:
            self._lost = True
            self._listener.on_failed((self._first, lost[1]))


def share(total: int, number: int, of: int) -> int:
    """Of a total that is spread evenly over ``of``, the part of one; the first have what is left over."""
    return max(1, total // of + (1 if number < total % of else 0))


def multiply(first: EngineSequence, request: Request, output_tokens: int, listener: SequenceListener) -> None:
    """Give the first sequence of a request its siblings, none of them longer.

    Those of one prompt find it in the prefix cache, as far as whole blocks go: an engine publishes blocks as soon as
    they are scheduled, and takes such sequences in one after the other.
    """
    count, prompts = request.sequences, request.prompts
    each = max(1, count // prompts)
    siblings: list[EngineSequence] = []
    for number in range(1, count):
        prompt = number // each
        length = min(share(output_tokens, number, count), first.output_tokens)
        tokens = share(request.prompt_tokens, prompt, prompts)
        sibling = EngineSequence(first.id, tokens, length, first.attempt, first.priority)
        sibling.reply_tokens_max = first.reply_tokens_max
        sibling.adapter = first.adapter
        sibling.ends_itself = first.ends_itself or length < first.output_tokens
        if each > 1:
            _cached(sibling, first if prompt == 0 else sibling, prompt)
        siblings.append(sibling)
    if each > 1:
        _cached(first, first, 0)
    first.siblings = tuple(siblings)
    heard = Choices(first, listener)
    for sequence in (first, *siblings):
        sequence.listener = heard


def _cached(sequence: EngineSequence, like: EngineSequence, prompt: int) -> None:
    """Name the whole prompt, beginning with what the trace names of it (that of ``like``), so that it can be found."""
    if not like.prefix:
        sequence.prefix, sequence.unit_tokens = ((like.id, prompt),), sequence.prompt_tokens
        sequence.known_tokens = sequence.prompt_tokens
        return
    unit, known = like.unit_tokens, like.known_tokens
    units = -(-sequence.prompt_tokens // unit) if known <= sequence.prompt_tokens else 0
    rest: tuple[Hashable, ...] = tuple((like.id, prompt, number) for number in range(len(like.prefix), units))
    sequence.prefix, sequence.unit_tokens, sequence.known_tokens = like.prefix + rest, unit, known


def usage_of_all(first: EngineSequence, request: Request) -> Usage:
    """What the API server counts of all sequences together; of several prompts' cached tokens it says nothing."""
    generated = first.generated + sum(sibling.generated for sibling in first.siblings)
    cached = max(0, first.cached_tokens) if request.prompts == 1 else 0
    return Usage(generated, request.prompt_tokens, cached, True)
