"""Why no backend takes a request, as a refusal.

Must not depend on policies: a request that comes here was never put before one.
"""

from typing import Final

from router.core.decisions import Shed
from router.core.errors import Reason
from router.core.prompts import Prompts
from router.core.roster import Roster
from router.core.types import Request

RETRY_S: Final = 2.0  # about a health check's interval: a backend may be up again by then


def nobody_takes(roster: Roster, request: Request, prompts: Prompts, startable: bool) -> Shed:
    """The refusal of a request that ``Roster.taking`` has no backend for; *startable*: its model may have one soon."""
    model = request.model
    if not roster.models:
        return Shed(Reason.NO_BACKEND, "no backend has been found yet, or none is left", RETRY_S)
    if startable and not roster.serves(model):
        return Shed(Reason.NO_BACKEND, f"no replica of {model!r} runs now", RETRY_S)
    if not roster.serves(model):
        there = ", ".join(roster.models)
        return Shed(Reason.UNKNOWN_MODEL, f"no backend serves {model!r}; models: {there}")
    longest = roster.longest(model)
    least, most = prompts.bounds(request)
    if least >= longest:
        exact = least == most
        tokens = request.prompt_tokens_longest or request.prompt_tokens
        size = f"{tokens}" if exact else f"about {tokens} (at least {least:.0f})"
        why = f"a prompt of {size} tokens; the longest context of any backend of {model!r} is {longest:.0f}"
        return Shed(Reason.TOO_LONG, why)
    kind = "allowed backend" if request.among else "backend"
    return Shed(Reason.NO_BACKEND, f"no {kind} of {model!r} that takes it is up and awake", RETRY_S)
