"""Formats of other tools, in the forms that those tools write; and the command that lists them."""

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.errors import BadLine
from simulator.experiment import Source
from simulator.traces import TraceEntry, read_trace
from simulator.traces.formats import formats
from simulator.traces.formats.llmservingsim import block_hashes
from tests.commands import simulator_command
from tests.refusals import refused
from tests.simulator.test_traces import written


def document(folder: Path, value: Any, **layout: Any) -> Path:
    return written(folder, json.dumps(value, **layout))


def left_out(path: Path) -> dict[str, int]:
    return read_trace(path).left_out


@pytest.mark.parametrize("each", formats(), ids=lambda each: each.name)
def test_the_example_of_every_format_is_one(tmp_path: Path, each: Any) -> None:
    """It is recognised as its own format, and holds requests."""
    reading = read_trace(written(tmp_path, each.example or each.line))
    assert reading.format == each.name
    assert reading.entries
    assert not reading.left_out


def test_the_command_lists_every_format_with_its_example(tmp_path: Path) -> None:
    """On the screen and as JSON; one by its name; a misspelt name with the nearest."""
    listed = simulator_command(["formats"]).stdout
    out = tmp_path / "out.json"
    assert simulator_command(["formats", "vidur", "--json", str(out)]).exit_code == 0
    for each in formats():
        assert each.name in listed
        assert (each.example or each.line).splitlines()[0] in listed
    assert [each["name"] for each in json.loads(out.read_text())] == ["Vidur"]
    wrong = simulator_command(["formats", "Vidor"])
    assert wrong.exit_code == 2
    assert "did you mean 'Vidur'" in wrong.output


# ---- simulators -------------------------------------------------------------------


def test_vidur_and_splitwise_rows_are_seconds(tmp_path: Path) -> None:
    """Token columns of Vidur may be floats; a batch of Splitwise's is so many sequences of one length."""
    path = written(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n4.5,374.0,44\n")
    assert read_trace(path).entries == [TraceEntry(4.5, 374, 44)]
    head = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    path = written(tmp_path, head + "0,2,0,1,1,4096,32\n1,2,0,3.5,2,100,8\n2,1,0,4,1,9,9\n")
    first, second = read_trace(path).entries
    assert first == TraceEntry(1.0, 4096, 32)
    assert second == TraceEntry(3.5, 200, 16, sequences=2, prompts=2)
    assert left_out(path) == {"are of another type than 2, a language model's": 1}


def test_sessions_of_llmservingsim_follow_ends_and_token_ids_are_prefixes(tmp_path: Path) -> None:
    """Nanoseconds; a tool's time stands with the call before it; equal token ids are equal blocks in every file."""
    ids = list(range(40))
    session = {
        "session_id": "s",
        "arrival_time_ns": 2_000_000_000,
        "sub_requests": [
            {"input_toks": 40, "output_toks": 8, "tool_duration_ns": 500_000_000, "input_tok_ids": ids},
            {"input_toks": 48, "output_toks": 9, "input_tok_ids": [*ids, *range(8)], "output_tok_ids": list(range(9))},
        ],
    }
    flat = {"input_toks": 10, "output_toks": 7, "arrival_time_ns": 1_000_000_000}
    path = written(tmp_path, json.dumps(session) + "\n" + json.dumps(flat) + "\n")
    one, first, second = read_trace(path).entries
    assert one == TraceEntry(1.0, 10, 7)
    assert (first.id, first.after, first.arrived_s) == ("s#0", (), 2.0)
    assert (second.after, second.delay_s, second.session) == (("s#0",), 0.5, "s")
    assert first.prefix == second.prefix[:2] == block_hashes(ids)
    assert (len(second.prefix), second.known_prefix) == (3, ())
    assert block_hashes([1] * 16) != block_hashes([1] * 32)[1:]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"input_toks": 2, "output_toks": 1}, ":1: arrival_time_ns must be a number of nanoseconds"),
        (
            {"input_toks": 2, "output_toks": 1, "arrival_time_ns": 0, "input_tok_ids": [1]},
            ":1: input_tok_ids has 1 ids for 2 tokens",
        ),
        (
            {"arrival_time_ns": 0, "sub_requests": [{"input_toks": 1, "output_toks": 1}, {"input_toks": 1}]},
            ":1: sub_requests[1]: output_toks must be a whole number",
        ),
    ],
)
def test_what_llmservingsim_would_take_is_refused_where_it_is_wrong(tmp_path: Path, line: Any, expected: str) -> None:
    """With file, line and what was expected."""
    path = document(tmp_path, line)
    with refused(BadLine, path, expected):
        read_trace(path)


