"""Inputs of an AIPerf run: ``inputs.json``, one JSON document (github.com/ai-dynamo/aiperf).

Sessions of request bodies, in a closed loop: all sessions begin at 0, and a later turn follows the end of the one
before it at once. Tokens of a prompt are estimated from its text. A session with a body without
``max_completion_tokens``, ``max_tokens`` and ``min_tokens`` is left out: it states no length of a reply.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from simulator.traces.entry import LeftOut, Parsed, TraceEntry, TraceFormat
from simulator.traces.fields import estimated_tokens, items, text_of, whole

_LENGTHS: Final = ("max_completion_tokens", "max_tokens", "min_tokens")


def _document(inputs: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Parsed]]]:
    for number, session in enumerate(items(inputs, "data")):
        if not isinstance(session, dict):
            raise ValueError(f"data[{number}]: expected an object with payloads")  # noqa: TRY004 - a bad record
        yield f"data[{number}]", partial(_session, session, number)


def _session(session: Mapping[str, Any], number: int) -> Parsed:
    name = text_of(session, "session_id") or f"session-{number}"
    turns: list[TraceEntry] = []
    for turn, body in enumerate(items(session, "payloads")):
        if not isinstance(body, dict):
            raise ValueError(f"payloads[{turn}] must be an object")  # noqa: TRY004 - a bad record
        length = next((body[key] for key in _LENGTHS if body.get(key) is not None), None)
        if length is None:
            return LeftOut(f"are of a session with a body without {', '.join(_LENGTHS[:-1])} and {_LENGTHS[-1]}")
        tokens = estimated_tokens(body.get("messages", body.get("prompt", "")))
        entry = TraceEntry(0.0, tokens, whole(length, "the length of the reply"), id=f"{name}#{turn}", session=name)
        if turns:
            entry.after = (turns[-1].id,)
        turns.append(entry)
    return turns


FORMAT: Final = TraceFormat(
    "AIPerf inputs",
    line='{"data": [{"session_id": "a", "payloads": [{"model": "m", "messages": [{"role": "user", "content": "Hi"}], '
    '"max_completion_tokens": 16}]}]}',
    arrival="none, sessions begin at 0 seconds",
    document=_document,
    keys=("data",),
    not_keys=("timestamp", "request_id"),  # a request of ServeGen's
    caution="tokens of prompts are estimated from their texts",
)
