"""Policy files as users write them, good and bad, by what they do."""

from pathlib import Path

_HEAD = '''"""A user's own policy."""
from dataclasses import dataclass
import numpy as np
from router.core import Choice, Dispatch, Hold, Reason, Shed

@dataclass(frozen=True)
class Mine:
    among: int = 1

    def choose(self, request, fleet, forecast, rng):
'''
_ENDS = "\n\npolicy = Mine\n"

BODIES = {
    "good": "return Dispatch(int(fleet.slots[int(fleet.requests.argmin())]), 'the fewest requests')",
    "also good": "return Dispatch(int(fleet.slots[int(fleet.load.sum(axis=0).argmin())]), 'the least of all')",
    "slowest": "return Dispatch(int(fleet.slots[int(forecast.e2e_s.argmax())]), 'the slowest')",
    "raises": "return 1 / 0",
    "overruns": "return Dispatch(int(fleet.slots[sum(range(30_000_000)) * 0]), 'late')",
    "sheds": "return Shed(Reason.SATURATED, 'no')",
    "remembers": (
        "for seen in [self.seen]: seen.append(request.id)\n"
        "        return Dispatch(int(fleet.slots[0]), 'the first')\n\n"
        "    seen = [0]"
    ),
    "spins": "while True: pass",
    "dies": "raise SystemExit(3)",
    "raises on long prompts": (
        "if request.prompt_tokens == 4242: raise KeyError('odd')\n"
        "        return Dispatch(int(fleet.slots[int(fleet.requests.argmin())]), 'fewest')"
    ),
}


def policy_text(does: str) -> str:
    """The source of a routing policy that does this."""
    return _HEAD + "        " + BODIES[does] + _ENDS


def policy_file(folder: Path, does: str, name: str = "mine.py") -> Path:
    """The same in a file."""
    path = folder / name
    path.write_text(policy_text(does), encoding="utf-8")
    return path
