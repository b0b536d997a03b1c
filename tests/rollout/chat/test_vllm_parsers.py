"""vLLM's parsers used through our interface: broken calls are flagged with every parser."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from tau2_lightning.rollout.chat.parsers import PARSERS, make_tool_parser
from tau2_lightning.rollout.chat.tools import read_turn
from tau2_lightning.rollout.chat.vllm_openings import MARKED_UP, OPENINGS
from tests.rollout.proxy.fixtures import SPECIAL, byte_tokenizer, template

pytestmark = pytest.mark.slow
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
        },
    }
]
#: (parser, a call, a broken call).
SAID = [
    ("granite4", '<tool_call>\n{"name": "look", "arguments": {"a": "x"}}\n</tool_call>',
     '<tool_call>{"nam</tool_call>'),
    ("qwen3_xml", "<tool_call>\n<function=look>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>",
     "<tool_call>\nlook\n</tool_call>"),
    ("glm45", "<tool_call>look\n<arg_key>a</arg_key>\n<arg_value>x</arg_value>\n</tool_call>", "<tool_call>"),
    ("jamba", '<tool_calls>[{"name": "look", "arguments": {"a": "x"}}]</tool_calls>', "<tool_calls>[{]</tool_calls>"),
    ("phi4_mini_json", 'functools[{"name": "look", "arguments": {"a": "x"}}]', "functools[{]"),
    ("olmo3", '<function_calls>\nlook(a="x")\n</function_calls>', "<function_calls>\nlook(\n</function_calls>"),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pytest.importorskip("vllm")
    logging.disable(logging.ERROR)
    marks = [mark for marks in OPENINGS.values() for mark in marks]
    more = ["</tool_call>", "<tool_calls>", "</tool_calls>", "<think>", "</think>"]
    yield byte_tokenizer(template("qwen2_5"), (*SPECIAL, *dict.fromkeys([*marks, *more])))
    logging.disable(logging.NOTSET)


def test_every_parser_of_vllm_has_openings_or_is_ours(tokenizer: Any) -> None:
    from vllm.tool_parsers import ToolParserManager

    known = {*PARSERS, *OPENINGS, *MARKED_UP}
    assert set(ToolParserManager.list_registered()) - known == {"openai"}
    with pytest.raises(ValueError, match="openai"):  # vLLM's class for it is only a stub
        make_tool_parser("openai", tokenizer)
    with pytest.raises(ValueError, match="hermes"):
        make_tool_parser("no_such_parser", tokenizer)


@pytest.mark.parametrize(("name", "call", "broken"), SAID)
def test_calls_are_read_and_broken_ones_flagged(tokenizer: Any, name: str, call: str, broken: str) -> None:
    parser = make_tool_parser(name, tokenizer)
    content, calls, invalid = read_turn(parser, call, TOOLS)
    assert [(c.name, json.loads(c.arguments)) for c in calls] == [("look", {"a": "x"})], name
    assert not content and not invalid
    assert read_turn(parser, broken, TOOLS) == (broken, (), True)
    assert read_turn(parser, "just text", TOOLS) == ("just text", (), False)


def test_whatever_is_sampled_no_parser_raises(tokenizer: Any) -> None:
    from vllm.tool_parsers import ToolParserManager

    tried = 0
    for name in sorted(set(ToolParserManager.list_registered()) - {*PARSERS, "openai"}):
        try:
            parser = make_tool_parser(name, tokenizer)
        except ValueError:
            continue  # the parser needs tokens that this tokenizer lacks
        tried += 1
        for mark in (*OPENINGS.get(name, ()), "{", "[", ""):
            for tail in ("", "[" * 3000, '{"name": "look", "arguments": ["x"]}', '"\\ud83d', "\x00", "}]</a>"):
                content, calls, invalid = read_turn(parser, mark + tail, TOOLS)
                assert calls or mark not in OPENINGS.get(name, ()) or (invalid and content == mark + tail), name
    assert tried > 20
