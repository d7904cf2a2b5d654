"""Requests that an engine answers with several sequences: what is read of them, and how their time is measured."""

import asyncio
import json
from typing import Any

import pytest

from router.core.errors import Rejected
from router.gateway.protocols import triton
from router.gateway.protocols.openai import ENDPOINTS, SEQUENCES_MAX, RequestBody, read
from router.gateway.telemetry.journal import explained
from tests.fakes_wire import LAST, STREAM_HEAD, Act, chat, chunked, event, pair, token
from tests.waiting import until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "x" * 400}]


def body(path: str, **document: Any) -> RequestBody:
    """A body as read."""
    return read(ENDPOINTS[path.encode()], path.encode(), json.dumps({"model": "m", **document}).encode())


def shape(path: str, **document: Any) -> tuple[int, int, int, int]:
    """Tokens of all prompts, sequences, prompts, and tokens of the longest."""
    it = body(path, **document)
    return it.prompt_tokens, it.sequences, it.prompts, it.prompt_tokens_longest


@pytest.mark.parametrize(
    ("path", "document", "expected"),
    [
        (CHAT, {"messages": HELLO}, (100, 1, 1, 0)),
        (CHAT, {"messages": HELLO, "n": 4}, (100, 4, 1, 0)),
        (CHAT, {"messages": HELLO, "n": None}, (100, 1, 1, 0)),
        (CHAT, {"messages": HELLO, "n": "3"}, (100, 3, 1, 0)),
        (CHAT, {"messages": HELLO, "n": 2.0}, (100, 2, 1, 0)),
        (CHAT, {"messages": HELLO, "n": True}, (100, 1, 1, 0)),
        (CHAT, {"messages": HELLO, "best_of": 9}, (100, 1, 1, 0)),
        (COMPLETIONS, {"prompt": "x" * 40, "n": 2, "best_of": 5}, (10, 5, 1, 0)),
        (COMPLETIONS, {"prompt": "x" * 40, "best_of": "many"}, (10, 1, 1, 0)),
        (COMPLETIONS, {"prompt": ["x" * 40, "y" * 80], "n": 2}, (30, 4, 2, 20)),
        (COMPLETIONS, {"prompt": [1, 2, 3], "n": 2}, (3, 2, 1, 0)),
        (COMPLETIONS, {"prompt": [[1, 2, 3], [4]], "n": 2}, (4, 4, 2, 3)),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 5, "n": 0}, (100, 1, 1, 0)),
        ("/v1/responses", {"input": "x" * 400, "n": 0}, (100, 1, 1, 0)),
        ("/v1/embeddings", {"input": ["x" * 40] * 8}, (80, 8, 8, 10)),
        ("/v1/rerank", {"query": "q" * 400, "documents": ["d" * 40, "d" * 80]}, (230, 2, 2, 120)),
    ],
)
def test_choices_and_prompts_are_counted(path: str, document: dict[str, Any], expected: tuple[int, ...]) -> None:
    """``n`` for each prompt, where the endpoint has it; a list of prompts is as many, each with its own tokens."""
    assert shape(path, **document) == expected


def test_a_beam_is_as_many_sequences_as_it_is_wide() -> None:
    """TensorRT-LLM's name for it, as a number or as a tensor of one."""
    for width in (4, [4]):
        raw = json.dumps({"text_input": "x" * 400, "beam_width": width}).encode()
        assert triton.read(triton.STREAM, b"/v2/models/m/generate_stream", raw).sequences == 4


@pytest.mark.parametrize("n", [0, -1, 1.5, "x", "", [], {}, SEQUENCES_MAX + 1, 10**30, "9" * 40])
def test_what_no_engine_takes_for_a_number_of_choices_is_refused_by_name(n: object) -> None:
    """As vLLM, llama.cpp and Dynamo do."""
    with pytest.raises(Rejected, match=r"^n: got .*; expected a number from 1 to 16384") as refusal:
        body(CHAT, messages=HELLO, n=n)
    assert refusal.value.status == 400


def test_the_blocks_of_several_prompts_are_those_of_the_first() -> None:
    """The second begins anew in the engine's cache."""
    text = "".join(f"{number} bottles. " for number in range(400))

    def blocks(prompt: Any) -> tuple[int, ...]:
        raw = json.dumps({"model": "m", "prompt": prompt}).encode()
        return read(ENDPOINTS[COMPLETIONS.encode()], COMPLETIONS.encode(), raw, 64).prefix

    assert blocks([text, text]) == blocks(text)


async def test_the_time_per_token_of_several_choices_is_that_of_each() -> None:
    """Four choices of five tokens: 20 are counted, and each had four steps from the first token to the last."""
    now, more = [0.0], asyncio.Event()
    usage = event('{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":20}}')
    first, rest = chunked(*[event(token("a"))] * 4), chunked(*[event(token("a"))] * 16, usage, event("[DONE]"))
    async with pair([STREAM_HEAD + first, more, rest + LAST, Act.CLOSE], clock=lambda: now[0]) as (gate, _):
        client = await gate.client()
        client.send(chat(n=4, messages=HELLO))
        await client.reader.readuntil(first[-20:])
        now[0] = 1.0
        more.set()
        await client.reader.readuntil(LAST)
        await until(lambda: gate.seen.outcomes)
        log = gate.seen.outcomes[0]
        record = log.record
        assert (record.request.sequences, record.usage.output_tokens) == (4, 20)
        assert record.tpot_s == pytest.approx(1.0 / 4)
        shown = explained(log)
        assert (shown["sequences"], shown["output_tokens"]) == (4, 20)
        assert shown["actual"]["tpot_ms"] == pytest.approx(1e3 * record.tpot_s, abs=1e-3)
