"""Calls in JSON are read as by Python's json, and the text of their arguments is kept as written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.rollout.chat.json_calls import (
    MAX_DEPTH,
    MalformedCall,
    checked_call,
    read_call,
    read_calls,
    read_object,
)
from tau2_lightning.rollout.chat.message import ToolCall

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "Infinity" not in json.dumps(value))
objects = st.dictionaries(words, values, max_size=3)


@given(
    name=words.filter(bool), arguments=objects, more=objects, indent=st.sampled_from([None, 0, 2]), tail=words,
    order=st.permutations(["name", "arguments", "more"]),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_call_and_what_follows(name: str, arguments: Any, more: Any, indent: Any, tail: str, order: Any) -> None:
    parts = {"name": name, "arguments": arguments, "more": more}
    text = json.dumps({key: parts[key] for key in order}, indent=indent)
    call, end = read_call(f"<<{text}{tail}", 2)
    assert end == 2 + len(text)
    assert (call.name, json.loads(call.arguments)) == (name, arguments)
    assert call.arguments in text
    (one, two), end = read_calls(f"[{text} , {text}]{tail}", 0)
    assert one == two == call and end == 2 * len(text) + 5


@given(text=st.text(st.sampled_from('{}[]",: \nabname1\\u'), max_size=40))
@settings(max_examples=500, deadline=None)
def test_only_what_python_reads_too_is_a_call(text: str) -> None:
    text = '{"name": "a", "arguments": {' + text
    try:
        call, end = read_call(text, 0)
    except MalformedCall:
        return
    whole = json.loads(text[:end])
    assert (whole["name"], whole["arguments"]) == (call.name, json.loads(call.arguments))


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "[]", '{"name": "f"}', '{"arguments": {}}', '{"name": "f", "arguments": {},}', '{1: 2}',
     '{"name": "f" "arguments": {}}', '{"name": "f", "arguments": {"a": Infinity}}', "\ufeff{}",
     '{"name": "f", "arguments": {"a": %s}}' % ("9" * 5000), '{"name": "f", "arguments": {"a": "\n"}}'],
)  # fmt: skip
def test_what_is_no_call(text: str) -> None:
    with pytest.raises(MalformedCall):
        read_call(text, 0)


def test_depth_and_width() -> None:
    def nested(depth: int) -> str:
        return '{"a": [' * (depth // 2) + "]}" * (depth // 2)

    assert checked_call(ToolCall("f", nested(MAX_DEPTH))).arguments == nested(MAX_DEPTH)
    with pytest.raises(MalformedCall, match="deeper"):
        checked_call(ToolCall("f", nested(MAX_DEPTH + 2)))
    wide = json.dumps({"a": [[]] * 10_000})
    assert checked_call(ToolCall("f", wide)).arguments == wide
    assert read_object('x{"a": "}"} y', 1) == ('{"a": "}"}', 11)
