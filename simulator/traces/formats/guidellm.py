"""Reports of GuideLLM: ``benchmarks.json`` (github.com/vllm-project/guidellm), one JSON document.

The real arrivals and lengths of the requests that completed. A report may hold several benchmarks (a sweep), one after
another: ``--window`` takes one of them.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from simulator.traces.entry import LeftOut, Parsed, TraceEntry, TraceFormat
from simulator.traces.fields import items, member, seconds, text_of, whole

_UNSERVED: Final = ("errored", "incomplete")


def _document(report: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Parsed]]]:
    for number, benchmark in enumerate(items(report, "benchmarks")):
        if not isinstance(benchmark, dict) or not isinstance(benchmark.get("requests"), dict):
            raise ValueError(f"benchmarks[{number}]: expected an object with requests")  # noqa: TRY004 - a bad record
        requests = benchmark["requests"]
        for status in ("successful", *_UNSERVED):
            for index, request in enumerate(items(requests, status)):
                yield f"benchmarks[{number}].requests.{status}[{index}]", partial(_read, request, status)


def _read(request: object, status: str) -> TraceEntry | LeftOut:
    if not isinstance(request, dict):
        raise ValueError("expected an object")  # noqa: TRY004 - a bad record
    if status in _UNSERVED:
        return LeftOut(f"were {status} there")
    info = member(request, "info")
    start = request.get("request_start_time", member(info, "timings").get("request_start", request.get("start_time")))
    prompt, output = (
        _tokens(request, "prompt_tokens", "input_metrics"),
        _tokens(request, "output_tokens", "output_metrics"),
    )
    if not prompt or not output:
        return LeftOut("have no tokens of prompt or reply")
    return TraceEntry(
        seconds(start, "request_start_time"),
        prompt,
        output,
        id=text_of(request, "request_id"),
        session=text_of(info, "conversation_id"),
    )


def _tokens(request: Mapping[str, Any], key: str, metrics: str) -> int:
    value = request.get(key, member(request, metrics).get("text_tokens"))
    return 0 if value is None else whole(value, key, 0)


FORMAT: Final = TraceFormat(
    "GuideLLM",
    line='{"benchmarks": [{"requests": {"successful": [{"request_id": "a", "request_start_time": 1764288000.5, '
    '"prompt_tokens": 256, "output_tokens": 128}], "incomplete": [], "errored": []}}]}',
    arrival="seconds",
    document=_document,
    keys=("benchmarks",),
)
