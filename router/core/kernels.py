"""One engine as a request meets it, and what it makes of a forecast: loops over candidates, in plain numbers.

These are the reference: ``_kernels.c`` has the same loops in C, equal bit for bit, and ``loops.py`` says which of them
run. What is changed here has to be changed there. Believes the model that ``forecast.py`` describes, and the arrays it
is handed; must not know where those come from, nor any policy.
"""

from collections.abc import Sequence
from math import inf
from math import log as ln
from typing import Final, NamedTuple, cast

import numpy as np

from router.core.arithmetic import Cells, Places, ceil, exp, floor, log2, over, place_below, root
from router.core.columns import (
    AHEAD,
    BAND,
    CACHED,
    CHUNK_TOKENS,
    CONTEXT,
    CONTEXT_TOKENS,
    COUNTED_PEERS,
    DECODING,
    E2E,
    EAGER,
    EXPECTED_TPOT_VIOLATIONS,
    FIRST,
    FIRST_TOKEN_S,
    FIXED,
    FORECAST,
    FULL,
    IMPOSED_DELAY_S,
    KEPT_QUANTILES,
    KV_TOKENS_MAX,
    LOAD,
    LOADS,
    METRICS,
    NETWORK_S,
    PAIR,
    PEERS,
    PREFILL_RATE,
    PREFILL_SHARE,
    PREFILL_TOKENS,
    PREFILLING,
    RATE_AT_S,
    ROOF_POINTS,
    SCALE,
    SEQ,
    SEQS_MAX,
    SHARE,
    SPREADS,
    TAILS,
    TERMS,
    TOKEN,
    TPOT,
    TPOT_BOUND_S,
    TTFT,
    UNATTRIBUTED,
)

# -- the forecast ----------------------------------------------------------------------------------------------------

PREFILL_SHARE_MAX: Final = 0.8  # beyond it the engine hardly decodes; the stretch would be without bound
LEFT_MIN: Final = 0.1  # of a step under way that should be over, as a share of it
WAIT_VARIANCE: Final = 0.5**2  # variance of the log of a wait for room: when others end is chance
SPREAD_MOST: Final = 20.0  # at any quantile: in widths of E2E, which stay below 7, its exponential is far from inf
STEPS_MOST: Final = 1e6  # since the last first token: longer ago is as good as never
NONE_REACH: Final = 1e-9  # a smaller share of replies is rounding
REPLY_MOST: Final = 2.0**17  # tokens; no reply is longer
LOG_2: Final = ln(2.0)
OCTAVE_STEP: Final = 2.0**0.25
STEP_VARIANCE: Final = 1.0 / 12.0  # variance of how much of a step under way is left, in steps


class _Work(NamedTuple):
    """The work of one request. ``held_tokens``: in the KV cache when half of its reply is out; ``mean_*``: of the
    other requests; ``tau_s``, ``peer_tokens_per_s``: see ``_tokens_per_s``.
    """

    now_s: float
    prompt_tokens: float
    mean_prompt_tokens: float
    mean_output_tokens: float
    held_tokens: float
    tau_s: float = 1.0
    peer_tokens_per_s: float = 0.0


class _Engine(NamedTuple):
    """One candidate as a request meets it: its load, how its prompts fall into steps, its seconds as believed."""

    slot: int
    prefilling: float
    queued: float
    batch: float
    context: float
    own: float
    cached: float
    each: float
    room: float
    first: float
    left: float
    full: float
    last: float
    growing: float
    over_batch_s: float
    fixed_s: float
    seq_s: float
    context_s: float
    token_factor: float
    token_s: float
    pair_s: float
    first_s: float
    step_s: float
    scheduled_s: float


class _Ahead(NamedTuple):
    """What is between a send and its first token."""

    steps: float
    waiting: float
    tokens: float
    prompt_s: float
    pair_s: float


def roof_s(roofs: Cells, prior: Cells, slot: int, tokens: float) -> float:
    """The roof over so many tokens in a step, straight between the places of its table (``roof.py``)."""
    place = root(tokens) * prior[slot, SCALE]
    below = place_below(place, ROOF_POINTS - 2)
    low, high = roofs[slot, below], roofs[slot, below + 1]
    return low + (place - below) * (high - low)


