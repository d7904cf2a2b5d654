"""The border: every number from outside is checked here, once, before it enters the belief, the ledger or the state.

A number is taken when it is finite, in range and plausible against what it is about. Any other is dropped: it counts
as not given, nothing is learnt from it, and it is counted by source. Nothing here raises for a bad number of an engine
or a peer; only a belief is refused as a whole (``Implausible``), as half of one is of no use.

Bounds are wide. They do not tell a wrong number from a right one; they keep every later sum, logarithm and exponential
finite, and keep out what contradicts itself. Must not depend on how any of these numbers is used.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import inf, isnan, nan
from typing import Any, Final

import numpy as np

from router.core.advances import ADVANCES_A_MESSAGE
from router.core.arrays import Floats
from router.core.border_shared import is_advance, is_line, is_outcome, is_reply
from router.core.columns import BANDS, KEPT_QUANTILES, METRICS, OFF, TERMS
from router.core.errors import Implausible
from router.core.estimators import LOG_FACTOR_MOST, NOISE_MAX, NOISE_MIN
from router.core.evidence import OUTCOMES_A_MESSAGE, REPLIES_A_MESSAGE
from router.core.held_lines import LINES_A_MESSAGE
from router.core.kernels import SPREAD_MOST
from router.core.lengths import BINS
from router.core.peer_change import BLOCKS_A_MESSAGE, PARTS_MOST, PeerChange, Work
from router.core.physics import StepCoefficients
from router.core.signals import Signal, registered
from router.core.types import Backend, EngineReport, Load, Request, Usage

USAGE: Final = "usage"
REPORT: Final = "report"
PEER: Final = "peer"
BELIEF: Final = "belief"
BACKEND: Final = "backend"
CLOCK: Final = "clock"
SOURCES: Final = (USAGE, REPORT, PEER, BELIEF, BACKEND, CLOCK)
SENDERS_MOST: Final = 1000  # whose first dropped number is stored as text

OUTPUT_TOKENS_MOST: Final = 1 << 20  # of one sequence
OUTPUT_FACTOR: Final = 8  # output tokens over the request's own cap: of each of its choices, should there be more
OUTPUT_SLACK_TOKENS: Final = 16
PROMPT_FACTOR: Final = 32  # between an estimate from bytes and the engine's count, either way
PROMPT_SLACK_TOKENS: Final = 4096  # that a chat template or a system prompt of the engine's own may add
SEQUENCES_MOST: Final = 1e6  # on one backend
TOKENS_MOST: Final = 1e10  # in one backend's KV cache or queue
BACKENDS_MOST: Final = 10_000  # of one pool
COUNTER_MOST: Final = 1e15  # tokens that a router ever sent to one backend
DRIFT: Final = 1e-3  # below 0 that is rounding of a sum, and is clipped
AHEAD_S: Final = 1.0  # by which clocks that are compared through a store may differ
FAR_S: Final = 1e12  # a clock never shows so much
BOUND_S_MOST: Final = 1e6  # of the TPOT of an SLO
COEFFICIENT_S_MOST: Final = 1e3  # of one term of one step
SIGMA_MOST: Final = 10.0  # relative error of a data sheet
LOAD_BAND_BIAS_MOST: Final = 3.0  # what is left between model and outcome, as a factor
FLOAT_MOST: Final = 1e300  # an integer beyond it may be no float
SHOWN_MOST: Final = 1 << 60  # a count beyond it is not written out
COVARIANCE_MOST: Final = 1e3  # of log factors; a data sheet's is below 1, and each restart adds a quarter
SEEN_MOST: Final = 1e12
REPLIES_MOST: Final = 1e4  # weight of a distribution of reply lengths; learnt here it stays near 500
CLASSES_MOST: Final = 256  # SLO classes of one model in a belief


class DroppedNumbers:
    """What was dropped. ``by_source``: how many numbers; ``first``: by source and sender, the first one as text (stored
    for ``SENDERS_MOST`` of them).
    """

    __slots__ = ("by_source", "first")

    def __init__(self) -> None:
        self.by_source: dict[str, int] = dict.fromkeys(SOURCES, 0)
        self.first: dict[tuple[str, str], str] = {}

    def add(self, source: str, sender: str, what: str) -> None:
        """Count one number; ``sender``: the backend or peer it came from."""
        self.by_source[source] += 1
        if len(self.first) < SENDERS_MOST:
            self.first.setdefault((source, sender), what)


# -- clocks ------------------------------------------------------------------------------------------------------------


def asked_in_time(report: EngineReport, now_s: float) -> bool:
    """Whether a report's scrape can have begun by now."""
    return -FAR_S < report.asked_s <= now_s + AHEAD_S