def test_what_servegen_generates_is_read_with_its_media(tmp_path: Path) -> None:
    """Language and reasoning have input_tokens, multimodal ones text and lists of media tokens; 0 tokens are 1."""
    lines = [
        {"request_id": 0, "timestamp": 0.25, "data": {"input_tokens": 510, "output_tokens": 0, "reason_ratio": 0.5}},
        {
            "request_id": 1,
            "timestamp": 1.5,
            "data": {
                "text_tokens": 10,
                "output_tokens": 5,
                "image_tokens": [100, 200],
                "audio_tokens": [],
                "video_tokens": [7],
            },
        },
    ]
    first, second = read_trace(written(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))).entries
    assert first == TraceEntry(0.25, 510, 1, id="0")
    assert second == TraceEntry(1.5, 317, 5, id="1")


def test_an_offline_job_arrives_at_once(tmp_path: Path) -> None:
    """Traces with lengths are played; those with hashes alone say why not."""
    path = document(tmp_path, {"request_id": 0, "type": "text", "input_length": 61, "output_length": 9, "duration": 3})
    assert read_trace(path).entries == [TraceEntry(0.0, 61, 9, id="0", slo_class="text")]
    path = document(tmp_path, {"request_id": 0, "type": "text", "input_length": 20, "hash_ids": [1, 2], "img_ids": []})
    assert left_out(path) == {"have no output_length (traces a to c have hashes alone)": 1}


# ---- benchmarks -------------------------------------------------------------------


def aiperf(start_ns: int, **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"x_request_id": f"r{start_ns}", "request_start_ns": start_ns, "benchmark_phase": "profiling"},
        "metrics": {
            "input_sequence_length": {"value": 550, "unit": "tokens"},
            "output_sequence_length": {"value": 9, "unit": "tokens"},
        },
        "error": None,
        **more,
    }


def test_aiperf_records_are_replayed_as_they_arrived(tmp_path: Path) -> None:
    """Warm-up and failures are left out, each counted."""
    failed = aiperf(7, metrics={"error_isl": {"value": 1, "unit": "tokens"}}, error={"code": 499, "type": "Cancelled"})
    warmup = aiperf(8)
    warmup["metadata"]["benchmark_phase"] = "warmup"
    lines = [aiperf(3_000_000_000), aiperf(1_500_000_000), failed, warmup, aiperf(9, metrics={})]
    path = written(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    assert [(e.arrived_s, e.prompt_tokens, e.output_tokens) for e in read_trace(path).entries] == [
        (1.5, 550, 9),
        (3.0, 550, 9),
    ]
    assert left_out(path) == {
        "failed there or were cancelled": 1,
        "are of the warm-up": 1,
        "have no tokens of prompt or reply": 1,
    }


def test_aiperf_inputs_are_closed_loops(tmp_path: Path) -> None:
    """A later turn follows the one before; a session with a body that states no length is left out."""
    said = {"model": "m", "messages": [{"role": "user", "content": "word " * 100}], "max_completion_tokens": 16}
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "word " * 100}]}], "max_tokens": 4}
    sessions = [{"session_id": "a", "payloads": [said, parts]}, {"session_id": "b", "payloads": [{"prompt": "x"}]}]
    path = document(tmp_path, {"data": sessions}, indent=1)
    first, second = read_trace(path).entries
    assert (first.id, first.output_tokens, second.after, second.output_tokens) == ("a#0", 16, ("a#0",), 4)
    assert 80 < first.prompt_tokens == second.prompt_tokens < 200
    assert sum(left_out(path).values()) == 1
    assert Source((str(path),)).left_out()[0] == f"{path}: tokens of prompts are estimated from their texts"


def guidellm(**more: Any) -> dict[str, Any]:
    return {"request_id": "a", "request_start_time": 5.5, "prompt_tokens": 256, "output_tokens": 128, **more}


