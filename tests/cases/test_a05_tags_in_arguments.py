"""A5: tags of the format inside a JSON string are text, and the call is served as it was sampled."""

from __future__ import annotations

import pytest

from tests.cases.talk import FORMS, both, rig_of

TAGGED = [
    '{"at": "<think>x</think>"}',
    '{"q": "a </think> b"}',
    '{"q": "a </tool_call> b"}',
    '{"q": "a <tool_call> b"}',
    '{"q": "<tool_call>{\\"name\\": \\"look\\", \\"arguments\\": {}}</tool_call>"}',
    '{"</tool_call>": "<|python_tag|>", "q": ["[TOOL_CALLS]", "[ARGS]", "[look(a=1)]"]}',
    '{"q": "\\"}</tool_call>"}',
    '{"q": "{\\"name\\": \\"look\\", \\"parameters\\": {"}',
    '{"q": {"name": "look", "parameters": {}}}',
]


@pytest.mark.parametrize("arguments", TAGGED)
@pytest.mark.parametrize("form", FORMS)
async def test_the_call_is_served_as_sampled(form: str, arguments: str) -> None:
    async with rig_of(form) as rig:
        turn = await both(rig, FORMS[form] % arguments)
        assert turn.calls == [("look", arguments)]
        assert not turn.message["content"] and not turn.message.get("reasoning_content")
        assert not turn.node.invalid_format and turn.reason == "tool_calls"


@pytest.mark.parametrize("arguments", TAGGED)
async def test_it_is_the_same_behind_reasoning_and_beside_another_call(arguments: str) -> None:
    call = FORMS["hermes"] % arguments
    async with rig_of("hermes") as rig:
        turn = await both(rig, f"<think>\nwhy <tool_call>?\n</think>\n\n{call}\n{call}")
        assert turn.message["reasoning_content"] == "why <tool_call>?"
        assert turn.calls == [("look", arguments)] * 2 and not turn.node.invalid_format


async def test_pythonic_strings_may_hold_tags_too() -> None:
    async with rig_of("pythonic") as rig:
        turn = await both(rig, "[look(q='a </tool_call> [look(a=1)] <think>')]")
        assert turn.calls == [("look", '{"q": "a </tool_call> [look(a=1)] <think>"}')]


@pytest.mark.parametrize(
    ("said", "content", "reasoning"),
    [
        ("Use <think> like this: <think>x</think>.", "Use <think> like this: <think>x</think>.", ""),
        ("a </think> b", "a </think> b", ""),
        ("<think>a</think> b </think> c", " b </think> c", "a"),
        (" \n<think>\na\n\n</think>\n\nb", "b", "a"),
    ],
)
async def test_reasoning_stands_at_the_front_only(said: str, content: str, reasoning: str) -> None:
    async with rig_of("hermes") as rig:
        turn = await both(rig, said)
        assert (turn.message["content"], turn.message.get("reasoning_content") or "") == (content, reasoning)


@pytest.mark.parametrize("said", ["<think>plan</think>ok", "plan</think>ok", "\n<think>\nplan\n</think>\n\nok"])
async def test_a_block_that_the_prompt_opened_may_be_opened_again(said: str) -> None:
    async with rig_of("hermes", "qwen3_5_think") as rig:
        turn = await both(rig, said)
        assert (turn.message["content"], turn.message["reasoning_content"]) == ("ok", "plan")


@pytest.mark.parametrize("text", ['{"q": "a </tool_call>', '{"q": "a </tool_call> b}', '{"q": a"</tool_call>"}'])
async def test_negative_control_broken_json_with_a_tag_is_malformed(text: str) -> None:
    async with rig_of("hermes") as rig:
        turn = await both(rig, FORMS["hermes"] % text)
        assert turn.node.invalid_format and turn.message["content"] == FORMS["hermes"] % text