# -- the usage of a reply ----------------------------------------------------------------------------------------------


def output_tokens_most(request: Request) -> int:
    """The most tokens that a reply to the request can have, whatever its engine states."""
    cap = request.output_tokens_max
    each_most = min(OUTPUT_TOKENS_MOST, OUTPUT_FACTOR * cap + OUTPUT_SLACK_TOKENS) if cap else OUTPUT_TOKENS_MOST
    return each_most * request.sequences


def usage(given: Usage, request: Request, backend: str, context_tokens_max: int, dropped: DroppedNumbers) -> Usage:
    """The usage with what is plausible for this request; a count that is not becomes 0 (not given).

    ``backend``: the name of the one that served it; ``context_tokens_max``: the longest prompt it takes (0: any).
    Cached tokens that are more than the prompt, or come without it, drop both counts: one of the two is wrong, and
    nothing says which.
    """
    output, prompt, cached = given.output_tokens, given.prompt_tokens, given.cached_tokens
    estimated = request.prompt_tokens
    output_most = output_tokens_most(request)
    prompt_most = PROMPT_FACTOR * estimated + PROMPT_SLACK_TOKENS
    if context_tokens_max:
        prompt_most = min(prompt_most, context_tokens_max * request.prompts)
    output_good = 0 <= output <= output_most
    prompt_good = prompt == 0 or (estimated <= PROMPT_FACTOR * prompt and prompt <= prompt_most)
    cached_good = 0 <= cached <= prompt or cached == 0
    if output_good and prompt_good and cached_good:
        return given
    if not output_good:
        dropped.add(USAGE, backend, f"{_shown(output)} output tokens; expected 0 to {output_most}")
    if not prompt_good:
        dropped.add(USAGE, backend, f"{_shown(prompt)} prompt tokens, estimated {estimated}; at most {prompt_most}")
    if not cached_good:
        dropped.add(USAGE, backend, f"{_shown(cached)} cached tokens of {_shown(prompt)} prompt tokens")
    counted = prompt_good and cached_good
    return Usage(
        output if output_good else 0,
        prompt if counted else 0,
        cached if counted else 0,
        counted and given.cached_stated,
        output_good and given.estimated,
        given.output_tokens_least if output_good else 0,
    )


def _shown(count: int) -> str:
    """A count as text: Python refuses to write out an integer of thousands of digits."""
    return str(count) if -SHOWN_MOST <= count <= SHOWN_MOST else "beyond 2**60"


# -- an engine's report ------------------------------------------------------------------------------------------------


def report(given: EngineReport, name: str, now_s: float, dropped: DroppedNumbers) -> EngineReport | None:
    """The report with what is plausible; a field that is not becomes nan (not reported). None when its time is not."""
    if not asked_in_time(given, now_s):
        source = CLOCK if -FAR_S < given.asked_s < FAR_S else REPORT  # of another clock, or no time at all
        dropped.add(source, name, f"a report of a scrape begun at {given.asked_s} s, read at {now_s} s")
        return None
    if _is_plausible(given):
        return given
    return EngineReport.by_name(
        given.asked_s,
        _in_range(given.running, 0.0, SEQUENCES_MOST, name, "running", dropped),
        _in_range(given.waiting, 0.0, SEQUENCES_MOST, name, "waiting", dropped),
        _in_range(given.kv_tokens_max or nan, 1.0, TOKENS_MOST, name, "kv_tokens_max", dropped),  # 0: not known yet
        **{
            each.name: _signal(each, value, name, dropped)
            for each, value in zip(registered(), given.signals, strict=True)
        },
        asleep=given.asleep,
    )


