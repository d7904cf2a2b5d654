"""Requests that ServeGen generates, one as JSON a line (github.com/alibaba/ServeGen, servegen.construct.Request).

ServeGen returns them as dataclasses: ``json.dumps(dataclasses.asdict(request), default=int)`` is such a line. Images,
audio and video are lists of token counts, and part of the prompt. For its rates over time see ``gen:curve``.
"""

from collections.abc import Mapping
from typing import Any, Final

from simulator.traces.entry import TraceEntry, TraceFormat
from simulator.traces.fields import by_record, count, items, member, seconds, text_of, whole

_MEDIA: Final = ("image_tokens", "audio_tokens", "video_tokens")


def _read(record: Mapping[str, Any]) -> TraceEntry:
    data = member(record, "data")
    media = sum(whole(tokens, key, 0) for key in _MEDIA for tokens in items(data, key))
    prompt = count(data, "input_tokens") if "input_tokens" in data else count(data, "text_tokens", 0) + media
    return TraceEntry(
        seconds(record.get("timestamp"), "timestamp"),
        max(1, prompt),
        max(1, count(data, "output_tokens", 0)),  # its distributions have a share of 0
        id=text_of(record, "request_id"),
    )


FORMAT: Final = TraceFormat(
    "ServeGen",
    line='{"request_id": 0, "timestamp": 0.25, "data": {"input_tokens": 510, "output_tokens": 61}}',
    arrival="seconds",
    parser=by_record(_read),
    keys=("data",),
)