def test_a_report_of_guidellm_holds_what_completed(tmp_path: Path) -> None:
    """Of every benchmark in it; older reports have start_time, newer ones the metrics beside."""
    old = {"request_id": "b", "start_time": 6.5, "prompt_tokens": 10, "output_tokens": 3}
    timed = {
        "request_id": "c",
        "info": {"timings": {"request_start": 7.5}, "conversation_id": "s"},
        "input_metrics": {"text_tokens": 4},
        "output_metrics": {"text_tokens": 2},
    }
    requests = {"successful": [guidellm(), old], "incomplete": [guidellm()], "errored": None, "total": None}
    report = {"metadata": {}, "benchmarks": [{"requests": requests}, {"requests": {"successful": [timed]}}]}
    path = document(tmp_path, report, indent=2)
    assert read_trace(path).entries == [
        TraceEntry(5.5, 256, 128, id="a"),
        TraceEntry(6.5, 10, 3, id="b"),
        TraceEntry(7.5, 4, 2, id="c", session="s"),
    ]
    assert left_out(path) == {"were incomplete there": 1}


def test_results_of_vllm_bench_have_their_real_arrivals(tmp_path: Path) -> None:
    """One document, or one a line as --append-result writes them."""
    result = {
        "request_throughput": 2.0,
        "start_times": [10.5, 11.0, 12.0],
        "input_lens": [32, 40, 7],
        "output_lens": [16, 0, 9],
        "errors": ["", "refused", ""],
    }
    path = written(tmp_path, json.dumps(result) + "\n" + json.dumps({**result, "start_times": [1, 2, 3]}))
    assert [(e.arrived_s, e.prompt_tokens, e.output_tokens) for e in read_trace(path).entries] == [
        (1.0, 32, 16),
        (3.0, 7, 9),
        (10.5, 32, 16),
        (12.0, 7, 9),
    ]
    assert left_out(path) == {"failed there (an error, or no reply)": 2}


def test_requests_of_inference_perf_are_an_array(tmp_path: Path) -> None:
    """With the present metrics and the older ones beside them."""
    now = {"request_metrics": {"text": {"input_tokens": 512}}, "response_metrics": {"output_tokens": 128}}
    then = {"input_tokens": 40, "output_tokens": 8, "output_token_times": [1.0]}
    lines = [
        {"start_time": 101.25, "end_time": 103.5, "request": "{}", "response": "", "info": now, "error": None},
        {"start_time": 102.0, "end_time": 103.5, "request": "{}", "response": "", "info": then, "error": None},
        {"start_time": 103.0, "end_time": 103.5, "info": now, "error": {"error_type": "Timeout", "error_msg": "x"}},
    ]
    path = document(tmp_path, lines, indent=2)
    assert read_trace(path).entries == [TraceEntry(101.25, 512, 128), TraceEntry(102.0, 40, 8)]
    assert left_out(path) == {"failed there (error)": 1}


# ---- spans ------------------------------------------------------------------------


def span(name: str, at_s: int, parent: str = "", status: int = 0, **attributes: Any) -> dict[str, Any]:
    pairs = [
        {"key": "gen_ai." + key, "value": {"intValue" if isinstance(value, int) else "stringValue": str(value)}}
        for key, value in attributes.items()
    ]
    return {
        "spanId": name,
        "parentSpanId": parent,
        "name": "chat m",
        "startTimeUnixNano": str(at_s * 10**9),
        "attributes": pairs,
        "status": {"code": status},
    }


def otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


def usage(prompt: int, output: int, **more: Any) -> dict[str, Any]:
    return {"operation.name": "chat", "usage.input_tokens": prompt, "usage.output_tokens": output, **more}


def test_spans_of_calls_are_requests(tmp_path: Path) -> None:
    """A document a line; calls alone, by either name of the usage; failures and calls without usage are counted."""
    call = span("1", 5, **usage(512, 128, **{"request.model": "m", "conversation.id": "c", "request.max_tokens": 200}))
    vllm = span("2", 6, **{"usage.prompt_tokens": 9, "usage.completion_tokens": 4})
    others = [
        span("3", 7, status=2, **usage(1, 1)),
        span("4", 8, **{"operation.name": "chat"}),
        span("5", 9, **{**usage(1, 1), "operation.name": "invoke_agent"}),
        span("6", 9),
    ]
    path = written(tmp_path, json.dumps(otlp(call)) + "\n" + json.dumps(otlp(vllm, *others)) + "\n")
    assert read_trace(path).entries == [
        TraceEntry(5.0, 512, 128, tenant="m", session="c", output_tokens_max=200),
        TraceEntry(6.0, 9, 4),
    ]
    assert left_out(path) == {
        "failed there (status)": 1,
        "have neither gen_ai.usage nor messages": 1,
    }