def _is_plausible(given: EngineReport) -> bool:
    """Whether nothing of the report has to be changed, as of most: then no other one is made."""
    running, waiting, kv_tokens_max = given.running, given.waiting, given.kv_tokens_max
    if not (
        0.0 <= running <= SEQUENCES_MOST and 0.0 <= waiting <= SEQUENCES_MOST and 1.0 <= kv_tokens_max <= TOKENS_MOST
    ):
        return False
    for signal, value in zip(registered(), given.signals, strict=True):
        if not (signal.least <= value <= signal.most or (isnan(value) and isnan(signal.absent))):
            return False
    return True


def _signal(signal: Signal, value: float, name: str, dropped: DroppedNumbers) -> float:
    """The value where it is in the signal's range, clipped where it exceeds it by rounding; else its ``absent``."""
    given = _in_range(value, signal.least, signal.most + signal.rounding, name, signal.name, dropped)
    return signal.absent if isnan(given) else min(given, signal.most)


def _in_range(value: float, least: float, most: float, name: str, field: str, dropped: DroppedNumbers) -> float:
    """The value where it is in range; nan (not reported) stays nan, and anything else becomes it."""
    if least <= value <= most or isnan(value):
        return value
    dropped.add(REPORT, name, f"{field} {value}; expected {least:g} to {most:g}")
    return nan


# -- a peer's load -----------------------------------------------------------------------------------------------------


def loads(given: Mapping[str, Load], peer: str, dropped: DroppedNumbers) -> Mapping[str, Load]:
    """The loads with what is plausible; a field that is not becomes 0 (nothing there, no bound)."""
    for load in given.values():
        if not _whole(load):
            return {name: _checked(load, name, peer, dropped) for name, load in given.items()}
    return given


def peer_change(given: PeerChange, peer: str, dropped: DroppedNumbers) -> PeerChange:
    """The same of what a peer sends at the moment of a change."""
    blocks = sum(len(prompt.blocks) for prompt in given.prompts)
    if blocks > BLOCKS_A_MESSAGE or len(given.ejected) > BACKENDS_MOST:
        dropped.add(PEER, peer, f"{blocks} blocks and {len(given.ejected)} ejected backends in one message")
        given = replace(given, prompts=(), ejected=())
    if not 0 <= given.part < given.parts <= PARTS_MOST:
        dropped.add(PEER, peer, f"part {given.part} of {given.parts}")
        given = replace(given, whole=False, part=0, parts=1)
    if given.held is not None or given.outcomes or given.replies or given.advances:
        given = _shared(given, peer, dropped)
    for work in given.work.values():
        counted = 0.0 <= work.sent_tokens <= COUNTER_MOST and 0.0 <= work.prefilled_tokens <= COUNTER_MOST
        if not counted or not _whole(work.load):
            checked = {name: _work(work, name, peer, dropped) for name, work in given.work.items()}
            return replace(given, work=checked)
    return given


def _shared(given: PeerChange, peer: str, dropped: DroppedNumbers) -> PeerChange:
    """The same with the lines, outcomes and lengths that are plausible."""
    held, outcomes, replies = given.held, given.outcomes, given.replies
    if held is not None:
        held = tuple([line for line in held[:LINES_A_MESSAGE] if is_line(line)])
    outcomes = tuple([each for each in outcomes[:OUTCOMES_A_MESSAGE] if is_outcome(each)])
    replies = tuple([each for each in replies[:REPLIES_A_MESSAGE] if is_reply(each)])
    advances = tuple([each for each in given.advances[:ADVANCES_A_MESSAGE] if is_advance(each)])
    sent = len(given.held or ()) + len(given.outcomes) + len(given.replies) + len(given.advances)
    if len(held or ()) + len(outcomes) + len(replies) + len(advances) < sent:
        dropped.add(PEER, peer, "a line of held requests, an outcome, a length of a reply or an advance of a lane")
    return replace(given, held=held, outcomes=outcomes, replies=replies, advances=advances)


def _work(work: Work, name: str, peer: str, dropped: DroppedNumbers) -> Work:
    return Work(
        work.load if _whole(work.load) else _checked(work.load, name, peer, dropped),
        _load(work.sent_tokens, COUNTER_MOST, name, peer, "sent_tokens", dropped),
        _load(work.prefilled_tokens, COUNTER_MOST, name, peer, "prefilled_tokens", dropped),
    )


