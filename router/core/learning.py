"""What an attempt teaches the belief: its first token, its end, and that its prompt was too long.

Compares what was predicted at the send with what came. An attempt whose backend has left its slot teaches nothing of
whatever is there now. Must not depend on the dispatcher, nor on why a backend was chosen.
"""

from math import inf

from router.core import border
from router.core.belief import Belief
from router.core.border import DroppedNumbers
from router.core.evidence import ReplyLength
from router.core.flight import Attempt, Failure, Flight
from router.core.ledger import Ledger
from router.core.types import Request, Usage


def learn_answer(belief: Belief, ledger: Ledger, won: Attempt) -> None:
    """An attempt has shown that its backend answers: by its first token, or by a reply that came whole, whatever its
    time says.
    """
    held = won.reservation
    if held.generation == ledger.table.generation[held.slot]:
        belief.shown(held.slot)


def learn_first_token(belief: Belief, ledger: Ledger, won: Attempt, now_s: float) -> None:
    """The first token of an attempt came; its TPOT will be measured from here."""
    held, predicted = won.reservation, won.predicted
    if held.generation != ledger.table.generation[held.slot]:
        return
    if predicted.expectation is None:
        return
    belief.first_token(held.slot, predicted.expectation, predicted.ttft_s, now_s - won.sent_s)
    won.prefilled = ledger.metering.snapshot(held.slot, now_s)


def learn_reply(
    belief: Belief,
    ledger: Ledger,
    request: Request,
    done: Attempt,
    usage: Usage,
    now_s: float,
    last_token_s: float,
) -> None:
    """The reply of an attempt is complete: sizes of prompts and replies, cache hits, TPOT (up to its last token), E2E.
    An estimate of how many tokens it has teaches neither length nor TPOT.
    """
    held, predicted = done.reservation, done.predicted
    belief.prompts.update_by(request, usage.prompt_tokens)
    if usage.output_tokens <= 0:
        return
    tokens = usage.output_tokens / request.sequences  # of each, as far as the engine says
    if not usage.estimated:
        length, cap = max(1, round(tokens)), request.output_tokens_max
        belief.lengths.update(request.model, request.slo_class, length, cap)
        if belief.evidence.replies_left:
            belief.evidence.add_reply(ReplyLength(request.model, request.slo_class, length, cap))
    if held.generation != ledger.table.generation[held.slot]:
        return
    if usage.prompt_tokens > 0:
        share = usage.cached_tokens / usage.prompt_tokens
        belief.cached(held.slot, share, done.resident_share, usage.cached_stated)
    if predicted.expectation is None or done.prefilled is None:
        return
    slot, expected, since = held.slot, predicted.expectation, done.prefilled
    if tokens > 1.0 and not usage.estimated:
        until = ledger.metering.snapshot_before(slot, now_s, last_token_s, since)
        belief.tpot(slot, request.model, expected, predicted.tpot_s, max(tokens - 1.0, 1.0), since, until)
    belief.end(slot, expected, predicted.e2e_s, now_s - done.sent_s)


def learn_context_exceeded(
    belief: Belief, ledger: Ledger, flight: Flight, dead: Attempt, failure: Failure, dropped: DroppedNumbers
) -> None:
    """An engine refused a request as longer than its context: what it counted is known now, and which contexts are too
    short. One that states no length, of a backend that states none either, is taken for the longest there is.
    """
    request, held = flight.request, dead.reservation
    length = float(failure.context_tokens_max or ledger.context_tokens_max(held) or inf)
    flight.context_exceeded_tokens = max(flight.context_exceeded_tokens, length)
    if not failure.prompt_tokens:
        return
    counted = border.usage(Usage(0, failure.prompt_tokens), request, dead.backend, 0, dropped).prompt_tokens
    if failure.at_least:
        belief.prompts.at_least(request, counted)
    elif counted:
        flight.request = belief.prompts.counted(request, counted)
