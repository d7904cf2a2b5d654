"""How large a prompt is taken to be before an engine has counted it: text of any script, schemas, pictures, sounds."""

import json
import struct
from base64 import b64encode
from typing import Any

import pytest

from router.core.errors import Rejected
from router.core.text_size import TEXT_SIGMA
from router.gateway.protocols import triton
from router.gateway.protocols.media import (
    AUDIO_TOKENS_PER_S,
    IMAGE_TOKENS,
    IMAGE_TOKENS_MAX,
    LOW_DETAIL_TOKENS,
    MEDIA_SIGMA,
    PAGE_TOKENS,
    VIDEO_TOKENS,
)
from router.gateway.protocols.openai import ENDPOINTS, RequestBody, read

HELLO = [{"role": "user", "content": "x" * 400}]
SCHEMA = {"type": "object", "properties": {"place": {"type": "string", "description": "d" * 2800}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "what it does", "parameters": SCHEMA}}


def body(path: str, **document: Any) -> RequestBody:
    """A body as read."""
    raw = json.dumps({"model": "m", **document}).encode()
    return read(ENDPOINTS[path.encode()], path.encode(), raw)


def tokens(path: str, **document: Any) -> int:
    """What a body's prompt is estimated at."""
    return body(path, **document).prompt_tokens


def of_parts(*parts: dict[str, Any]) -> int:
    """What parts of a message add to its text of 100 tokens."""
    content = [{"type": "text", "text": "x" * 400}, *parts]
    return tokens("/v1/chat/completions", messages=[{"role": "user", "content": content}]) - 100


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (CHAT, {"messages": HELLO, "tools": [TOOL] * 60}),
        (CHAT, {"messages": HELLO, "functions": [TOOL["function"]] * 60}),
        (CHAT, {"messages": [*HELLO, {"role": "assistant", "tool_calls": [TOOL] * 60}]}),
        (CHAT, {"messages": [*HELLO, {"role": "assistant", "function_call": TOOL, "content": "x" * 172_000}]}),
        (CHAT, {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": [SCHEMA] * 60}}),
        (CHAT, {"messages": HELLO, "guided_json": [SCHEMA] * 60}),
        (CHAT, {"messages": HELLO, "structured_outputs": {"grammar": "g" * 172_000}}),
        (MESSAGES, {"messages": HELLO, "tools": [{"name": "f", "input_schema": SCHEMA}] * 60}),
        (RESPONSES, {"input": "hi", "tools": [TOOL] * 60}),
        (RESPONSES, {"input": "hi", "text": {"format": {"type": "json_schema", "schema": [SCHEMA] * 60}}}),
        (RESPONSES, {"input": [{"type": "function_call", "name": "f", "arguments": "a" * 172_000}]}),
        (RESPONSES, {"input": [{"type": "function_call_output", "output": [{"text": "a" * 172_000}]}]}),
        ("/v1/completions", {"prompt": "x", "suffix": "s" * 172_000}),
        ("/v1/completions", {"prompt": ["x" * 86_000] * 2}),
        ("/v1/embeddings", {"input": [{"type": "text", "text": "x" * 172_000}]}),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * 172_000}]}),
        ("/v1/rerank", {"query": "q", "documents": [{"text": "d" * 86_000}, "d" * 86_000]}),
    ],
)
def test_all_that_goes_before_the_model_counts(path: str, document: dict[str, Any]) -> None:
    """Sixty tools or as much of anything else: some 43,000 tokens, and not those of the question alone."""
    assert 43_000 <= tokens(path, **document) <= 46_000


def test_a_query_is_read_again_with_each_document() -> None:
    """A cross-encoder reads the pair: ten documents of ten tokens with a query of a hundred are 1,100 tokens."""
    assert tokens("/v1/rerank", query="q" * 400, documents=["d" * 40] * 10) == 1100
    assert tokens("/score", text_1="q" * 400, text_2=["d" * 40] * 10) == 1100


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("The quick brown fox. " * 100, 420, 600),
        ("\u4e2d\u6587" * 500, 600, 1300),
        ("\u3053\u3093\u306b\u3061\u306f" * 200, 600, 1300),
        ("\u043f\u0440\u0438\u0432\u0435\u0442 " * 100, 200, 500),
        ("\N{GRINNING FACE}" * 100, 100, 300),
    ],
)
def test_a_script_has_its_own_size(text: str, least: int, most: int) -> None:
    """Within what tokenizers make of it; four characters a token holds for English alone."""
    assert least <= tokens("/v1/completions", prompt=text) <= most


def png(width: int, height: int) -> bytes:
    """The beginning of a file."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)


def jpeg(width: int, height: int) -> bytes:
    """With 60,000 bytes of a camera's notes before the frame header."""
    notes = b"\xff\xe1" + struct.pack(">H", 60_002) + bytes(60_000)
    return b"\xff\xd8" + notes + b"\xff\xc0" + struct.pack(">HBHH", 17, 8, height, width)


def gif(width: int, height: int) -> bytes:
    """The beginning of a file."""
    return b"GIF89a" + struct.pack("<HH", width, height)


def webp(kind: bytes) -> bytes:
    """280 x 560 in each of the three forms."""
    fields = {
        b"VP8 ": bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 280, 560),
        b"VP8L": b"\x2f" + struct.pack("<I", 279 | 559 << 14),
        b"VP8X": bytes(4) + (279).to_bytes(3, "little") + (559).to_bytes(3, "little"),
    }
    return b"RIFF\0\0\0\0WEBP" + kind + bytes(4) + fields[kind]


