"""The simulator's errors, from the base of all errors of Headroom (router/core/errors.py, which says what they share).

Depends on that page alone. The command line prints the message and ends; only an emulated engine answers HTTP.
"""

from typing import Any

import orjson

from router.core.errors import HeadroomError


class BadLine(HeadroomError, ValueError):
    """A line of a trace is not what its format demands; the message is ``file:line: what was expected``.

    The author of the trace has to correct it; ``skip_bad`` counts such lines and goes on.
    """


class BadRecord(HeadroomError, ValueError):
    """A line is no event of a record of decisions; the message names file and line. Record again, or cut the file."""


class BadFile(HeadroomError, ValueError):
    """A file cannot be read as measurements; the message says where and why. Its author has to correct it."""


class Unreadable(HeadroomError, ValueError):
    """A column of a measurement holds what no number can be made of: the row is left out and reported as skipped."""


class Busy(HeadroomError):
    """The queue of an emulated engine is at its bound: 503, as the real engines answer. Retry elsewhere."""

    status: int = 503


class Refused(HeadroomError):
    """An emulated engine refuses a request with the body that the real one sends (400, 404, 503; per instance)."""

    status: int = 400

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        """*kind* is OpenAI's error type."""
        super().__init__(message)
        self.status = status
        document: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": status}
        self.body = orjson.dumps({"error": document})