def _whole(load: Load) -> bool:
    return (
        0.0 <= load.prefilling <= SEQUENCES_MOST
        and 0.0 <= load.prefill_tokens <= TOKENS_MOST
        and 0.0 <= load.decoding <= SEQUENCES_MOST
        and 0.0 <= load.context_tokens <= TOKENS_MOST
        and 0.0 <= load.tpot_bound_s <= BOUND_S_MOST
        and 0.0 <= load.e2e_tpot_bound_s <= BOUND_S_MOST
    )


def _checked(load: Load, name: str, peer: str, dropped: DroppedNumbers) -> Load:
    return Load(
        _load(load.prefilling, SEQUENCES_MOST, name, peer, "prefilling", dropped),
        _load(load.prefill_tokens, TOKENS_MOST, name, peer, "prefill_tokens", dropped),
        _load(load.decoding, SEQUENCES_MOST, name, peer, "decoding", dropped),
        _load(load.context_tokens, TOKENS_MOST, name, peer, "context_tokens", dropped),
        _load(load.tpot_bound_s, BOUND_S_MOST, name, peer, "tpot_bound_s", dropped),
        _load(load.e2e_tpot_bound_s, BOUND_S_MOST, name, peer, "e2e_tpot_bound_s", dropped),
    )


def _load(value: float, most: float, name: str, peer: str, field: str, dropped: DroppedNumbers) -> float:
    if -DRIFT <= value <= most:
        return max(0.0, value)
    dropped.add(PEER, peer, f"{field} {value} on backend {name}; expected 0 to {most:g}")
    return 0.0


# -- a backend's facts -------------------------------------------------------------------------------------------------

# Field, least, most and what stands where a fact was dropped: the field's default (an object, or a count would become a
# float where this is compiled).
_FACTS: Final[tuple[tuple[str, float, float, object], ...]] = (
    ("seqs_max", 1.0, 1e7, 256),
    ("kv_tokens_max", 1.0, TOKENS_MOST, 200_000),
    ("chunk_tokens", 1.0, 1e8, 2_048),
    ("price_per_hour", 0.0, 1e9, 0.0),
    ("network_s", 0.0, 1e3, 0.0),
    ("weight", 0.0, 1e9, 1.0),
    ("context_tokens_max", 0.0, TOKENS_MOST, 0),
    ("adapter_load_s", 0.0, 3600.0, 0.0),
)
_SECONDS: Final = (
    "seq_s", "context_s", "token_s", "token_context_s", "first_token_s", "weights_s", "gemm_token_s", "experts_s",
    "launch_s", "eager_s",
)  # fmt: skip


def backend(given: Backend, dropped: DroppedNumbers) -> Backend | None:
    """The backend with what is plausible; another fact becomes its default. None when its physics are not: nothing can
    be predicted for it.
    """
    odd = _odd_coefficient(given.prior)
    if odd:
        dropped.add(BACKEND, given.name, odd)
        return None
    instead: dict[str, Any] = {}
    for field, least, most, default in _FACTS:
        value = getattr(given, field)
        if not least <= value <= most:
            dropped.add(BACKEND, given.name, f"{field} {value}; expected {least:g} to {most:g}")
            instead[field] = default
    return replace(given, **instead) if instead else given


def _odd_coefficient(prior: StepCoefficients) -> str:
    """The first coefficient that cannot be, in words; empty when there is none."""
    bounds = [(name, 0.0, COEFFICIENT_S_MOST) for name in _SECONDS]
    bounds += [("fixed_s", 1e-9, COEFFICIENT_S_MOST), ("expert_share", 0.0, 1.0), ("roof_power", 1.0, 16.0)]
    bounds += [("stages", 1.0, 1e4)]
    for name, least, most in bounds:
        value = getattr(prior, name)
        if not least <= value <= most:
            return f"prior.{name} {value}; expected {least:g} to {most:g}"
    if len(prior.sigma) != TERMS - 1 or not all(0.0 <= each <= SIGMA_MOST for each in prior.sigma):
        return f"prior.sigma {prior.sigma}; expected {TERMS - 1} numbers from 0 to {SIGMA_MOST:g}"
    return ""


