"""What the accounts of one worker have used, in a file that outlives its process; only where no shared state sums it.

Of the accounts that the config names: those of other tenants are the clients', without a bound. A worker that starts
again goes on from there, and until it does the others read the file. Written once a second where anything has changed:
a process that is killed loses the use of the last second. Must not depend on what a quota is.
"""

from pathlib import Path
from typing import Any, Final

import orjson

from router.core.quota import Quotas, Use
from router.gateway.control.quota_view import usage
from router.gateway.private_files import replace_content

PERIOD_S: Final = 1.0


class UsedFile:
    """The file of one worker."""

    def __init__(self, path: Path, quotas: Quotas) -> None:
        self._path, self._quotas = path, quotas
        self._written = b""
        self._at_s = 0.0

    def resume(self, now_s: float) -> None:
        """Count what earlier processes of this worker have used."""
        accounts = read(self._path)["accounts"]
        self._quotas.resume({name: Use(**each["used"]) for name, each in accounts.items()}, now_s)

    def write(self, now_s: float, *, due: bool = False) -> None:
        """Write what has been used, once a second or when *due*. Raises OSError."""
        if now_s - self._at_s < PERIOD_S and not due:
            return
        self._at_s = now_s
        accounts = usage(self._quotas, now_s, shared=False, names=self._quotas.summed)["accounts"]
        nothing_now = {"requests_left": None, "tokens_left": None, "running": 0}  # of a process that is no more
        content = orjson.dumps(
            {"month": None, "accounts": {name: each | nothing_now for name, each in accounts.items()}}
        )
        if content != self._written:
            replace_content(self._path, content)
            self._written = content


def read(path: Path) -> dict[str, Any]:
    """A worker's use as `/admin/usage` has it; without accounts before the first."""
    try:
        found: dict[str, Any] = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {"month": None, "accounts": {}}
    return found
