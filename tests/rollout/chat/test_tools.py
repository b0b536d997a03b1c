"""Our hermes parser against vLLM's own, on hand-written and generated text."""

from __future__ import annotations

import itertools
import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tau2_lightning.rollout.chat.hermes import HermesParser, HermesStream
from tau2_lightning.rollout.chat.message import ParsedMessage
from tau2_lightning.rollout.chat.parsers import PARSERS, make_tool_parser
from tau2_lightning.rollout.chat.reasoning import split_reasoning
from tau2_lightning.rollout.chat.tools import PlainStream
from tests.rollout.proxy.fixtures import byte_tokenizer, template

PIECES = [
    "<tool_call>", "</tool_call>", "<tool_call>\n", "\n</tool_call>", "text ", "\n", "{", "}", '"', ",", ":", "[1]",
    '{"name": "f", "arguments": {}}', '{"name": "g", "arguments": {"a": "é\\u00e9</b>"}}', '{"name": "f"}',
    '{"arguments": {"x": 1.50}, "name": "h"}', '{"name": 3, "arguments": {}}', '{"name": "f", "arguments": [1, 2]}',
    '{"name": "f", "arguments": null}', '"just a string"', "[]", "null", '{"name": "f", "arguments": "{}"}',
    '{"name": "f", "arguments": {"n": NaN}}', "<tool_call", "call>", " \t",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=8).map("".join)


@pytest.fixture(scope="module")
def vllm_parser() -> Any:
    manager = pytest.importorskip("vllm.tool_parsers").ToolParserManager
    logging.getLogger("vllm").setLevel(logging.CRITICAL)
    for name in ("vllm.tool_parsers.hermes_tool_parser",):
        logging.getLogger(name).disabled = True
    return manager.get_tool_parser("hermes")(byte_tokenizer(template("qwen2_5")))


@pytest.mark.slow  # imports vLLM
@given(text=texts)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equal_to_vllm(vllm_parser: Any, text: str) -> None:
    content, calls, _ = HermesParser().parse(text, [])
    theirs = vllm_parser.extract_tool_calls(text, None)
    assert content == theirs.content
    assert [(c.name, c.arguments) for c in calls] == [
        (c.function.name, c.function.arguments) for c in theirs.tool_calls
    ]


@given(text=texts, cuts=st.lists(st.integers(0, 200), max_size=12))
@settings(max_examples=400, deadline=None)
def test_a_stream_adds_up_to_the_whole(text: str, cuts: list[int]) -> None:
    """However the text is cut; once a call that breaks has been started, it stays as it was sent."""
    content, calls, invalid = HermesParser().parse(text, [])
    stream = HermesStream()
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    deltas = [d for a, b in itertools.pairwise(bounds) for d in stream.feed(text[a:b])]
    deltas += stream.finish(ParsedMessage(content, None, calls, invalid, text))
    said = "".join(d.content for d in deltas)
    got: list[list[str]] = []
    for delta in deltas:
        if delta.call is not None and delta.name:
            got.append([delta.name, delta.arguments])
        elif delta.call is not None:
            got[delta.call][1] += delta.arguments
    if invalid and got and not calls:
        assert text.startswith(said)
        return
    assert said == (content or "")
    # As text: a NaN among the arguments equals itself there.
    assert [(name, json.dumps(json.loads(arguments))) for name, arguments in got] == [
        (c.name, json.dumps(json.loads(c.arguments))) for c in calls
    ]


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("hello", False, (None, "hello")),
        ("<think>\na\n</think>\n\nb", False, ("a", "b")),
        ("a\n</think>\n\nb", True, ("a", "b")),
        ("<think>cut", False, ("cut", "")),
        ("cut", True, ("cut", "")),
        ("<think>\n\n</think>\n\nb", False, ("", "b")),
    ],
)
def test_split_reasoning(text: str, opened: bool, expected: tuple[str | None, str]) -> None:
    assert split_reasoning(text, open_at_start=opened) == expected


def test_arguments_that_are_no_object_are_invalid() -> None:
    for arguments in ("[1]", "null", '"x"', "3"):
        _, calls, invalid = HermesParser().parse(
            f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>', []
        )
        assert invalid and len(calls) == 1


@pytest.mark.slow  # imports vLLM
def test_other_parsers_come_from_vllm() -> None:
    pytest.importorskip("vllm")
    tokenizer = byte_tokenizer(template("qwen2_5"), special=("<|endoftext|>", "<|im_end|>", "<|python_tag|>"))
    parser = make_tool_parser("llama3_json", tokenizer)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    content, calls, invalid = parser.parse('{"name": "f", "parameters": {"a": 1}}', tools)
    assert [(c.name, json.loads(c.arguments)) for c in calls] == [("f", {"a": 1})] and not invalid and not content
    stream = parser.stream(tools)
    pieces = list('{"name": "f", "parameters": {"a": 1}}')
    deltas = [delta for piece in pieces for delta in stream.feed(piece)]
    deltas += stream.finish(ParsedMessage(None, None, calls))
    assert "".join(d.name for d in deltas) == "f" and json.loads("".join(d.arguments for d in deltas)) == {"a": 1}
    with pytest.raises(ValueError, match="hermes"):
        make_tool_parser("no_such_parser", tokenizer)
    with pytest.raises(ValueError, match="python_tag"):
        make_tool_parser("llama3_json", byte_tokenizer(template("qwen2_5")))


def test_a_parser_of_ones_own_is_one_line_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shouting:
        def parse(self, text: str, tools: Any) -> Any:
            return text.upper(), (), False

        def stream(self, tools: Any) -> PlainStream:
            return PlainStream()

        def structural_tag(self, functions: Any, *, once: bool) -> None:
            return None

    monkeypatch.setitem(PARSERS, "shouting", lambda tokenizer: Shouting())
    tokenizer = byte_tokenizer(template("qwen2_5"))
    assert make_tool_parser("shouting", tokenizer).parse("hi", []) == ("HI", (), False)
    assert isinstance(make_tool_parser("qwen3_json", tokenizer), HermesParser)
    assert make_tool_parser(None, tokenizer).parse("hi", []) == ("hi", (), False)