# -- a belief ----------------------------------------------------------------------------------------------------------


def belief(learnt: Mapping[str, Any]) -> None:
    """Check a belief as ``Belief.export`` writes it, whole. Raises Implausible."""
    regression = _mapping(learnt.get("regression"), "regression")
    _array(regression.get("log_factor"), "regression.log_factor", (TERMS,), -LOG_FACTOR_MOST, LOG_FACTOR_MOST)
    _covariance(regression.get("covariance"))
    _array(regression.get("noise"), "regression.noise", (2,), NOISE_MIN, NOISE_MAX)
    _array(regression.get("seen"), "regression.seen", (), 0.0, SEEN_MOST)
    spread = _array(learnt.get("tails"), "tails", (METRICS, KEPT_QUANTILES, BANDS), -SPREAD_MOST, SPREAD_MOST)
    if (np.diff(spread, axis=1) < 0.0).any():
        raise Implausible("tails: expected spreads that do not fall from one quantile to the next")
    _array(learnt.get("load_band_bias"), "load_band_bias", (2, BANDS), 1.0 / LOAD_BAND_BIAS_MOST, LOAD_BAND_BIAS_MOST)
    _array(learnt.get("hit"), "hit", (), 0.0, 1.0)
    _array(learnt.get("credit", 1.0), "credit", (), 0.0, 1.0)
    state = _array(learnt.get("state"), "state", (), 0.0, float(OFF))
    if float(state) != int(state):
        raise Implausible(f"state: expected a whole number, not {float(state)}")
    for model, classes in _mapping(learnt.get("lengths"), "lengths").items():
        _lengths(_mapping(classes, f"lengths.{model}"), f"lengths.{model}")


def _covariance(given: Any) -> None:
    """A matrix that is no covariance makes a variance negative, and its root nan. What passes for rounding here is far
    below the least noise, which is added before a root is taken.
    """
    matrix = _array(given, "regression.covariance", (TERMS, TERMS), -COVARIANCE_MOST, COVARIANCE_MOST)
    rounding = 1e-9 * max(1.0, float(np.abs(matrix).max()))
    if float(np.abs(matrix - matrix.T).max()) > rounding:
        raise Implausible("regression.covariance: expected a symmetric matrix")
    if float(matrix.diagonal().min()) < 0.0 or float(np.linalg.eigvalsh(matrix).min()) < -rounding:
        raise Implausible("regression.covariance: expected no negative variance in any direction")


def _lengths(classes: Mapping[str, Any], where: str) -> None:
    if len(classes) > CLASSES_MOST:
        raise Implausible(f"{where}: expected at most {CLASSES_MOST} classes, not {len(classes)}")
    for kind, given in classes.items():
        plain, place = _mapping(given, f"{where}.{kind}"), f"{where}.{kind}"
        ended = _array(plain.get("ended"), f"{place}.ended", (BINS,), 0.0, REPLIES_MOST)
        cut = _array(plain.get("cut"), f"{place}.cut", (BINS,), 0.0, REPLIES_MOST)
        if not 0.0 < float(ended.sum() + cut.sum()) <= REPLIES_MOST:
            raise Implausible(f"{place}: expected weights that sum to more than 0 and at most {REPLIES_MOST:g}")


def _mapping(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise Implausible(f"{where}: expected an object")
    return given


def _array(given: Any, where: str, shape: tuple[int, ...], least: float, most: float) -> Floats:
    """As numbers of this shape, each in range (but for rounding)."""
    try:
        numbers: Floats = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise Implausible(f"{where}: expected numbers") from None
    if numbers.shape != shape:
        raise Implausible(f"{where}: expected numbers of shape {shape}, not {numbers.shape}")
    slack = 1e-9 * (abs(least) + abs(most))
    if not ((numbers >= least - slack) & (numbers <= most + slack)).all():
        raise Implausible(f"{where}: expected {least:g} to {most:g}")
    return numbers


# -- numbers that were parsed from text --------------------------------------------------------------------------------


def number(given: Any) -> float:
    """A number as a float; inf, which every check above drops, for what is none."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        return inf
    return float(given) if -FLOAT_MOST <= given <= FLOAT_MOST else inf
