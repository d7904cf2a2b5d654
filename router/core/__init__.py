"""The decisions' half of Headroom: a pure state machine and the vocabulary a policy's author needs.

One import line is enough to write a policy:
``from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng``.
"""

from router.core.decisions import ADMIT, Admit, Choice, Dispatch, Hold, Reason, ScaleTo, Shed
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.policy import Admission, Demand, Memory, Routing, Scaling
from router.core.types import NO_SLO, Backend, EngineReport, Request, Rng, Slo, Usage

__all__ = [
    "ADMIT",
    "NO_SLO",
    "Admission",
    "Admit",
    "Backend",
    "Choice",
    "Demand",
    "Dispatch",
    "EngineReport",
    "Fleet",
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
    "Usage",
]