def _engine(
    columns: Cells, rows: Cells, prior: Cells, factor: Cells, roofs: Cells, slot: int, i: int, prompt_tokens: float,
    sequences: float,
) -> _Engine:  # fmt: skip
    """The candidate at ``i``, whose load and cached tokens are in ``rows``.

    ``scheduled_s``: of steps that an engine which decodes has made up its mind about before it looks at newcomers. How
    the prompts ahead and the own one fall into steps: the one under way has taken in ``first`` tokens of the queue;
    ``full`` ones and a last with ``last`` take what is ``left``. ``growing``: the batch once its ``sequences`` are in.
    """
    prefilling, batch, context = rows[LOADS + PREFILLING, i], rows[LOADS + DECODING, i], rows[LOADS + CONTEXT_TOKENS, i]
    queued = max(rows[LOADS + PREFILL_TOKENS, i], 0.0)  # sums of floats drift
    cached = rows[CACHED, i]
    own = prompt_tokens - cached
    busy = min(batch + queued, 1.0)
    room = max(columns[CHUNK_TOKENS, slot] - batch, 1.0)
    first = min(queued, room)
    left = queued - first + own
    full = max(ceil(left / room) - 1.0, 0.0)
    over_batch_s = roof_s(roofs, prior, slot, batch * prior[slot, SHARE])
    fixed_s = (prior[slot, FIXED] + over_batch_s) * factor[slot, FIXED]
    seq_s, context_s = prior[slot, SEQ] * factor[slot, SEQ], prior[slot, CONTEXT] * factor[slot, CONTEXT]
    step_s = fixed_s + seq_s * batch + context_s * context
    return _Engine(
        slot, prefilling, queued, batch, context, own, cached,
        queued / max(prefilling, 1.0),
        room, first, left, full,
        left - full * room,
        min(batch + prefilling + sequences, columns[SEQS_MAX, slot]),
        over_batch_s, fixed_s, seq_s, context_s,
        factor[slot, TOKEN],
        prior[slot, TOKEN] * factor[slot, TOKEN],
        prior[slot, PAIR] * factor[slot, PAIR],
        prior[slot, FIRST] * factor[slot, FIRST],
        step_s,
        busy * prior[slot, AHEAD] * factor[slot, AHEAD] * step_s,
    )  # fmt: skip


def _beyond_s(roofs: Cells, prior: Cells, e: _Engine, prompt_tokens: float) -> float:
    """What prompt tokens in a step add to the roof over its batch, softly no less than the launch of their kernels."""
    over_s = roof_s(roofs, prior, e.slot, prompt_tokens + e.batch * prior[e.slot, SHARE]) - e.over_batch_s
    eager_s = prior[e.slot, EAGER] * min(prompt_tokens, 1.0)
    return root(over_s * over_s + eager_s * eager_s)


def _under_way(columns: Cells, e: _Engine, first_roof_s: float, now_s: float) -> float:
    """How much of the step under way is left, as a share of it.

    Half on average. But when the newest prompt ahead was sent ``unanswered_s`` ago by this router, and one step holds
    all that wait: on an engine that had nothing to do its step began at once; on one that decoded it began with the
    next step, and so will ours if that has not come yet.
    """
    unanswered_s = now_s - columns[RATE_AT_S, e.slot]
    if columns[PREFILLING, e.slot] <= 0.0 or unanswered_s < 0.0 or not 0.0 < e.queued <= e.room:
        return 0.5 if e.batch + e.queued > 0.0 else 0.0
    prompt_s = e.token_factor * first_roof_s + e.first * (e.token_s + e.pair_s * (0.5 * e.each))
    joined_s = max(unanswered_s - e.step_s, 0.0) + 0.5 * e.step_s
    gone_s = joined_s if e.batch > 0.0 else unanswered_s
    return min(1.0, max(LEFT_MIN, 1.0 - over(gone_s, e.step_s + prompt_s)))


def _steps_to_room(columns: Cells, e: _Engine, work: _Work) -> float:
    """Steps until enough sequences have ended, where slots or KV are taken; 0 when there is room.

    With ``n`` sequences of mean life L tokens (theirs, not this request's) one ends every L / n steps (they are spread
    evenly over their lives), so the k-th from now is k L / n steps away.
    """
    requests, held = e.prefilling + e.batch, e.queued + e.context
    seqs_over = requests + 1.0 - columns[SEQS_MAX, e.slot]
    kv_over = held + work.held_tokens - columns[KV_TOKENS_MAX, e.slot]
    ahead = max(seqs_over, over(kv_over, work.held_tokens), 0.0)
    return ahead * work.mean_output_tokens / max(min(requests, columns[SEQS_MAX, e.slot]), 1.0)


