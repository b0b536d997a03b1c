"""Calls in Qwen3-Coder's XML: typed by the schema, tags inside values are text, broken ones are malformed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tau2_lightning.rollout.chat.tools import read_turn
from tau2_lightning.rollout.chat.xml_calls import XmlParser

TYPES = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "flag": {"type": "boolean"},
    "items": {"type": "array", "items": {"type": "object"}},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": TYPES}}}]
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
tagged = st.sampled_from(["</tool_call>", "<function=x>", "</parameter>", "{'a': 1}", "null", "5", " a\n", "\n\nb"])
json_values = st.recursive(
    st.one_of(words, st.booleans(), st.none(), st.integers(-(10**9), 10**9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=5,
)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "text": st.one_of(words, tagged),
        "count": st.integers(),
        "flag": st.booleans(),
        "items": st.lists(json_values, max_size=3),
        "maybe": st.one_of(st.none(), words.filter(lambda text: text.strip().lower() not in ("null", "none"))),
    },
)


def written(name: str, given_arguments: dict[str, Any]) -> str:
    """As the templates write it: strings as they are, Python's words for booleans and None, else JSON."""

    def value(one: Any) -> str:
        return json.dumps(one, ensure_ascii=False) if isinstance(one, list | dict) else str(one)

    inner = "".join(f"<parameter={key}>\n{value(one)}\n</parameter>\n" for key, one in given_arguments.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def read(text: str) -> tuple[str | None, list[tuple[str, Any]], bool]:
    content, calls, invalid = read_turn(XmlParser(), text, TOOLS)
    return content, [(call.name, json.loads(call.arguments)) for call in calls], invalid


@given(st.lists(arguments, min_size=1, max_size=3))
def test_calls_are_read_back(each: list[dict[str, Any]]) -> None:
    text = "\n".join(written("look", one) for one in each)
    assert read(text) == (None, [("look", one) for one in each], False)


def test_text_before_a_call_and_missing_outer_tags() -> None:
    assert read(f"Let me see.\n\n{written('look', {'text': 'a'})}")[:2] == (
        "Let me see.\n\n",
        [("look", {"text": "a"})],
    )
    assert read("<function=look>\n<parameter=count>\n3\n</parameter>\n</function>") == (
        None,
        [("look", {"count": 3})],
        False,
    )
    assert read("<tool_call>\n<function=look>\n</function>\n") == (None, [("look", {})], False)


def test_values_that_are_no_json_stay_as_written_and_unknown_arguments_are_text() -> None:
    text = written("look", {"text": "x"}).replace("=text>", "=count>")
    assert read(text)[1] == [("look", {"count": "x"})]
    assert read(written("look", {"unknown": "3"}))[1] == [("look", {"unknown": "3"})]


@pytest.mark.parametrize(
    "broken",
    [
        "<tool_call>\nlook\n</tool_call>",
        "<tool_call>\n<function=>\n</function>\n</tool_call>",
        "<tool_call>\n<function=look>\n<parameter=text>\nx\n</function>\n</tool_call>",
        "<tool_call>\n<function=look>\n<parameter=text>\nx\n</parameter>\n",
        f"{written('look', {})}\n<tool_call>\n<function=lo",
        written("look", {"items": []}).replace("[]", "[NaN]"),
    ],
)
def test_broken_calls_are_malformed(broken: str) -> None:
    assert read(broken) == (broken, [], True)


@pytest.mark.parametrize("said", ["no call", "a <b> c", "x < function=y"])
def test_other_text_is_no_attempt(said: str) -> None:
    assert read(said) == (said, [], False)
