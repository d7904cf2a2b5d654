"""One member of a JSON body is found and changed, and no other byte of it."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.protocols.json_members import member_span, value_end, with_member

TEXT = st.text(max_size=8) | st.sampled_from(
    ["model", '"model":"x"', "\\", "}", "{", "]", '\\"', "\u2028", "mod\ud7ff"]
)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)
LAYOUTS: list[dict[str, Any]] = [
    {"separators": (",", ":")},
    {"indent": 1},
    {"indent": "\t", "separators": (" ,\r\n", "\n:  ")},
    {"ensure_ascii": False},
]


@given(
    st.dictionaries(TEXT, VALUES, max_size=5), VALUES, st.sampled_from(["model", "a", "x"]), st.sampled_from(LAYOUTS)
)
def test_a_member_is_set_and_nothing_else_changes(
    document: dict[str, Any], value: Any, name: str, layout: dict[str, Any]
) -> None:
    """Whatever the other members hold and however the body is laid out."""
    body = json.dumps(document, **layout).encode()
    new = orjson.dumps(value)
    changed = with_member(body, name, new)
    assert orjson.loads(changed) == orjson.loads(orjson.dumps(document | {name: value}))
    span = member_span(body, name)
    if span is not None:
        assert changed == body[: span[0]] + new + body[span[1] :]
        assert orjson.loads(body[slice(*span)]) == orjson.loads(orjson.dumps(document[name]))


@pytest.mark.parametrize("depth", [1, 15, 16])
def test_values_end_where_they_end_however_deep(depth: int) -> None:
    """Also with brackets inside of text; the half of a value has no end, and neither has one that is too deep."""
    value = b'{"a":[' * depth + b'"]}{[",1' + b'],"b":{}}' * depth
    assert orjson.loads(value)
    assert value_end(value + b',"c":1}', 0) == len(value)
    assert value_end(value[:-1], 0) == -1
    assert value_end(b"[" * 40 + b"]" * 40, 0) == -1


def test_of_two_members_of_one_name_the_last_is_meant() -> None:
    """As the parsers of engines have it; an escaped name is the same name."""
    assert (
        with_member(rb'{"model":"a", "mod\u0065l" : "b" }', "model", b'"c"') == rb'{"model":"a", "mod\u0065l" : "c" }'
    )


def test_a_member_that_is_not_there_is_put_in_front() -> None:
    """Also into an object without any."""
    assert with_member(b' { "a":1}', "b", b"2") == b' {"b":2, "a":1}'
    assert with_member(b"{ }", "b", b"2") == b'{"b":2 }'


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'"model"', b"{", b'{"model', b'{"model":', b'{"model":"x', b'{"a":[1', b'{"model":1,', b"{,}"]
)
def test_what_is_no_whole_object_is_not_read(data: bytes) -> None:
    """Nor changed: the caller has to do it in another way."""
    with pytest.raises(ValueError, match="no JSON object"):
        with_member(data, "model", b"1")