def _ahead(columns: Cells, prior: Cells, roofs: Cells, e: _Engine, work: _Work) -> _Ahead:
    """The steps before the first token, and what prompt tokens add to them: by roof and network, and by attention."""
    first_roof_s = _beyond_s(roofs, prior, e, e.first)
    under_way = _under_way(columns, e, first_roof_s, work.now_s)
    waiting = _steps_to_room(columns, e, work)
    tokens = e.left + under_way * e.first
    pairs = e.own * (e.cached + 0.5 * e.own) + (tokens - e.own) * (0.5 * e.each)
    beyond_s = under_way * first_roof_s + _beyond_s(roofs, prior, e, e.last)
    if e.full > 0.0:
        beyond_s += e.full * _beyond_s(roofs, prior, e, e.room)
    steps = e.full + under_way + 1.0 + waiting
    return _Ahead(steps, waiting, tokens, beyond_s * e.token_factor + e.token_s * tokens, pairs * e.pair_s)


def _first_token_s(columns: Cells, e: _Engine, ahead: _Ahead) -> float:
    """The mean, as modelled."""
    network_s: float = columns[NETWORK_S, e.slot]
    return ahead.steps * e.step_s + e.scheduled_s + network_s + ahead.prompt_s + ahead.pair_s + e.first_s


def _step_of_life_s(columns: Cells, prior: Cells, factor: Cells, roofs: Cells, e: _Engine, held: float) -> float:
    """A step with this request and those queued before it in the batch."""
    over_batch_s = roof_s(roofs, prior, e.slot, e.growing * prior[e.slot, SHARE])
    fixed_s = (prior[e.slot, FIXED] + over_batch_s) * factor[e.slot, FIXED]
    held = min(e.context + e.queued + held, columns[KV_TOKENS_MAX, e.slot])
    return fixed_s + e.seq_s * e.growing + e.context_s * held


def _prefill_share(
    columns: Cells, prior: Cells, roofs: Cells, e: _Engine, work: _Work, full: bool, step_s: float
) -> float:
    """The share of its time that an engine spends on prompts: on those that are sent to it; on a full engine, which
    takes in one whenever one ends, on those that take the places of its batch (Little 1961).
    """
    mean, piece = work.mean_prompt_tokens, min(work.mean_prompt_tokens, e.room)
    each_s = e.token_factor * over(_beyond_s(roofs, prior, e, piece), piece) + e.token_s + e.pair_s * (mean / 2.0)
    if full:
        taken_in = over(e.growing * mean * each_s, work.mean_output_tokens * step_s)
        share = over(taken_in, 1.0 + taken_in)
    else:
        share = each_s * _tokens_per_s(columns, e.slot, work)
    return min(share, PREFILL_SHARE_MAX)


def _tokens_per_s(columns: Cells, slot: int, work: _Work) -> float:
    """Prompt tokens sent to an engine per second, lately: this router's own and those that peers count for it, which
    fade within ``tau_s``, and for each request that the others decode there ``peer_tokens_per_s``.
    """
    own = columns[PREFILL_RATE, slot] * exp(over(columns[RATE_AT_S, slot] - work.now_s, work.tau_s))
    others = columns[PEERS + DECODING, slot] - columns[COUNTED_PEERS, slot] + columns[UNATTRIBUTED + DECODING, slot]
    return own + others * work.peer_tokens_per_s


def prefill_rates(
    columns: Cells, slots: Places, now_s: float, tau_s: float, peer_tokens_per_s: float, out: Cells
) -> None:
    """Fill ``out`` with the prompt tokens per second of each candidate (``_tokens_per_s``)."""
    work = _Work(now_s, 0.0, 0.0, 0.0, 0.0, tau_s, peer_tokens_per_s)
    for i in range(len(slots)):
        out[i] = _tokens_per_s(columns, slots[i], work)


def resident(
    held: bytes, runs: Sequence[float], slots: Places, block_tokens: float, tokens_most: float, out: Cells
) -> None:
    """Fill ``out`` with the leading tokens of a prompt that each candidate was sent before, ``tokens_most`` at most.

    A run is of successive blocks that the same slots hold: ``runs`` has how many blocks each is, at least one, and
    ``held`` has, one run after the other, the slots that hold it and all before it, a bit each, the lowest first.
    """
    width = len(held) // len(runs)
    for i in range(len(slots)):
        place, blocks = slots[i] >> 3, 0.0
        for run in range(len(runs)):
            if place < width and held[run * width + place] >> (slots[i] & 7) & 1:
                blocks += runs[run]
        out[i] = min(blocks * block_tokens, tokens_most)


