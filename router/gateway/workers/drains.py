"""What an operator drained or undrained last, for all workers: one file, so that one that starts again drains it too.

By backend's name, since when it has been drained in seconds since the epoch; null: it was undrained. A backend that has
left at the worker that writes has no entry, for it says nothing of the others, where it may still be draining. Must not
depend on what draining does.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import orjson

from router.gateway.private_files import replace_content
from router.gateway.workers.running import alone

Drains = Mapping[str, float]
_Stored = dict[str, float | None]


def agree(file: Path, own: Drains, agreed: Drains, known: Collection[str]) -> Drains:
    """Write what a worker has changed since *agreed*; what it drains from then on. *known*: the backends it has.

    Raises OSError.
    """
    with alone(file):
        before = _read(file)
        stored = _changed(before, own, agreed, known)
        if stored != before:
            replace_content(file, orjson.dumps(stored))
    drained = {name: since_s for name, since_s in stored.items() if since_s is not None}
    return drained | {name: since_s for name, since_s in own.items() if name in known and name not in stored}


def _changed(stored: _Stored, own: Drains, agreed: Drains, known: Collection[str]) -> _Stored:
    """With the changes of one worker. Entries of backends that have been undrained and are gone are forgotten."""
    ended = [name for name in agreed if name not in own]
    whole = stored | {name: None for name in ended if name in known}
    whole |= {name: whole.get(name) or since_s for name, since_s in own.items() if name not in agreed}
    left = {name for name in ended if name not in known}
    left |= {name for name, since_s in whole.items() if since_s is None and known and name not in known}
    return {name: since_s for name, since_s in whole.items() if name not in left}


def _read(file: Path) -> _Stored:
    try:
        found: _Stored = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    return found
