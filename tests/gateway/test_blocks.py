"""What of a prompt is looked for in prefix caches: blocks of its beginning, as the engine will read it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.gateway.protocols import triton
from router.gateway.protocols.blocks import BLOCK_BYTES, blocks_of
from router.gateway.protocols.ingress import Ingress
from router.gateway.protocols.openai import ENDPOINTS, read
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, pair, reply, stream
from tests.pages import Pages

LONG = "The quick brown fox jumps over the lazy dog. " * 60  # two blocks and a half
OTHER = "Pack my box with five dozen liquor jugs. Now! " * 60


def prefix(path: str = "/v1/chat/completions", blocks_max: int = 64, **body: Any) -> tuple[int, ...]:
    """The blocks of one request for model m."""
    endpoint = ENDPOINTS[path.encode()]
    return read(endpoint, path.encode(), json.dumps({"model": "m", **body}).encode(), blocks_max).prefix


def chat(*texts: str, **more: Any) -> tuple[int, ...]:
    """The same of a conversation: the system first, then user and assistant in turn."""
    roles = ["system", *["user", "assistant"] * len(texts)]
    return prefix(messages=[{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)], **more)


def shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many leading blocks are the same."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@settings(deadline=None)  # the first call compiles
@given(st.text(max_size=60).map(lambda text: text * 100), st.integers(0, 9000), st.text(max_size=60))
def test_texts_share_the_whole_blocks_of_what_they_begin_with_alike(text: str, cut: int, tail: str) -> None:
    """To the byte, in any language; hashes are distinct, and no larger than other readers of a record take."""
    whole, _ = blocks_of([text], "m", "", 64)
    begun, _ = blocks_of([text[:cut], tail], "m", "", 64)
    same = next((n for n, (a, b) in enumerate(zip(text, text[:cut] + tail, strict=False)) if a != b), None)
    same = min(len(text), len(text[:cut] + tail)) if same is None else same
    assert shared(whole, begun) >= len(text[:same].encode("utf-8", "surrogatepass")) // BLOCK_BYTES
    assert shared(whole, begun) <= len(text[: same + 1].encode("utf-8", "surrogatepass")) // BLOCK_BYTES
    assert all(0 <= block < 2**63 for block in whole)
    assert len(set(whole)) == len(whole)


def test_a_block_is_worth_the_tokens_that_its_characters_are_estimated_at() -> None:
    """A block has 1024 bytes: of English 1024 characters, of Chinese a third of that."""
    assert blocks_of(["x" * 5000], "m", "", 64)[1] == BLOCK_BYTES
    assert blocks_of(["中" * 5000], "m", "", 64)[1] == pytest.approx(BLOCK_BYTES / 3)
    assert blocks_of(["x" * 1023], "m", "", 64) == ((), 0.0)


def test_only_so_many_blocks_are_made() -> None:
    """The first; none where none are wanted."""
    many = prefix(prompt="x" * 100_000, path="/v1/completions")
    assert len(many) == 64
    assert prefix(prompt="x" * 100_000, path="/v1/completions", blocks_max=3) == many[:3]
    assert prefix(prompt="x" * 100_000, path="/v1/completions", blocks_max=0) == ()


def test_turns_of_a_conversation_share_what_was_said_before() -> None:
    """The system prompt with the first turns; another system prompt shares nothing."""
    one, two = chat(LONG, LONG, OTHER), chat(LONG, LONG, OTHER, LONG)
    assert one == two[: len(one)]
    assert len(two) > len(one)
    assert shared(one, chat(LONG, OTHER)) == len(LONG) // BLOCK_BYTES
    assert shared(one, chat(OTHER, LONG)) == 0


def test_who_said_it_and_where_a_message_ends_are_part_of_the_prompt() -> None:
    """The same letters in other messages are another prompt to the engine."""
    user = prefix(messages=[{"role": "user", "content": LONG}])
    assert shared(user, prefix(messages=[{"role": "assistant", "content": LONG}])) == 0
    split = [{"role": "user", "content": LONG[:100]}, {"role": "user", "content": LONG[100:]}]
    assert shared(user, prefix(messages=split)) == 0
    parts = [{"type": "text", "text": LONG[:100]}, {"type": "text", "text": LONG[100:]}]
    assert user == prefix(messages=[{"role": "user", "content": parts}])


def test_tools_come_behind_the_system_prompt_and_calls_where_they_were_made() -> None:
    """As templates have them: other tools, other prompt from there on."""
    tools = [{"type": "function", "function": {"name": "f", "description": LONG}}]
    more = [{"type": "function", "function": {"name": "g", "description": LONG}}]
    assert shared(chat(LONG, "hi", tools=tools), chat(LONG, "hi", tools=more)) == len(LONG) // BLOCK_BYTES
    assert shared(chat(LONG, "hi", tools=tools), chat(OTHER, "hi", tools=tools)) == 0
    called = [{"role": "assistant", "tool_calls": [{"function": {"name": name}}]} for name in "fg"]
    after = {"role": "user", "content": LONG}
    assert shared(prefix(messages=[called[0], after]), prefix(messages=[called[1], after])) == 0


def test_anthropic_and_responses_begin_with_their_instructions() -> None:
    """``system`` and ``instructions`` come first, whatever their place in the body; parts of tools are text too."""
    say: dict[str, Any] = {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    one = prefix("/v1/messages", system=LONG, **say)
    assert len(one) == len(LONG) // BLOCK_BYTES
    assert one == chat(LONG, "hi")
    assert prefix("/v1/responses", instructions=LONG, input="hi") == one
    assert prefix("/v1/responses", instructions=LONG, input=[{"role": "user", "content": "hi"}]) == one
    used = [{"type": "thinking", "thinking": "?"}, {"type": "tool_use", "id": "7", "name": "f", "input": {"x": LONG}}]
    result = [{"type": "tool_result", "tool_use_id": "7", "content": [{"type": "text", "text": LONG}]}]
    turns = [{"role": "assistant", "content": used}, {"role": "user", "content": result}]
    assert len(prefix("/v1/messages", max_tokens=5, messages=turns)) == 2 * len(LONG) // BLOCK_BYTES


def test_what_is_not_seen_ends_the_blocks() -> None:
    """An image, token ids, and what the engine remembers of an earlier response: what follows could be anything."""
    image = {"type": "image_url", "image_url": {"url": "data:,x"}}
    content = [{"type": "text", "text": LONG}, image, {"type": "text", "text": LONG}]
    assert len(prefix(messages=[{"role": "user", "content": content}])) == len(LONG) // BLOCK_BYTES
    assert prefix(messages=[{"role": "user", "content": content[1:]}]) == ()
    assert prefix("/v1/completions", prompt=[[1, 2, 3], LONG]) == ()
    assert prefix("/v1/responses", input=LONG, previous_response_id="r") == ()


def test_another_model_or_salt_has_another_cache() -> None:
    """A backend may serve several models; vLLM keeps prompts of different salts apart."""
    blocks = chat(LONG)
    assert shared(blocks, chat(LONG, model="other")) == 0
    assert shared(blocks, chat(LONG, cache_salt="s")) == 0
    assert chat(LONG, cache_salt="s") == chat(LONG, cache_salt="s")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": LONG}),
        ("/v1/embeddings", {"input": LONG}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": LONG}]}),
        ("/v1/rerank", {"query": LONG, "documents": []}),
    ],
)
def test_what_generates_nothing_leaves_nothing_in_a_prefix_cache(path: str, body: dict[str, Any]) -> None:
    """To count a prompt's tokens is not to have computed them."""
    assert prefix(path, **body) == ()


