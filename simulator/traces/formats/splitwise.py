"""Traces of SplitwiseSim: CSV with seconds (github.com/Mutinifni/splitwise-sim, traces). Sizes are of one sequence."""

from collections.abc import Mapping
from typing import Final

from simulator.traces.entry import LeftOut, TraceEntry, TraceFormat
from simulator.traces.fields import SEQUENCES_MAX, by_columns, count, seconds

_GENERATIVE_LLM: Final = 2  # of its RequestType; the others are not implemented there


def _read(row: Mapping[str, str]) -> TraceEntry | LeftOut:
    if "request_type" in row and count(row, "request_type", 0) != _GENERATIVE_LLM:
        return LeftOut("are of another type than 2, a language model's")
    batch = count(row, "batch_size") if "batch_size" in row else 1
    if batch > SEQUENCES_MAX:
        raise ValueError(f"batch_size must be at most {SEQUENCES_MAX}, got {batch}")
    return TraceEntry(
        seconds(row["arrival_timestamp"], "arrival_timestamp"),
        count(row, "prompt_size") * batch,
        count(row, "token_size") * batch,
        sequences=batch,
        prompts=batch,
    )


FORMAT: Final = TraceFormat(
    "SplitwiseSim",
    line="request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size",
    arrival="seconds",
    parser=by_columns(_read),
    columns=("arrival_timestamp", "prompt_size", "token_size"),
    example="request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    "0,2,0,1,1,4096,32\n",
)