def loads(columns: Cells, slots: Places, unreported: Cells, out: Cells) -> None:
    """Fill ``out``, rows as the fields of ``Load``, with the load of each candidate: this router's own, its peers',
    what is unattributed, and what peers have not reported yet. ``unreported``: empty for none.

    By numpy, whose sums are those of plain numbers: Fleet uses this too where no C was built.
    """
    load, more = np.asarray(out), np.asarray(unreported)
    facts = np.asarray(columns)[: UNATTRIBUTED + LOAD].take(np.asarray(slots), axis=1)
    np.add(facts[:LOAD], facts[PEERS : PEERS + LOAD], out=load)
    load += facts[UNATTRIBUTED:]
    if len(more) > 0:
        load += more


def _fill_tails(
    rows: Cells, spread: Cells, slots: Places, row: int, share: float, e2e_width: float, out: Cells, at: int
) -> None:
    for metric in range(METRICS):
        width = e2e_width if metric == E2E else 1.0
        for i in range(len(slots)):
            band, slot = int(rows[BAND, i]), slots[i]
            low = spread[metric, row, band, slot]
            if share != 0.0:
                low = min(low + share * (spread[metric, row + 1, band, slot] - low), SPREAD_MOST)
            out[at + metric, i] = rows[metric, i] * exp(low * width)


def tails(rows: Cells, spread: Cells, slots: Places, row: int, share: float, e2e_width: float, out: Cells) -> None:
    """Fill ``out`` (metrics x candidates) with a quantile of each: the mean times e to the spread at that quantile.

    ``rows``: as ``predicted`` filled them; ``spread``: by metric, tracked quantile, band and slot, of which it
    lies ``share`` of the way from ``row`` to the next; ``e2e_width``: E2E's spread is in widths of this.
    """
    _fill_tails(rows, spread, slots, row, share, e2e_width, out, 0)


def _alive(alive: Cells, per_octave: float, tokens: float) -> float:
    """The probability that a reply has at least so many tokens; ``alive`` by bins of a logarithmic scale."""
    place = per_octave * log2(tokens)
    below = place_below(place, len(alive) - 2)
    return alive[below] + min(place - below, 1.0) * (alive[below + 1] - alive[below])


def in_time(alive: Cells, per_octave: float, cap: float, tokens: Cells, out: Cells) -> None:
    """Fill row 0 of ``out`` with the probability that a reply has at most ``tokens`` tokens, row 1 with what that gains
    by a reply's time of an e-th more: its slope over the log of tokens. ``cap``: no reply is longer (0: any length).
    """
    for i in range(len(tokens)):
        out[0, i] = out[1, i] = 0.0
        if (cap > 0.0 and tokens[i] >= cap) or tokens[i] >= REPLY_MOST:
            out[0, i] = 1.0
        elif tokens[i] >= 1.0:
            out[0, i] = 1.0 - _alive(alive, per_octave, tokens[i])
            out[1, i] = (1.0 - _alive(alive, per_octave, tokens[i] * OCTAVE_STEP) - out[0, i]) * per_octave / LOG_2


def _ends(alive: Cells, per_octave: float, past: float, by: float) -> float:
    """The probability that a reply longer than ``past`` tokens is no longer than ``by``."""
    if by <= past:
        return 0.0
    reached = _alive(alive, per_octave, past + 1.0)
    return 1.0 - over(_alive(alive, per_octave, by + 1.0), reached) if reached > NONE_REACH else 0.0


def _made(columns: Cells, e: _Engine, now_s: float) -> float:
    """Tokens that the reply whose first came last should have by now: it made no more once a prompt behind it began,
    half a step after that was sent. (Where several wait, the newest is known; an earlier one matters little more.)
    """
    until_s = now_s
    if columns[PREFILLING, e.slot] > 0.0:
        until_s = min(now_s, columns[RATE_AT_S, e.slot] + 0.5 * e.step_s)
    steps = over(until_s - columns[FIRST_TOKEN_S, e.slot], e.step_s)
    return floor(1.0 + max(0.0, min(steps, STEPS_MOST)))


