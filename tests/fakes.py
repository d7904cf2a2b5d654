"""Small real things that tests of the core build worlds from."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import policies
from router.core.decisions import Command, Refuse, RequestRecord, Send
from router.core.dispatcher import Dispatcher
from router.core.flight import DispatchLimits
from router.core.physics import StepCoefficients
from router.core.types import Backend, Load, Request, Slo

STEP = StepCoefficients(0.010, 0.0001, 1e-7, 0.0001, 0.0, 0.005)
_ids = count()


def backend(name: str = "a", *, slower: float = 1.0, models: tuple[str, ...] = ("m",), **facts: Any) -> Backend:
    """A backend whose step takes 10 ms, ``slower`` times."""
    prior = StepCoefficients(0.010 * slower, 0.0001 * slower, 1e-7 * slower, 0.0001 * slower, 0.0, 0.005 * slower)
    return Backend(name, models, prior, **facts)


def assumed(name: str) -> Backend:
    """One of which neither card nor model is known."""
    known = backend(name)
    return replace(known, prior=replace(known.prior, sigma=(1.0,) * 6))


def request(
    request_id: str | None = None, *, arrived_s: float = 0.0, prompt_tokens: int = 100, **facts: Any
) -> Request:
    """A request of 100 prompt tokens for model m without an SLO."""
    facts = {"model": "m", **facts}
    return Request(request_id or f"r{next(_ids)}", arrived_s=arrived_s, prompt_tokens=prompt_tokens, **facts)


def core(
    *backends: Backend,
    routing: str = "least_request",
    parameters: dict[str, Any] | None = None,
    admission: dict[str, Any] | None = None,
    limits: DispatchLimits | None = None,
    seed: int = 7,
) -> Dispatcher:
    """A dispatcher with these backends joined at 0 s."""
    made = Dispatcher(
        policies.find("routing", routing, parameters),
        policies.find("admission", "deadline", admission),
        random.Random(seed),
        limits,
    )
    for each in backends:
        made.backend_joined(each, 0.0)
    return made


def busy_core(*, replies: int = 20, **facts: Any) -> Dispatcher:
    """A dispatcher whose one backend takes 120 ms a token, and 40 ms once its peer's 100 sequences have ended: replies
    of ``replies`` tokens end soon, so that a request with a TPOT between the two is held by slo_headroom.
    """
    made = core(backend(slower=4.0), routing="slo_headroom", **facts)
    for _ in range(100):
        made.belief.lengths.update("m", "default", replies)
    made.on_peer_load("peer", {"a": Load(decoding=100.0, context_tokens=1e5)}, 0.0)
    return made


def sent(commands: Sequence[Command]) -> Send:
    """The one Send among the commands."""
    (send,) = [c for c in commands if isinstance(c, Send)]
    return send


def refused(commands: Sequence[Command]) -> Refuse:
    """The one Refuse among the commands."""
    (refuse,) = [c for c in commands if isinstance(c, Refuse)]
    return refuse


def account(commands: Sequence[Command]) -> RequestRecord:
    """The one RequestRecord among the commands."""
    (done,) = [c for c in commands if isinstance(c, RequestRecord)]
    return done


TIGHT = Slo(ttft_s=1.0, tpot_s=0.05)
