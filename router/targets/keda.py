"""A target by which KEDA acts: it calls the autoscaler as an external scaler, over gRPC, and sets the replicas itself.

KEDA may call any autoscaler, so those that do not apply answer with what the one that does has advised, and listen only
where they can read it. Must not depend on what KEDA scales. The library for gRPC is an extra, imported when a config
names this target.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import Field, model_validator

from router.targets.target import Advice, Applied, Outcome, Target, TargetSpec

if TYPE_CHECKING:
    from router.keda.service import KedaService


_log = logging.getLogger("headroom")


class KedaSpec(TargetSpec):
    """``host`` and ``port``: where KEDA calls; ``cert`` and ``key``: files, with which it calls over TLS; ``stale_s``:
    advice older than that is not given out.
    """

    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"
    port: Annotated[int, Field(ge=0, le=65_535)] = 9_300
    cert: Path | None = None
    key: Path | None = None
    stale_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together")
        return self

    def make(self, environment: Mapping[str, str]) -> Target:
        """Raises ValueError when the library for gRPC is not installed."""
        if any(find_spec(package) is None for package in ("grpc", "google.protobuf")):
            raise ValueError("target keda needs packages that are missing: pip install 'headroom-router[keda]'")
        from router.keda.service import KedaService  # noqa: PLC0415 - of an extra

        return Keda(self, KedaService(self.stale_s))


class Keda(Target):
    """Keeps the advice for KEDA's next call."""

    def __init__(self, spec: KedaSpec, service: "KedaService") -> None:
        self._spec, self.service = spec, service

    async def apply(self, advice: Advice) -> Applied:
        """Listen, from the first advice on, and give out this number from now on."""
        try:
            await self._listen()
        except OSError as error:
            return Applied(Outcome.FAILED, str(error))
        if self.service.advise(advice.model, advice.variant, advice.replicas):
            return Applied(Outcome.APPLIED, f"given to KEDA on port {self.service.port}")
        return Applied(Outcome.UNCHANGED, "given to KEDA before")

    async def _listen(self) -> None:
        spec = self._spec
        certificate = (spec.cert, spec.key) if spec.cert is not None and spec.key is not None else None
        await self.service.start(f"{spec.host}:{spec.port}", certificate)

    async def stand_by(self, decided: Sequence[Advice] | None, age_s: float) -> None:
        """Give out what the autoscaler that applies has advised; where that is not known, stop listening, so that KEDA
        reaches the one that applies.
        """
        if decided is None:
            await self.service.close()
            return
        for one in decided:
            self.service.advise(one.model, one.variant, one.replicas, age_s)
        try:
            await self._listen()
        except OSError as error:
            _log.warning("KEDA is not answered here while another autoscaler applies advice: %s", error)

    async def close(self) -> None:
        """Stop listening."""
        await self.service.close()


SPEC: Final = KedaSpec
