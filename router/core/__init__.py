"""The decisions' half of Headroom: a pure state machine and the vocabulary a policy's author needs.

One import line is enough to write a policy:
``from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng``. A policy imports nothing deeper.

For policies with compiled loops: ``compiled`` and ``part``; the rows of ``Forecast.rows`` (one column a candidate) and
of ``Fleet.columns`` (one column a slot), which policies/README.md lists; the states of a forecast.
"""

from router.core.compiling import compiled, part
from router.core.decisions import ADMIT, Admit, Choice, Dispatch, Hold, Reason, ScaleTo, Shed
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.hashing import hash64
from router.core.kernels import (
    BAND,
    BROKEN,
    BUSY,
    CACHED,
    CHUNK_TOKENS,
    CONTEXT_TOKENS,
    DECODING,
    E2E,
    FIRST_TOKEN_S,
    FOREIGN,
    FULL,
    KV_TOKENS_MAX,
    KV_USAGE,
    LAST_SENT,
    LOADS,
    NETWORK_S,
    OTHERS,
    OTHERS_BOUND_S,
    PREFILL_RATE,
    PREFILL_TOKENS,
    PREFILLING,
    PREFIX_HIT_RATE,
    PRICE_PER_S,
    RATE_AT_S,
    REPORTED_S,
    SEQS_MAX,
    TAILS,
    TOLL,
    TPOT,
    TPOT_BOUND_S,
    TTFT,
    TURN,
    WEIGHT,
)
from router.core.ledger import Floats, Slots
from router.core.lessons import LEARNING, OFF, TRUSTED
from router.core.policy import Admission, Demand, Memory, Routing, Scaling
from router.core.types import NO_SLO, Backend, EngineReport, Request, Rng, Slo, Usage

__all__ = [
    "ADMIT",
    "BAND",
    "BROKEN",
    "BUSY",
    "CACHED",
    "CHUNK_TOKENS",
    "CONTEXT_TOKENS",
    "DECODING",
    "E2E",
    "FIRST_TOKEN_S",
    "FOREIGN",
    "FULL",
    "KV_TOKENS_MAX",
    "KV_USAGE",
    "LAST_SENT",
    "LEARNING",
    "LOADS",
    "NETWORK_S",
    "NO_SLO",
    "OFF",
    "OTHERS",
    "OTHERS_BOUND_S",
    "PREFILLING",
    "PREFILL_RATE",
    "PREFILL_TOKENS",
    "PREFIX_HIT_RATE",
    "PRICE_PER_S",
    "RATE_AT_S",
    "REPORTED_S",
    "SEQS_MAX",
    "TAILS",
    "TOLL",
    "TPOT",
    "TPOT_BOUND_S",
    "TRUSTED",
    "TTFT",
    "TURN",
    "WEIGHT",
    "Admission",
    "Admit",
    "Backend",
    "Choice",
    "Demand",
    "Dispatch",
    "EngineReport",
    "Fleet",
    "Floats",
    "Forecast",
    "Hold",
    "Memory",
    "Reason",
    "Request",
    "Rng",
    "Routing",
    "ScaleTo",
    "Scaling",
    "Shed",
    "Slo",
    "Slots",
    "Usage",
    "compiled",
    "hash64",
    "part",
]
