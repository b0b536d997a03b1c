"""Random calls: written by a template and read back they are equal; prompt, turn and delta are the whole rendering."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tau2_lightning.policy.chat_templates import template_source
from tau2_lightning.rollout.chat.format import ChatFormat
from tests.rollout.chat import behaviours as b
from tests.rollout.proxy.fixtures import SPECIAL, TINY, byte_tokenizer, template
from tests.rollout.proxy.rig import ALL_MARKS, TOOLS

SOURCES = {
    "tiny": lambda: TINY,
    "hermes": lambda: template_source("hermes"),
    "qwen3 of ours": lambda: template_source("qwen3"),
    "qwen2_5": lambda: template("qwen2_5"),
    "qwen3": lambda: template("qwen3"),
    "llama": lambda: b.TOOLS_WITH_FIRST,
    "mistral": lambda: b.MISTRAL,
    "ids": lambda: b.NINE,
    "text arguments": lambda: b.TEXT_ARGUMENTS,
    "user first": lambda: b.USER_FIRST,
}
APPEND_ONLY = sorted(SOURCES.keys() - {"qwen3"})

text = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=10),
    st.sampled_from(
        ["</tool_call>", "<tool_call>", "<|im_end|>", "}]", '"', "\\", "[TOOL_CALLS]", "'", "{{ x }}", "; {"]
    ),
)
value = st.recursive(
    st.one_of(text, st.booleans(), st.none(), st.integers(-(10**12), 10**12)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
arguments = st.dictionaries(st.text("abcdefgh_", min_size=1, max_size=6), value, max_size=4)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
SYSTEM = {"role": "system", "content": "Rules."}
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@cache
def form_of(name: str) -> ChatFormat:
    return ChatFormat(byte_tokenizer(SOURCES[name](), (*SPECIAL, *ALL_MARKS)), "auto")


def calling(*each: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {"id": f"c{at}", "type": "function", "function": {"name": "look", "arguments": json.dumps(one)}}
        for at, one in enumerate(each)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


@pytest.mark.parametrize("name", sorted(SOURCES))
@SLOW
@given(given_arguments=st.lists(arguments, min_size=1, max_size=2), said=words)
def test_calls_are_read_back(name: str, given_arguments: list[dict[str, Any]], said: str) -> None:
    form = form_of(name)
    if name == "llama":
        given_arguments = given_arguments[:1]
    reply = calling(*given_arguments)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": said} for call in reply["tool_calls"]]
    user = {"role": "user", "content": said}
    tokens = form.turn([SYSTEM, user], reply, results, TOOLS)
    assert form.ended(tokens)
    parsed = form.parse(tokens, tools=TOOLS, prompt_tail=form.render([SYSTEM, user], TOOLS)[-8:])
    assert not parsed.invalid_format and not parsed.content
    assert [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls] == [
        ("look", one) for one in given_arguments
    ]


@pytest.mark.parametrize("name", APPEND_ONLY)
@SLOW
@given(
    first=st.one_of(arguments, words.filter(str.strip)),
    said=words,
    opening=st.sampled_from(["user", "greeting", "ticket"]),
)
def test_prompt_turn_and_delta_are_the_whole_rendering(name: str, first: Any, said: str, opening: str) -> None:
    form = form_of(name)
    user = {"role": "user", "content": said}
    before = {
        "user": [SYSTEM, user],
        "greeting": [SYSTEM, {"role": "assistant", "content": "Hi!"}, user],
        "ticket": [{"role": "system", "content": f"Rules.\n<ticket>\n{said}\n</ticket>"}],
    }[opening]
    if isinstance(first, dict):
        reply = calling(first)
        new: list[dict[str, Any]] = [{"role": "tool", "tool_call_id": "c0", "content": said}]
    else:
        reply, new = {"role": "assistant", "content": first}, [user]
    tokens = form.render(before, TOOLS)
    turn = form.turn(before, reply, new, TOOLS)
    delta = form.render_delta(reply, new, ended=form.ended(turn), tools=TOOLS)
    whole = form.render_text([*before, reply, *new], TOOLS)
    assert form.tokenizer.decode([*tokens, *turn, *delta]) == form.tokenizer.decode(form.encode(whole))
