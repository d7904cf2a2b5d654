"""Backends that a source found, as a plan has them beside those that the config lists.

Must not depend on where they were found.
"""

from dataclasses import dataclass

from router.config import settings
from router.gateway.tls import TlsContext


@dataclass(frozen=True, slots=True)
class EngineAccess:
    """How the engines of one source are reached: their bearer token and their certificates."""

    key: str = ""
    certificates: TlsContext | None = None


@dataclass(frozen=True, slots=True)
class FoundBackend:
    """A backend's section, made of what its source said of it and of the config's defaults for that source."""

    given: settings.Backend
    access: EngineAccess = EngineAccess()