def test_a_triton_prompt_has_blocks_as_any_other() -> None:
    """Of its text, under its model's name; tensors have none."""
    body = json.dumps({"text_input": LONG}).encode()
    call = triton.read(triton.STREAM, b"/v2/models/m/generate_stream", body, 64)
    assert call.prefix == blocks_of([LONG], "m", "", 64)[0]
    assert triton.read(triton.INFER, b"/v2/models/m/infer", body, 64).prefix == ()


async def test_a_request_reaches_the_core_with_its_blocks_and_what_each_is_worth() -> None:
    """In the unit in which the prompt is estimated: four letters a token, or one Chinese character."""
    async with pair([reply(b"{}")], ingress=Ingress(prefix_blocks_max=2)) as (gate, _):
        for letter in "x中":
            await gate.chat(stream=False, messages=[{"role": "user", "content": letter * 5000}])
        english, chinese = (outcome.record.request for outcome in gate.seen.outcomes)
        assert (len(english.prefix), english.prefix_block_tokens) == (2, 256)
        assert (len(chinese.prefix), chinese.prefix_block_tokens) == (2, 341)
        assert (english.prompt_tokens, chinese.prompt_tokens) == (1250, 5000)
    async with pair([reply(b"{}")], ingress=Ingress(prefix_blocks_max=0)) as (gate, _):
        await gate.chat(stream=False, messages=[{"role": "user", "content": LONG}])
        assert gate.seen.outcomes[0].record.request.prefix == ()


async def test_prefix_affinity_keeps_a_conversation_where_it_is_cached_by_default(tmp_path: Path) -> None:
    """A config that says nothing of prefixes: turns of two conversations, each to the backend that has it."""
    async with (
        ScriptedEngine([stream("a")]) as one,
        ScriptedEngine([stream("b")]) as two,
        Pages(dict(HEALTHY)) as pages,
    ):
        lines = [backend("a", one, pages), backend("b", two, pages)]
        async with router(
            tmp_path / "r.yaml", config(*lines, more="policy: {routing: prefix_affinity, guard: {budget_ms: 10000}}\n")
        ) as it:
            went: dict[str, set[str]] = {LONG: set(), OTHER: set()}
            for turn in range(6):
                for text, where in went.items():
                    messages = [{"role": "user", "content": text}, {"role": "user", "content": f"turn {turn}"}]
                    where.add((await it.chat(body={"messages": messages})).headers["x-headroom-backend"])
            assert sorted(map(len, went.values())) == [1, 1]
