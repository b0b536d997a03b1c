"""The grammars of forced tool calls, tested with xgrammar, which vLLM uses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tau2_lightning.rollout.chat.hermes import HermesParser
from tau2_lightning.rollout.chat.parsers import PlainParser
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.proxy.calls import ChatCall, ToolChoice
from tau2_lightning.rollout.proxy.grammar import grammar_for
from tests.rollout.proxy.fixtures import byte_tokenizer, template

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
        },
    },
    {"type": "function", "function": {"name": "go"}},
]
LOOK = '<tool_call>\n{"name": "look", "arguments": {"a": "x"}}\n</tool_call>'
GO = '<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>'


def call(choice: ToolChoice, parallel: bool = True) -> ChatCall:
    return ChatCall(
        [{"role": "user", "content": "x"}], TOOLS, SamplingParams(8), tool_choice=choice, parallel_tool_calls=parallel
    )


@pytest.mark.parametrize(
    ("choice", "parallel", "accepted"),
    [
        (ToolChoice("required"), True, {LOOK, GO, f"{GO}\n{LOOK}"}),
        (ToolChoice("required"), False, {LOOK, GO}),
        (ToolChoice("named", "go"), True, {GO}),
    ],
)
def test_hermes_grammar(choice: ToolChoice, parallel: bool, accepted: set[str]) -> None:
    xgrammar = pytest.importorskip("xgrammar")
    tokenizer = byte_tokenizer(template("qwen2_5"))
    compiler = xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=len(tokenizer), stop_token_ids=[tokenizer.eos_token_id]
        )
    )
    grammar = grammar_for(call(choice, parallel), HermesParser().structural_tag)
    assert grammar is not None
    compiled = compiler.compile_structural_tag(grammar.structured["structural_tag"])
    texts = {LOOK, GO, f"{GO}\n{LOOK}", "hello", "", LOOK.replace('"a"', '"b"'), LOOK.replace("look", "fly"), LOOK[:-3]}
    for text in texts:
        matcher = xgrammar.GrammarMatcher(compiled)
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        assert all(matcher.accept_token(token) for token in ids) == (text in accepted), text


def test_other_formats_use_a_json_list() -> None:
    from tau2_lightning.rollout.chat.message import ParsedMessage

    grammar = grammar_for(call(ToolChoice("named", "look")), PlainParser().structural_tag)
    assert grammar is not None and not grammar.native and grammar.name == "named:look"
    assert grammar.structured["json"]["maxItems"] == 1
    said = json.dumps([{"name": "look", "parameters": {"a": "x"}}])
    (found,) = grammar.read(ParsedMessage(said, text=said)).tool_calls
    assert (found.name, json.loads(found.arguments)) == ("look", {"a": "x"})
    assert grammar.read(ParsedMessage(said[:-4], text=said[:-4])).invalid_format