def data_url(data: bytes, kind: str = "image/png") -> str:
    """As clients inline a file, with two megabytes behind its beginning."""
    return f"data:{kind};base64," + b64encode(data + bytes(2_000_000)).decode()


PICTURES = [png(280, 560), jpeg(280, 560), gif(280, 560), *map(webp, (b"VP8 ", b"VP8L", b"VP8X"))]


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_counts_by_its_sides(picture: bytes) -> None:
    """10 x 20 squares of 28 pixels, whatever the file's kind and its 2 MB, in the form of each API."""
    url, encoded = data_url(picture), b64encode(picture + bytes(2_000_000)).decode()
    assert of_parts({"type": "image_url", "image_url": {"url": url}}) == 200
    assert of_parts({"type": "image_url", "image_url": url}) == 200
    assert of_parts({"type": "input_image", "image_url": url}) == 200
    assert of_parts({"type": "image", "source": {"type": "base64", "data": encoded}}) == 200
    raw = json.dumps({"text_input": "x" * 400, "image": [encoded]}).encode()
    assert triton.read(triton.STREAM, b"/v2/models/m/generate_stream", raw).prompt_tokens == 300


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org/cat.png", IMAGE_TOKENS),
        ("data:image/png;base64,!!!!", IMAGE_TOKENS),
        ("data:,x", IMAGE_TOKENS),
        (data_url(b"no picture at all"), IMAGE_TOKENS),
        (data_url(png(0, 5)), IMAGE_TOKENS),
        (data_url(b"\xff\xd8" + b"\xff\xe1\0\0" * 1000), IMAGE_TOKENS),
        (data_url(png(1, 1)), 4),
        (data_url(png(1 << 20, 1 << 20)), IMAGE_TOKENS_MAX),
        (None, IMAGE_TOKENS),
        (7, IMAGE_TOKENS),
    ],
)
def test_a_picture_that_says_nothing_of_itself_counts_as_a_usual_one(url: object, expected: int) -> None:
    """And no header, however it lies, makes one tiny or endless."""
    assert of_parts({"type": "image_url", "image_url": {"url": url}}) == expected


def test_a_part_needs_no_type() -> None:
    """vLLM takes it by its key; a type that is none is no fault of ours."""
    assert of_parts({"image_url": "https://example.org/cat.png"}) == IMAGE_TOKENS
    assert of_parts({"type": [], "image_url": "https://example.org/cat.png"}) == IMAGE_TOKENS
    assert of_parts({"type": {}}) == of_parts({"type": "unheard of"}) == 0


def test_low_detail_is_small() -> None:
    """As OpenAI's API has it."""
    low = {"url": "https://example.org/cat.png", "detail": "low"}
    assert of_parts({"type": "image_url", "image_url": low}) == LOW_DETAIL_TOKENS


def test_sounds_videos_and_files_count() -> None:
    """A minute of WAV by its header, others by usual rates; a PDF by its pages; a text as text."""
    wav = b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + bytes(60 * 32_000)
    sound = {"type": "input_audio", "input_audio": {"data": b64encode(wav).decode(), "format": "wav"}}
    assert of_parts(sound) == pytest.approx(60 * AUDIO_TOKENS_PER_S, rel=0.01)
    assert of_parts({"type": "audio_url", "audio_url": {"url": "https://example.org/a.mp3"}}) == 750
    assert of_parts({"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}) == VIDEO_TOKENS
    pdf = data_url(b"%PDF", "application/pdf")
    assert of_parts({"type": "file", "file": {"file_data": pdf}}) == 21 * PAGE_TOKENS
    assert of_parts({"type": "input_file", "file_id": "f"}) == PAGE_TOKENS
    text = "data:text/plain;base64," + b64encode(b"t" * 4000).decode()
    assert of_parts({"type": "file", "file": {"file_data": text}}) == pytest.approx(1000, rel=0.01)
    document = {"type": "document", "source": {"type": "text", "data": "t" * 4000}}
    assert of_parts(document) == 1000


def test_the_error_of_an_estimate_says_what_it_rests_on() -> None:
    """Token ids are exact, text is not, and pictures still less."""
    assert body("/v1/completions", prompt=[1, 2, 3]).prompt_sigma == 0.0
    assert body("/v1/completions", prompt="x" * 400).prompt_sigma == TEXT_SIGMA
    half = [{"type": "text", "text": "x" * 4 * IMAGE_TOKENS}, {"type": "image_url", "image_url": "https://e.org/a"}]
    mixed = body(CHAT, messages=[{"role": "user", "content": half}])
    assert mixed.prompt_sigma == pytest.approx((TEXT_SIGMA + MEDIA_SIGMA) / 2)


def test_no_depth_of_a_body_is_too_much() -> None:
    """Tools that are nested more deeply than they can be written out, and results of tools within each other."""
    deep: dict[str, Any] = {"description": "d" * 400}
    for _ in range(400):
        deep = {"": deep}
    assert tokens(CHAT, messages=HELLO, tools=[deep]) >= 200
    part: dict[str, Any] = {"type": "text", "text": "x" * 400}
    for _ in range(300):
        part = {"type": "tool_result", "content": [part]}
    assert tokens(CHAT, messages=[{"role": "user", "content": [part]}]) >= 1


def test_what_is_wrong_is_named() -> None:
    """Of messages, and of parts within parts."""
    with pytest.raises(Rejected, match=r"messages\[0\]\.content: got a number"):
        body(CHAT, messages=[{"role": "user", "content": 7}])
    result = {"type": "tool_result", "content": 7}
    with pytest.raises(Rejected, match=r"messages\[0\]\.content\.content: got a number"):
        body(CHAT, messages=[{"role": "user", "content": [result]}])
