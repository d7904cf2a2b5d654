"""A config file that is offered: built, and its policies validated against those that serve.

Apart from ``reload.py``, for ``check`` and the start of ``serve`` need no more than this.
"""

from pathlib import Path

from router.config import settings
from router.core.errors import NotValidated
from router.gateway.config.plan import Plan, make
from router.gateway.rollout.validation import Validation, validate


def offered(path: Path, running: Plan | None, trace: Path | None = None) -> tuple[Plan, Validation]:
    """The plan of the file, validated against the running one and ready to serve. Raises ConfigError, NotValidated."""
    parsed, text = settings.load(path)
    plan = make(parsed, text)
    return accepted(plan, validate(plan, running, trace))


def accepted(plan: Plan, validation: Validation) -> tuple[Plan, Validation]:
    """The plan ready to serve, if its validation allows it. Raises ConfigError, NotValidated."""
    if not validation.ok:
        raise NotValidated(validation.why, validation)
    return plan.loaded(), validation
