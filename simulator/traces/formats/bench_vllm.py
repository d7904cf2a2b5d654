"""Results of ``vllm bench serve --save-result --save-detailed``: a JSON document, or one a line (``--append-result``).

The real arrivals and lengths of the requests that the benchmark sent (vllm/benchmarks/serve.py); times are of a clock
that counts from an own zero. Without ``--save-detailed`` a result holds no requests.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from simulator.traces.entry import LeftOut, Parsed, TraceEntry, TraceFormat
from simulator.traces.fields import items, seconds, whole

_LISTS: Final = ("start_times", "input_lens", "output_lens")


def _document(result: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Parsed]]]:
    missing = [name for name in _LISTS if name not in result]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: save the result with --save-detailed")
    starts, prompts, outputs = (items(result, name) for name in _LISTS)
    errors = items(result, "errors") or [""] * len(starts)
    if not len(starts) == len(prompts) == len(outputs) == len(errors):
        raise ValueError(f"{', '.join(_LISTS)} and errors must have as many entries as each other")
    for number, values in enumerate(zip(starts, prompts, outputs, errors, strict=True)):
        yield f"request {number}", partial(_read, *values)


def _read(start: object, prompt: object, output: object, error: object) -> TraceEntry | LeftOut:
    tokens = whole(output, "output_lens", 0)
    if error or not tokens:
        return LeftOut("failed there (an error, or no reply)")
    return TraceEntry(seconds(start, "start_times"), whole(prompt, "input_lens"), tokens)


FORMAT: Final = TraceFormat(
    "vLLM benchmark",
    line='{"request_throughput": 2.0, "start_times": [8123.5, 8124.0], "input_lens": [32, 40], "output_lens": [16, 9], '
    '"errors": ["", ""]}',
    arrival="seconds",
    document=_document,
    keys=("request_throughput", "start_times"),
)
