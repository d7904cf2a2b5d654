"""A canary: a policy that serves a share of the traffic until its attainment decides whether it gets the rest.

Reads request records. Must not depend on what either policy decides. Which requests are the canary's follows from a
hash alone, so that a tenant or a session always gets the same policy. The test is sequential: looks at doubling sample
sizes, each at a level that makes the chance of a wrong verdict over all looks at most ``1 - confidence``.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from math import pi, sqrt
from statistics import NormalDist
from typing import Any, Final, Literal

from router.core import Choice, Fleet, Forecast, Request, Rng
from router.core.decisions import RequestRecord
from router.core.policy import Routing

FIRST_LOOK: Final = 25  # requests of the canary: a policy that fails most of them is returned here
Verdict = Literal["promoted", "returned"]


@dataclass(frozen=True, slots=True)
class Split:
    """Selects the canary's requests: those of ``tenants``, or the ``share`` of keys whose hash is lowest.

    ``by``: the key that is hashed: the request's id, its session (else its tenant, else its id), or its tenant.
    """

    share: float = 0.05
    by: Literal["request", "session", "tenant"] = "request"
    tenants: AbstractSet[str] = frozenset()

    def takes(self, request: Request) -> bool:
        """Whether this request is the canary's."""
        if self.tenants:
            return request.tenant in self.tenants
        return fraction(self._key(request)) < self.share

    def _key(self, request: Request) -> str:
        if self.by == "request":
            return request.id
        return (request.session if self.by == "session" else "") or request.tenant or request.id


def fraction(key: str) -> float:
    """A stable number in [0, 1) for a key: the same in every process."""
    return int.from_bytes(blake2b(key.encode(), digest_size=7).digest()) / 2.0**56


class Canary:
    """A routing policy that calls one of two, by request."""

    __slots__ = ("_candidate", "_serving", "_split")

    def __init__(self, serving: Routing, candidate: Routing, split: Split) -> None:
        self._serving, self._candidate, self._split = serving, candidate, split

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """See Routing."""
        chosen = self._candidate if self._split.takes(request) else self._serving
        return chosen.choose(request, fleet, forecast, rng)


@dataclass(slots=True)
class Arm:
    """Requests that ended, and how many of them met their SLO."""

    requests: int = 0
    met: int = 0

    @property
    def attainment(self) -> float | None:
        """Share that met the SLO; None before the first request."""
        return self.met / self.requests if self.requests else None

    def plain(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "attainment": self.attainment}


@dataclass(slots=True)
class Trial:
    """The two arms of the test and the rule that ends it.

    ``drop_max``: the tolerated drop of attainment; ``sample_min``: requests of each arm before a promotion. After
    ``sample_max`` requests of the canary without a verdict it is returned.
    """

    split: Split
    drop_max: float = 0.01
    confidence: float = 0.95
    sample_min: int = 200
    sample_max: int = 100_000
    arms: dict[str, Arm] = field(default_factory=lambda: {"serving": Arm(), "canary": Arm()})
    verdict: Verdict | None = None
    why: str = ""
    _next: int = FIRST_LOOK
    _looks: int = 0

    def accounted(self, account: RequestRecord) -> Verdict | None:
        """Count a finished request; returns the verdict once. Requests whose client left, or whose error is the
        client's own, are not counted.
        """
        if self.verdict is not None or not account.judged:
            return None
        own = self.split.takes(account.request)
        arm = self.arms["canary" if own else "serving"]
        arm.requests += 1
        arm.met += account.slo_met
        if own and arm.requests >= self._next:
            self._next *= 2
            self._look()
        return self.verdict

    def _look(self) -> None:
        self._looks += 1
        level = (1.0 - self.confidence) * 6.0 / (pi * self._looks) ** 2  # sums to 1 - confidence over all looks
        canary, serving = self.arms["canary"], self.arms["serving"]
        if not serving.requests:
            return
        low, high = difference(serving, canary, level)
        if low > self.drop_max:
            self._decide("returned", f"attainment is lower by at least {low:.1%}")
        elif high < self.drop_max and min(canary.requests, serving.requests) >= self.sample_min:
            self._decide("promoted", f"attainment is lower by at most {max(high, 0.0):.1%}")
        elif canary.requests >= self.sample_max:
            self._decide("returned", f"not shown to be as good within {self.sample_max} requests")

    def _decide(self, verdict: Verdict, why: str) -> None:
        counts = ", ".join(f"{name} {arm.met}/{arm.requests}" for name, arm in self.arms.items())
        self.verdict, self.why = verdict, f"{why} ({counts}; look {self._looks}, confidence {self.confidence:.0%})"

    def plain(self) -> dict[str, Any]:
        """Plain JSON values."""
        arms = {name: arm.plain() for name, arm in self.arms.items()}
        return {
            "arms": arms,
            "drop": drop(self.arms),
            "share": self.split.share,
            "tenants": sorted(self.split.tenants),
            "verdict": self.verdict,
            "why": self.why,
        }


def drop(arms: Mapping[str, Arm]) -> dict[str, float] | None:
    """How much less the canary attains than serving, with the ends of the 95 % interval; None before both have ended
    requests.
    """
    serving, canary = arms["serving"], arms["canary"]
    if not (serving.requests and canary.requests):
        return None
    low, high = difference(serving, canary, 0.025)
    mean = serving.met / serving.requests - canary.met / canary.requests
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}


def difference(serving: Arm, canary: Arm, level: float) -> tuple[float, float]:
    """One-sided bounds, each wrong with a chance of *level*, of how much more serving attains than the canary.

    Newcombe's hybrid of two Wilson intervals (Statistics in Medicine 17, 1998, method 10): right also near 100 %.
    """
    p, q = serving.met / serving.requests, canary.met / canary.requests
    p_low, p_high = wilson(serving, level)
    q_low, q_high = wilson(canary, level)
    low = (p - q) - sqrt((p - p_low) ** 2 + (q_high - q) ** 2)
    high = (p - q) + sqrt((p_high - p) ** 2 + (q - q_low) ** 2)
    return low, high


def wilson(arm: Arm, level: float) -> tuple[float, float]:
    """Wilson's score bounds of a share (JASA 22, 1927), each wrong with a chance of *level*."""
    n, p, z = arm.requests, arm.met / arm.requests, NormalDist().inv_cdf(1.0 - level)
    middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
