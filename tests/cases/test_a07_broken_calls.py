"""A7: a turn that tries to call a tool and fails is malformed, by one rule for every parser; other text never is."""

from __future__ import annotations

import pytest

from tests.cases.talk import both, rig_of
from tests.rollout.proxy.rig import TOOLS

BROKEN = {
    "hermes": [
        '<tool_call>{"name": "look", "arguments": {"a": 1}',
        '<tool_call>{"name": "look"}</tool_call>',
        "Well. <tool_call>look()</tool_call>",
    ],
    "llama3_json": [
        '{"name": "look", "parameters": {"a": oops}}',
        '{"name": "look", "parameters": {"a": 1}',
        '{"name": "look", "param',
        '{"name": "lo',
        '{"name": "look"}',
        '{"name": "unknown", "parameters": {',
        '{"name": "unknown", "parameters": [1]}',
        '{"type": "function", "name": "look", "parameters": {]}',
        "{'name': 'look', 'parameters': {}}",
        'I will call {"name": "look", "parameters": {]}.',
        "<|python_tag|>look()",
        '<|python_tag|>{"name": "look"',
        "<|python_tag|>",
        '{"name": "look", "parameters": {}}; {"name": "look", "parameters": {"a":',
        '{"name": "look", "parameters": {}}; {"name": "look"}',
        '[{"name": "look", "parameters": {}}, {"name": "look", "parameters": 1}]',
    ],
    "mistral": [
        '[TOOL_CALLS][{"name": "look", "arguments": {"a": oops}}]',
        '[TOOL_CALLS][{"name": "look", "arguments": {}}',
        '[TOOL_CALLS][{"name": "look"}]',
        '[TOOL_CALLS][{"name": "look", "arguments": {}}, {"nam": 1}]',
        '[TOOL_CALLS][{"name": "look", "arguments": {}}, 3]',
        "[TOOL_CALLS][]",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]look",
        "[TOOL_CALLS]look[ARGS]",
        '[TOOL_CALLS]look[ARGS]{"a": oops}',
        "[TOOL_CALLS]look[ARGS]{}[TOOL_CALLS]look[ARGS]{",
        "Let me see. [TOOL_CALLS] nothing",
    ],
    "pythonic": [
        "[look(a=oops)]",
        "[look(a=1)",
        "[look(a=1",
        "[look(",
        "[look(a=1), go(]",
        "[look(a=1), 3]",
        "[unknown(a=1]",
        "[look(a=open('/etc/passwd'))]",
        "[look(a=1, a=2)]",
        "[look(a=1e999)]",
        "[look(a=b'x')]",
        "[look(a={1: 2})]",
        "[look(a='\x00')]",
        "[look(a=" + "(" * 300 + ")" * 300 + ")]",
        "[look(a=" + "-" * 3_000 + "1)]",
        "[look(a=1)] and some text",
        "I look: [look(a=1)]",
    ],
    "llama4_pythonic": ["<|python_start|>[look(a=]<|python_end|>", "<|python_start|>", "[look(a=1"],
}
CALLS = {
    "hermes": [('<tool_call>{"name": "look", "arguments": {}}</tool_call>', 1)],
    "llama3_json": [
        ('{"name": "look", "parameters": {}}', 1),
        ('{"name": "other", "arguments": {"a": {"name": "look"}}}', 1),
        ('{"parameters": {}, "name": "look"}', 1),
        ('{"type": "function", "name": "look", "parameters": {}}', 1),
        ('<|python_tag|>{"name": "look", "parameters": {}}; {"parameters": {"a": []}, "name": "look"}', 2),
        ('[{"name": "look", "parameters": {}}, {"name": "look", "parameters": {}}]', 2),
        ('<|python_tag|>{"name": "look", "parameters": {}}<|python_tag|>{"name": "look", "parameters": {}}', 2),
    ],
    "mistral": [
        ('[TOOL_CALLS] [{"name": "look", "arguments": {}}, {"arguments": {"a": 1}, "name": "look"}]', 2),
        ('[TOOL_CALLS]{"name": "look", "arguments": {}}', 1),
        ('[TOOL_CALLS]look{"a": 1}', 1),
        ("[TOOL_CALLS]look[ARGS]{}[TOOL_CALLS]look[ARGS] {}", 2),
    ],
    "pythonic": [
        ("[look(a=1)]", 1),
        (' [look(a="x", b=[1, -2.5, None, true], c={"d": (1, 2)}), a.b.look()]\n', 2),
        ("[unknown()]", 1),
        ("[look(a='\\d')]", 1),
    ],
    "llama4_pythonic": [("<|python_start|>[look(a=1)]<|python_end|>", 1), ("[look()]", 1)],
}
NO_ATTEMPT = [
    "I have [brackets], {braces} and a function f(x=1) in my text.",
    "[1] See the manual (page 3). [see(2)]",
    "[1, 2, 3]",
    '{"answer": 3, "parameters": {"a": 1}}',
    '{"answer": {"of": [1, 2]}}',
    '{"name": "Bob", "age": 3}',
    '[{"name": "Bob"}, {"name": "Eve"}]',
    'Write {"name": "Bob"} into the file, please.',
    "{broken json",
    "[broken",
    "a < b and tool_call > c",
    "TOOL_CALLS are listed below [TOOLS]",
    "",
]


@pytest.mark.parametrize("form", BROKEN)
async def test_broken_calls_are_flagged(form: str) -> None:
    async with rig_of(form) as rig:
        for said in BROKEN[form]:
            turn = await both(rig, said)
            assert turn.node.invalid_format and not turn.calls, said
            assert turn.message["content"] == said and turn.reason == "stop"


@pytest.mark.parametrize("form", CALLS)
async def test_negative_control_calls_are_read(form: str) -> None:
    async with rig_of(form) as rig:
        for said, count in CALLS[form]:
            turn = await both(rig, said)
            assert not turn.node.invalid_format and len(turn.calls) == count, said
            assert not (turn.message["content"] or "").strip() and turn.reason == "tool_calls"


@pytest.mark.parametrize("form", CALLS)
async def test_negative_control_other_text_is_not_flagged(form: str) -> None:
    async with rig_of(form) as rig:
        for said in NO_ATTEMPT:
            turn = await both(rig, said)
            assert not turn.node.invalid_format and not turn.calls, said
            assert turn.message["content"] == said and turn.reason == "stop"


@pytest.mark.parametrize("form", BROKEN)
async def test_without_tools_nothing_is_a_call(form: str) -> None:
    async with rig_of(form) as rig:
        turn = await both(rig, BROKEN[form][0], tool_choice="none")
        assert not turn.node.invalid_format and turn.message["content"] == BROKEN[form][0]


@pytest.mark.parametrize("form", ["hermes", "llama3_json", "mistral"])
async def test_text_before_a_call_is_content(form: str) -> None:
    async with rig_of(form) as rig:
        turn = await both(rig, f"Let me see. {CALLS[form][0][0]}")
        assert turn.message["content"] == "Let me see. " and turn.calls and not turn.node.invalid_format


async def test_parallel_calls_that_the_client_refuses_are_left_out() -> None:
    said, _ = CALLS["mistral"][0]
    async with rig_of("mistral") as rig:
        turn = await both(rig, said, parallel_tool_calls=False, tools=TOOLS)
        assert turn.calls == [("look", "{}")] and not turn.node.invalid_format
