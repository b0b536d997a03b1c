"""A4: for a call whose sampled JSON has ``"name": ""``, and for every other malformed call, a stream gives the same
answer as the plain request. ``tests/rollout/proxy/test_stream_equality.py`` tests this with generated turns."""

from __future__ import annotations

import pytest

from tests.cases.talk import FORMS, both, chunks, rig_of

MALFORMED = [
    '<tool_call>\n{"name": "", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n{"name": "look", "arguments": {}}\n'
    "</tool_call>",
    '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "", "arguments": {}}\n'
    "</tool_call>",
    '<tool_call>\n{"name": null, "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "look", "arguments": {"a": oops}}\n</tool_call>',
    '<tool_call>\n{"name": "look", "arguments": {"a": 1}} and more\n</tool_call>',
    '<tool_call>\n{"name": "look", "arguments": {"a": "never closed}\n</tool_call>',
    '<tool_call>\n{"name": "look", "arguments": {"a": 1}\n</tool_call>',
    '<tool_call>\n{"name": "look", "arguments": {"a": NaN}}\n</tool_call>',
    '<tool_call>\n{"name": "look", "arguments": {}}<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>',
    "<tool_call></tool_call>",
    "<tool_call>",
    "I look.\n<tool_call>\n[]\n</tool_call>",
]


@pytest.mark.parametrize("said", MALFORMED)
async def test_a_malformed_call_is_its_text_streamed_or_not(said: str) -> None:
    async with rig_of("hermes") as rig:
        turn = await both(rig, said)
        assert turn.message["content"] == said and not turn.calls
        assert turn.reason == "stop" and turn.node.invalid_format


READ = [
    ('<tool_call>{"arguments": {"b": 2, "a": 1}, "name": "look"}</tool_call>', '{"b": 2, "a": 1}'),
    ('<tool_call>{"name": "x", "name": "look", "arguments": 1, "arguments": {}}</tool_call>', "{}"),
    ('<tool_call>{"name": "look", "arguments": {"a": 1, "a": 2}}</tool_call>', '{"a": 1, "a": 2}'),
    ('<tool_call>{"name": "look", "arguments": {"n": 1e999, "i": 123456789012345678901234567890}}</tool_call>',
     '{"n": 1e999, "i": 123456789012345678901234567890}'),
    ('<tool_call>{"name": "look", "arguments": {"a": "\\u0000\\ufeff"}}', '{"a": "\\u0000\\ufeff"}'),
    ('<tool_call>\n\t{"name" : "look" ,\n"arguments":\n{ }\n}\r\n</tool_call> and more', "{ }"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "arguments"), READ)
async def test_a_call_that_can_be_read_is_served_as_sampled(said: str, arguments: str) -> None:
    async with rig_of("hermes") as rig:
        turn = await both(rig, said)
        assert turn.calls == [("look", arguments)] and not turn.node.invalid_format
        assert turn.reason == "tool_calls"


@pytest.mark.parametrize("depth", [100, 101, 1_500])
async def test_arguments_nested_too_deeply_are_malformed(depth: int) -> None:
    """Clients differ in the depth that they can parse, so arguments beyond our limit of depth are malformed."""
    arguments = '{"a": ' * (depth - 1) + "{}" + "}" * (depth - 1)
    async with rig_of("hermes") as rig:
        turn = await both(rig, FORMS["hermes"] % arguments)
        assert turn.node.invalid_format == (depth > 100)
        assert turn.calls == ([] if depth > 100 else [("look", arguments)])


async def test_bytes_that_are_no_text_are_served() -> None:
    """Any token can be sampled at any place: half characters, null characters, tags, a byte order mark."""
    async with rig_of("hermes") as rig:
        encode = rig.tokenizer.encode
        raw = [encode("é")[0], *encode("\x00\ufeff"), encode("漢")[1], *encode("</think><tool_call>")]
        turn = await both(rig, [*raw, encode("é")[1], rig.tokenizer.eos_token_id])
        assert "\ufffd" in turn.message["content"] and turn.node.invalid_format


async def test_a_call_comes_in_one_piece_and_text_as_it_is_sampled() -> None:
    async with rig_of("hermes") as rig:
        rig.engine.script.append("abcdefgh" + FORMS["hermes"] % '{"a": 1}')
        events = await chunks(rig, rig.store.start().api_key, {"messages": [{"role": "user", "content": "x"}],
                                                               "tools": [{"type": "function",
                                                                          "function": {"name": "look"}}]})  # fmt: skip
        deltas = [event["choices"][0]["delta"] for event in events]
        assert [d["content"] for d in deltas if d.get("content")] == list("abcdefgh")
        ((call,),) = [d["tool_calls"] for d in deltas if d.get("tool_calls")]
        assert call["index"] == 0 and call["id"] and call["function"] == {"name": "look", "arguments": '{"a": 1}'}