def test_calls_without_a_usage_are_estimated_from_their_messages(tmp_path: Path) -> None:
    """As JSON in an attribute, in the conventions' form or OpenAI's; what an exporter cut is left out."""
    said = [{"role": "user", "parts": [{"type": "text", "content": "word " * 100}]}]
    texts = {"operation.name": "chat", "input.messages": json.dumps(said), "output.text": "word " * 10}
    cut = {**texts, "input.messages": json.dumps(said)[:50]}
    path = document(tmp_path, otlp(span("1", 1, **texts), span("2", 2, **cut)))
    (entry,) = read_trace(path).entries
    assert 80 < entry.prompt_tokens < 200
    assert 8 < entry.output_tokens < 20
    assert left_out(path) == {"have neither gen_ai.usage nor messages": 1}
    assert "estimated from their messages" in Source((str(path),)).left_out()[0]


def test_of_spans_within_each_other_the_inner_counts(tmp_path: Path) -> None:
    """A client's span around the engine's is one request, also with another span between them."""
    path = document(
        tmp_path,
        otlp(span("client", 1, **usage(5, 5)), span("http", 2, "client"), span("engine", 3, "http", **usage(5, 5))),
    )
    assert [entry.arrived_s for entry in read_trace(path).entries] == [3.0]
    assert left_out(path) == {"hold a span of the same call inside": 1}


def test_plain_spans_are_read_too(tmp_path: Path) -> None:
    """As inference-perf's OTel replay takes them: dates, and attributes as an object."""
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 2}
    spans = [
        {"span_id": str(n), "start_time": f"2026-02-25T10:00:0{n}.500000", "attributes": attributes} for n in (0, 3)
    ]
    first, second = read_trace(document(tmp_path, {"trace_id": "t", "spans": spans}, indent=2)).entries
    assert second.arrived_s - first.arrived_s == 3.0


# ---- documents that are wrong -----------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"request_throughput": 1.0},
            "start_times, input_lens, output_lens missing: save the result with --save-detai",
        ),
        (
            {"request_throughput": 1.0, "start_times": [1], "input_lens": [], "output_lens": [1]},
            "must have as many entries as each other",
        ),
        (
            {"start_times": [1, 2], "input_lens": [1, 2], "output_lens": [1, "x"]},
            ": request 1: output_lens must be a whole number, got 'x'",
        ),
        ({"benchmarks": [{}]}, ": benchmarks[0]: expected an object with requests"),
        (
            {"benchmarks": [{"requests": {"successful": [guidellm(request_start_time=None)]}}]},
            ": benchmarks[0].requests.successful[0]: request_start_time must be a number of seconds",
        ),
        (
            {
                "resourceSpans": [
                    {"scopeSpans": [{"spans": [{**span("1", 1, **usage(1, 1)), "startTimeUnixNano": "x"}]}]}
                ]
            },
            ": resourceSpans[0].scopeSpans[0].spans[0]: startTimeUnixNano must be a number of nanoseconds",
        ),
        ({"resourceSpans": [1]}, ": resourceSpans must be a list of objects"),
        ({"data": [{"session_id": "a", "payloads": [1]}]}, ": data[0]: payloads[0] must be an object"),
        ([1], ":1: expected JSON objects in the list, found '1'"),
        ([], ":1: expected JSON objects in the list"),
    ],
)
def test_a_bad_document_is_named_by_file_and_place(tmp_path: Path, value: Any, expected: str) -> None:
    """With what was expected there."""
    path = document(tmp_path, value)
    with refused(BadLine, path, expected):
        read_trace(path)


def test_bad_records_of_a_document_can_be_skipped(tmp_path: Path) -> None:
    """Counted like bad lines."""
    value = {"start_times": [1, 2], "input_lens": [1, 2], "output_lens": [1, "x"]}
    reading = read_trace(document(tmp_path, value), skip_bad=True)
    assert (len(reading.entries), reading.skipped) == (1, 1)
    assert "request 1: output_lens" in reading.first_skipped
