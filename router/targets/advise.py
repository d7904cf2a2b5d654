"""The default target: advice is logged when it changes, and an operator or another tool acts on it.

Must not act. The gauges that the autoscaler sets are the machine-readable form of the same.
"""

import logging
from collections.abc import Mapping
from typing import ClassVar, Final

from router.targets.target import Advice, Applied, Outcome, Target, TargetSpec

_log = logging.getLogger("headroom")


class AdviseSpec(TargetSpec):
    """It has no options."""

    acts: ClassVar[bool] = False

    def make(self, environment: Mapping[str, str]) -> Target:
        """Needs no secret."""
        return Advise()


class Advise(Target):
    """Logs each change."""

    def __init__(self) -> None:
        self._logged: dict[tuple[str, str], int] = {}

    async def apply(self, advice: Advice) -> Applied:
        """One line in the log where the number of replicas differs from the last one logged."""
        key = advice.model, advice.variant
        if self._logged.get(key) == advice.replicas:
            return Applied(Outcome.UNCHANGED, "logged before")
        self._logged[key] = advice.replicas
        _log.info("%s: %d x %s (now %d): %s", advice.model, advice.replicas, advice.variant, advice.running, advice.why)
        return Applied(Outcome.APPLIED, "logged")


SPEC: Final = AdviseSpec
