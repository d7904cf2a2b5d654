"""The range of milliseconds that an SLO may have, and how one is printed."""

from typing import Final

SLO_MS_MIN: Final = 1.0  # without limits of the operator's own: no engine makes a token sooner,
SLO_MS_MAX: Final = 24 * 3600 * 1e3  # and no client waits longer than a day


def milliseconds(ms: float) -> str:
    """A number of milliseconds as an operator would write it: ``86400000``, not ``8.64e+07``."""
    return f"{ms:.10g}"