def _expected_violations(
    columns: Cells, e: _Engine, over_s: float, spare_s: float, now_s: float, alive: Cells, per_octave: float
) -> float:
    """How many replies' TPOT SLO should be violated where prompts are about to take ``over_s``, and every step has
    ``spare_s`` to make up for it.

    Prompts delay the next token of every reply. One with many tokens to come makes up for it; one that ends within
    ``by`` tokens does not. So it concerns those that wait for their first token there, and the one that had it last.
    """
    by = floor(1.0 + over(over_s, spare_s))
    some = e.prefilling * _ends(alive, per_octave, 1.0, by)
    if e.batch > 0.0:
        some += _ends(alive, per_octave, _made(columns, e, now_s), by)
    return some


def predicted(
    columns: Cells, unreported: Cells, hit: Cells, resident: Cells, counted: float, prior: Cells, factor: Cells,
    roofs: Cells, load_bias: Cells, spread: Cells, slots: Places, now_s: float, prompt_tokens: float,
    mean_prompt_tokens: float, output_tokens: float, mean_output_tokens: float, held_tokens: float, sequences: float,
    tau_s: float, peer_tokens_per_s: float, row: int, share: float, e2e_width: float, alive: Cells, per_octave: float,
    rows: Cells,
) -> None:  # fmt: skip
    """Fill ``rows``, one column a candidate: TTFT, TPOT and E2E (seconds), the band of its load, the same three at a
    quantile (``tails``), CACHED, its load and, where ``alive`` is given, EXPECTED_TPOT_VIOLATIONS.

    ``output_tokens``: of the longest of the request's ``sequences``; ``held_tokens``: of all of them. ``columns``: the
    ledger's; ``unreported``: ``Ledger.unreported_peer_load``, empty for none; ``hit``: by slot, the share that is
    cached, of the whole prompt, or of the ``resident`` tokens that each candidate was sent before (empty: not known),
    which ``counted`` makes of those estimated; ``prior``, ``factor``, ``roofs``: one row a slot; ``load_bias`` and
    ``spread``: by metric, band and slot; ``tau_s`` and ``peer_tokens_per_s``: see ``_tokens_per_s``; ``alive``: of
    replies, the share that reaches each bin, ``per_octave`` of them from one power of two to the next (empty:
    EXPECTED_TPOT_VIOLATIONS is not filled).
    """
    loads(columns, slots, unreported, np.asarray(rows)[LOADS : LOADS + LOAD])
    work = _Work(now_s, prompt_tokens, mean_prompt_tokens, mean_output_tokens, held_tokens, tau_s, peer_tokens_per_s)
    for i in range(len(slots)):
        slot = slots[i]
        rows[CACHED, i] = resident[i] * hit[slot] * counted if len(resident) > 0 else prompt_tokens * hit[slot]
        e = _engine(columns, rows, prior, factor, roofs, slot, i, prompt_tokens, sequences)
        ahead = _ahead(columns, prior, roofs, e, work)
        full = ahead.waiting > 0.0
        band = FULL if full else int(e.queued > 0.0)
        step_s = _step_of_life_s(columns, prior, factor, roofs, e, held_tokens)
        busy = _prefill_share(columns, prior, roofs, e, work, full, step_s)
        rows[TTFT, i] = _first_token_s(columns, e, ahead) * load_bias[TTFT, band, slot]
        rows[TPOT, i] = step_s / (1.0 - busy) * load_bias[TPOT, band, slot]
        rows[E2E, i] = rows[TTFT, i] + max(output_tokens - 1.0, 0.0) * rows[TPOT, i]
        rows[BAND, i] = band
        rows[PREFILL_SHARE, i] = busy
        own_s = (ahead.prompt_s + ahead.pair_s) * e.own / max(ahead.tokens, 1.0)
        rows[IMPOSED_DELAY_S, i] = (e.batch + e.prefilling) * (
            own_s + output_tokens * (e.seq_s * sequences + e.context_s * held_tokens)
        )
        rows[EXPECTED_TPOT_VIOLATIONS, i] = 0.0
        spare_s = columns[TPOT_BOUND_S, slot] - e.step_s
        if len(alive) > 0 and 0.0 < spare_s < inf:
            over_s = ahead.prompt_s + ahead.pair_s
            if over_s > spare_s:
                rows[EXPECTED_TPOT_VIOLATIONS, i] = _expected_violations(
                    columns, e, over_s, spare_s, now_s, alive, per_octave
                )
    _fill_tails(rows, spread, slots, row, share, e2e_width, rows, TAILS)


