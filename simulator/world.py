"""What surrounds engines and routers: faults, client behaviour, the age of each router's view, scaling. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

KINDS: Final = ("crash", "slow", "drain")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something happens to a backend at ``at_s``, and ends ``for_s`` later.

    ``crash``: everything in it is lost, connections are refused until it is back, its cache is empty then;
    ``slow``: its steps take ``factor`` times as long; ``drain``: the routers stop sending to it.
    """

    at_s: float
    backend: str
    kind: str = "crash"
    for_s: float = inf
    factor: float = 2.0

    def __post_init__(self) -> None:
        """Raises ValueError for an invalid field."""
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.at_s < 0 or self.for_s <= 0 or self.factor <= 0:
            raise ValueError("at_s must be 0 or more, for_s and factor above 0")

    def described(self) -> str:
        """In words."""
        return f"{self.kind} of {self.backend} at {self.at_s:g} s"


@dataclass(frozen=True, slots=True)
class Clients:
    """The behaviour of clients.

    They disconnect after ``timeout_s`` without a first token. If refused they retry up to ``retries`` times, after the
    Retry-After of the refusal and with the wait so far counted; not if the SLO is infeasible: such a refusal forbids
    retries. A share ``leave_share`` of them disconnects at a random point of the reply. ``output_tokens_max``: the cap
    that requests without one of their own state (0: none); one whose reply is longer states twice that, and so on.
    """

    timeout_s: float = inf
    retries: int = 0
    leave_share: float = 0.0
    output_tokens_max: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for an invalid field."""
        if self.timeout_s <= 0 or self.retries < 0 or not 0 <= self.leave_share <= 1:
            raise ValueError("timeout_s must be above 0, retries 0 or more, leave_share 0 to 1")
        if self.output_tokens_max < 0:
            raise ValueError("output_tokens_max must be 0 or more")

    @property
    def patient(self) -> bool:
        """Whether no client ever disconnects or retries."""
        return self.timeout_s == inf and not self.retries and not self.leave_share


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """A scaling policy with its ``parameters``, evaluated every ``every_s``.

    A new replica serves after ``cold_start_s`` and is paid for from its order on. ``replicas_min`` is of all variants
    of a model together, ``replicas_max`` of each.
    """

    policy: str = "headroom"
    every_s: float = 5.0
    cold_start_s: float = 60.0
    replicas_min: int = 1
    replicas_max: int = 16
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for an invalid field."""
        if self.every_s <= 0 or self.cold_start_s < 0:
            raise ValueError("every_s must be above 0, cold_start_s 0 or more")
        if not 0 <= self.replicas_min <= self.replicas_max or not self.replicas_max:
            raise ValueError("expected 0 <= replicas_min <= replicas_max, and replicas_max above 0")


@dataclass(frozen=True, slots=True)
class World:
    """``routers`` share the arrivals at random. Each receives the load of the others every ``sync_s``, or with a finite
    ``push_s`` each change of theirs so much later; it scrapes each engine every ``scrape_s`` (0: never), and sees a
    crash or a recovery ``health_s`` later.
    """

    routers: int = 1
    sync_s: float = 0.05
    scrape_s: float = 1.0
    health_s: float = 1.0
    faults: tuple[Fault, ...] = ()
    clients: Clients = field(default_factory=Clients)
    scaling: Autoscaling | None = None
    push_s: float = inf

    def __post_init__(self) -> None:
        """Raises ValueError for an invalid field."""
        if self.routers < 1 or self.sync_s <= 0 or self.scrape_s < 0 or self.health_s < 0 or not self.push_s >= 0:
            raise ValueError("routers must be 1 or more, sync_s above 0, scrape_s, health_s and push_s 0 or more")
