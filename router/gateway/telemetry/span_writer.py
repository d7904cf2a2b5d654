"""What writes traces, as the rest of the gateway sees it: traces.py implements it and is imported only where they are
configured, since it needs OpenTelemetry's SDK. Must not depend on that SDK.
"""

from collections.abc import Callable
from typing import Protocol

from router.core.explain import Explanation
from router.gateway.traffic.ports import RequestObserver

Explain = Callable[[str], Explanation | None]


class SpanWriter(RequestObserver, Protocol):
    """An observer that exports spans; ``exported`` and ``failed`` count them."""

    @property
    def exported(self) -> int:
        """Spans that the collector took."""

    @property
    def failed(self) -> int:
        """Spans that the collector did not take."""

    def close(self) -> None:
        """Export what is left, unless that takes too long."""