def at_rest(
    columns: Cells, prior: Cells, factor: Cells, roofs: Cells, load_bias: Cells, slots: Places, prompt_tokens: float,
    output_tokens: float, held_tokens: float, sequences: float, rows: Cells, out: Cells,
) -> None:  # fmt: skip
    """Fill ``out`` (metrics x candidates) with TTFT, TPOT and E2E as they would be with nothing else in flight: what
    waiting could lead to at best. ``rows``: as ``predicted`` filled them, of which CACHED is read.
    """
    work = _Work(0.0, prompt_tokens, prompt_tokens, output_tokens, held_tokens)
    idle = cast("Cells", np.zeros((FORECAST, 1)).data)
    for i in range(len(slots)):
        slot = slots[i]
        idle[CACHED, 0] = rows[CACHED, i]
        e = _engine(columns, idle, prior, factor, roofs, slot, 0, prompt_tokens, sequences)
        ahead = _ahead(columns, prior, roofs, e, work)
        out[TTFT, i] = _first_token_s(columns, e, ahead) * load_bias[TTFT, 0, slot]
        out[TPOT, i] = _step_of_life_s(columns, prior, factor, roofs, e, held_tokens) * load_bias[TPOT, 0, slot]
        out[E2E, i] = out[TTFT, i] + max(output_tokens - 1.0, 0.0) * out[TPOT, i]


def expected(
    columns: Cells, prior: Cells, factor: Cells, roofs: Cells, spread: Cells, slot: int, i: int, now_s: float,
    prompt_tokens: float, mean_output_tokens: float, held_tokens: float, rows: Cells, out: Cells,
) -> float:  # fmt: skip
    """Fill ``out`` with the terms of TTFT at factor 1 on the candidate at ``i`` and with its spreads as they stand now,
    KEPT_QUANTILES a metric from SPREADS on; returns the variance of the log of TTFT by the queue's chance. ``rows``: as
    ``predicted`` filled them.
    """
    work = _Work(now_s, prompt_tokens, prompt_tokens, mean_output_tokens, held_tokens)
    e = _engine(columns, rows, prior, factor, roofs, slot, i, prompt_tokens, 1.0)
    ahead = _ahead(columns, prior, roofs, e, work)
    out[FIXED] = ahead.steps * e.fixed_s
    out[SEQ] = ahead.steps * (e.seq_s * e.batch)
    out[CONTEXT] = ahead.steps * (e.context_s * e.context)
    out[TOKEN] = ahead.prompt_s
    out[PAIR] = ahead.pair_s
    out[FIRST] = e.first_s
    out[AHEAD] = e.scheduled_s
    for term in range(TERMS):
        out[term] = over(out[term], factor[slot, term])
    band = int(rows[BAND, i])
    for metric in range(METRICS):
        for q in range(KEPT_QUANTILES):
            out[SPREADS + KEPT_QUANTILES * metric + q] = spread[metric, q, band, slot]
    step_share = over(e.step_s, rows[TTFT, i])
    waited = ahead.waiting * step_share
    return WAIT_VARIANCE * (waited * waited) + STEP_VARIANCE * (step_share * step_share)


def lived(
    prior: Cells, roofs: Cells, slot: int, stages: float, chunk_tokens: float, steps: float, lasted_s: float,
    decoding_s: float, context_s: float, prompts: float, mean_prompt_tokens: float, out: Cells,
) -> None:  # fmt: skip
    """Fill ``out`` with the terms, at factor 1, of ``steps`` that lasted so long: of the mean batch and context, whose
    integrals over that time are given, and of the prompt tokens that came.
    """
    batch = over(decoding_s, lasted_s)
    rows = over(batch, stages)
    over_batch_s = roof_s(roofs, prior, slot, rows)
    out[FIXED] = (prior[slot, FIXED] + over_batch_s) * steps
    out[SEQ] = prior[slot, SEQ] * (steps * batch)
    out[CONTEXT] = prior[slot, CONTEXT] * (steps * over(context_s, lasted_s))
    out[TOKEN] = prior[slot, TOKEN] * prompts
    out[PAIR] = prior[slot, PAIR] * prompts * mean_prompt_tokens / 2.0
    out[FIRST] = out[AHEAD] = 0.0
    if prompts != 0.0:
        piece, eager_s = min(mean_prompt_tokens, chunk_tokens), prior[slot, EAGER]
        over_s = roof_s(roofs, prior, slot, rows + piece) - over_batch_s
        out[TOKEN] += over(prompts, piece) * root(over_s * over_s + eager_s * eager_s)
