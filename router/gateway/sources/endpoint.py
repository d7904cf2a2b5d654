"""What a source of backends gives: the whole set of its endpoints, again whenever it has changed.

Must not depend on what becomes of them.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

ENDPOINTS_MAX: Final = 4096  # of one source: what an error of its own may cost here is bounded
_NAME_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One engine. ``labels``: what the source says of it, facts of a backend among them (``facts.py``);
    ``terminating``: it ends soon, so that no new request shall go there.
    """

    name: str
    url: str
    labels: Mapping[str, Any] = field(default_factory=dict)
    terminating: bool = False


class Source(ABC):
    """One place where engines are found."""

    @abstractmethod
    def sets(self) -> AsyncGenerator[tuple[Endpoint, ...], None]:
        """Every set from now on, each whole, the first as soon as it has been read.

        An empty set means that there surely is none. Raises SourceFailed when it cannot be read; it is then called
        again. Ends when it is closed.
        """


def name_of(text: str) -> str:
    """A backend's name made of any text: ``10.0.0.7-8000`` for ``10.0.0.7:8000``."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")[:_NAME_MAX] or "engine"
